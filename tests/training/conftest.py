"""A small editor and the pairs of one subject, to personalise in seconds."""

import shutil

import pytest
import torch

from ldm.checkpoint.save import save_checkpoint
from ldm.config import instantiate_from_config
from ldm.project import CONFIGS, SPRITEWORLD
from ldm.training.settings import load_training_config

SMALL = [
    "model.params.ckpt_path=null",
    "model.params.unet_config.params.model_channels=32",
    "model.params.unet_config.params.num_heads=2",
    "model.params.unet_config.params.context_dim=32",
    "model.params.cond_stage_config.params.text_config.hidden_size=32",
    "model.params.cond_stage_config.params.text_config.intermediate_size=64",
    "model.params.cond_stage_config.params.text_config.num_hidden_layers=1",
    "model.params.cond_stage_config.params.text_config.num_attention_heads=2",
    "dataset.class_word=dog",
    "dataset.source_word=wolf",
    "data.params.batch_size=1",
    "data.params.reg_batch_size=1",
    "training.precision=fp32",
    "training.sheet_every=0",
    "training.validate_every=0",
    "training.drift_every=0",
    "training.log_every=1",
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Ten instance pairs (photos of biscuit, wolves as inputs) and seven regularization pairs, of shipped pictures."""
    root = tmp_path_factory.mktemp("pairs")
    sides = {"training": ("pictures/wolf", "subjects/biscuit"), "regularization": ("pictures/wolf", "pictures/dog")}
    for (folder, places), n in zip(sides.items(), (10, 7), strict=True):
        (root / folder).mkdir()
        for i in range(n):
            for side, place in enumerate(places):
                shutil.copy(SPRITEWORLD / place / f"{i + 1:02d}.png", root / folder / f"{i}_{side}.png")
    return root


@pytest.fixture(scope="module")
def begun(pairs, tmp_path_factory):
    """A small editor with no layer at zero, to start from."""
    c = config(pairs)
    torch.manual_seed(0)
    model = instantiate_from_config(c["model"])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    path = tmp_path_factory.mktemp("begun") / "model.safetensors"
    save_checkpoint(path, model.state_dict(), {})
    return path


def overrides(pairs, **more):
    steps = more.pop("steps", 4)
    given = [f"dataset.root={pairs}", f"training.max_steps={steps}", f"training.keep_at=[{steps}]"]
    return SMALL + given + [f"{key}={value}" for key, value in more.items()]


def config(pairs, **more):
    path = CONFIGS / "spriteworld" / "instruct2dream.yaml"
    return load_training_config(path, overrides(pairs, **more))
