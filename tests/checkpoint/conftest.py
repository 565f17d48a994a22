"""Small checkpoints, raw and as published, and a diffusers folder of the same weights."""

from pathlib import Path

import pytest
import torch

from tests.checkpoint.files import alphas_cumprod, build, ema_of, lightning
from tests.conftest import randomize
from tests.models.reference import diffusers_unet, diffusers_vae, transformers_text


@pytest.fixture(scope="module")
def raw() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in build(seed=0).state_dict().items()}


@pytest.fixture(scope="module")
def published(raw) -> dict[str, torch.Tensor]:
    """Everything that a published file holds: weights, averages (each 1 larger), schedule, loss."""
    state = dict(raw)
    state |= {ema_of(n): t + 1 for n, t in raw.items() if n.startswith("model.")}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int)}
    state |= {"alphas_cumprod": alphas_cumprod(), "betas": torch.rand(1000), "logvar": torch.zeros(1000)}
    state |= {"first_stage_model.loss.logvar": torch.zeros(())}
    return state


@pytest.fixture(scope="module")
def lightning_ckpt(published, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lightning") / "instruct-pix2pix-00-22000.ckpt"
    torch.save(lightning(published), path)
    return path


# The diffusers folder, and parts by themselves


@pytest.fixture(scope="module")
def reference():
    return randomize(diffusers_unet(8), 11), randomize(diffusers_vae(), 12), randomize(transformers_text(), 13)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("diffusers")
    for part, name in zip(reference, ("unet", "vae", "text_encoder"), strict=True):
        part.save_pretrained(path / name, safe_serialization=True)
    return path
