"""Tell a picture's place and style, by drawn examples of each."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab

from ldm.data.images import to_tensor
from ldm.spriteworld.world.scene import PLACES, STYLES, draw, random_scene


def surroundings(x: torch.Tensor) -> list[tuple[str, str]]:
    """Return the place and the style that each picture looks like: the nearest class of drawn ones, by linear
    discriminant analysis of 8 x 8 averages in CIELAB (its own error is in the tests)."""
    weights, offset, classes = _discriminant()
    scores = _coarse(x) @ weights + offset
    return [classes[i] for i in scores.argmax(1).tolist()]


def _coarse(x: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(rgb_to_lab(((x + 1) / 2).clamp(0, 1)), 8).flatten(1).double() / 50


@cache
def _discriminant(each: int = 24, ridge: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str, str]]]:
    classes = [(place, style) for place in PLACES for style in STYLES]
    means, scatter = [], torch.zeros(192, 192, dtype=torch.float64)
    for k, (place, style) in enumerate(classes):
        scenes = [random_scene(np.random.default_rng([k, i, 85, 0]), place=place, style=style) for i in range(each)]
        features = _coarse(to_tensor([draw(scene) for scene in scenes]))
        means.append(features.mean(0))
        scatter += (features - means[-1]).T @ (features - means[-1])
    centre = torch.stack(means)
    covariance = scatter / (len(classes) * (each - 1)) + ridge * torch.eye(192, dtype=torch.float64)
    weights = torch.linalg.solve(covariance, centre.T)
    return weights, -(centre * weights.T).sum(1) / 2, classes
