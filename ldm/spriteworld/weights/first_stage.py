"""The first stage inside a checkpoint, and the files that a changed one is written to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from ldm.checkpoint.diffusers_format import FIRST_STAGE
from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.config import instantiate_from_config
from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.files import check_writable
from ldm.models.autoencoder import load_first_stage
from ldm.models.build import config_for
from ldm.spriteworld.weights.latent_basis import whiten, widen
from ldm.spriteworld.weights.net2wider import net2wider
from ldm.spriteworld.world.dataset import SpritePictures
from ldm.spriteworld.world.scene import draw, random_scene
from ldm.typed import plain


def first_stage_of(path: Path) -> Any:
    """Return the first stage inside a checkpoint of ours. Raises UserError if it carries no config."""
    node = config_for(read_checkpoint(path))["model"]
    node = node["params"].get("first_stage_config", node)
    stage = instantiate_from_config(node).eval()
    load_first_stage(stage, str(path))
    return stage


def reconstruction_of(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the first stage inside a checkpoint, there and back, as a function of pictures in [-1, 1]."""
    stage = first_stage_of(path)

    @torch.no_grad()
    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        return stage(x)

    return reconstruct


@torch.no_grad()
def latent_scale(path: Path, n: int = 400) -> float:
    """Return a first stage's scale factor: one over the standard deviation of its latents over n fresh scenes."""
    stage = first_stage_of(path)
    pictures = to_tensor([draw(random_scene(np.random.default_rng([9, i]))) for i in range(n)])
    return 1 / torch.cat([stage.encode(part).mean for part in pictures.split(50)]).std().item()


def varied_pictures(n: int) -> torch.Tensor:
    """Return n pictures of the world, ``n 3 64 64`` in [-1, 1], half of them in any coat."""
    dataset = SpritePictures(n, seed=10)
    return torch.stack([dataset[i]["edited"] for i in range(n)])


def widen_first_stage(
    ckpt: Path, output: Path, channels: int | None = None, features: Sequence[int] | None = None
) -> Path:
    """Write a wider first stage that makes the same pictures, weights to train on from; return its path.

    channels: of the latents (see ``latent_basis``). features: at each size, largest first (see ``net2wider``); one of
    the two is given. Raises UserError for a number that is not above its own, or numbers of features that are no
    multiples of its own.
    """
    checkpoint, stage = read_checkpoint(ckpt), first_stage_of(ckpt)
    config = config_for(checkpoint)
    if channels is not None:
        OmegaConf.update(config, "model.params.embed_dim", channels)
        OmegaConf.update(config, "model.params.ddconfig.z_channels", channels)
    if features is not None:
        _set_features(config["model"]["params"]["ddconfig"], features)
    torch.manual_seed(0)
    wider = instantiate_from_config(config["model"]).eval()
    if features is None:
        widen(stage, wider)
    else:
        net2wider(stage, wider)
    check_writable(output)
    _save(wider, output, {**checkpoint.metadata, "config": plain(config)})
    return output


def _set_features(ddconfig: Any, features: Sequence[int]) -> None:
    now = [ddconfig["ch"] * factor for factor in ddconfig["ch_mult"]]
    if len(features) != len(now) or any(new < old or new % old for new, old in zip(features, now, strict=True)):
        raise UserError(f"the first stage has {now} features; as many multiples of them are expected")
    ddconfig["ch"] = math.gcd(*features)
    ddconfig["ch_mult"] = [new // ddconfig["ch"] for new in features]


def whiten_first_stage(ckpt: Path, output: Path, power: float = 0.0, n: int = 2000) -> Path:
    """Write a first stage with uncorrelated latents over n fresh pictures; return its path.

    power: what a channel means to the picture, to which power it is scaled (see ``latent_basis.whiten``).
    """
    checkpoint, stage = read_checkpoint(ckpt), first_stage_of(ckpt)
    check_writable(output)
    whiten(stage, varied_pictures(n), power)
    _save(stage, output, checkpoint.metadata)
    return output


def _save(stage: Any, path: Path, metadata: dict[str, Any]) -> None:
    state = {f"{FIRST_STAGE}{name}": tensor.half() for name, tensor in stage.state_dict().items()}
    save_checkpoint(path, state, metadata)
