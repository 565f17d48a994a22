"""Scenes as tensors: what is drawn, and where the animal is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ldm.data.images import to_tensor
from ldm.spriteworld.world.scene import Scene, draw, subject_mask


def pictures(scenes: Sequence[Scene], size: int = 64) -> torch.Tensor:
    """Return the drawn scenes, ``n 3 h w`` in [-1, 1]."""
    return to_tensor([draw(scene, size) for scene in scenes])


def masks(scenes: Sequence[Scene], size: int = 64) -> torch.Tensor:
    """Return the subjects' coverage, ``n 1 h w`` in [0, 1]."""
    arrays = np.stack([np.asarray(subject_mask(scene, size), dtype=np.float32) for scene in scenes])
    return torch.from_numpy(arrays)[:, None] / 255
