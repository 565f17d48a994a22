"""Sheets of the sprite world for training runs: what the model makes of fixed scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.data.images import to_images, to_tensor
from ldm.spriteworld.scene import SUBJECTS, draw, random_scene, subject_scene


def grid(columns: list[list[Image.Image]], scale: int = 2, gap: int = 4) -> Image.Image:
    """Return pictures of one size as a grid, given column by column, enlarged without smoothing."""
    side = columns[0][0].width * scale
    sheet = Image.new("RGB", (len(columns) * (side + gap) + gap, len(columns[0]) * (side + gap) + gap), "white")
    for i, column in enumerate(columns):
        for j, picture in enumerate(column):
            place = (gap + i * (side + gap), gap + j * (side + gap))
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return sheet


class ReconstructionSheet:
    """Pictures above, what the first stage gives back below: random scenes, then each subject."""

    def __init__(self, scenes: int = 8, size: int = 64):
        """scenes: how many random ones."""
        rng = np.random.default_rng(7)
        drawn = [random_scene(rng) for _ in range(scenes)] + [subject_scene(rng, name) for name in SUBJECTS]
        self.pictures = [draw(scene, size) for scene in drawn]

    def __call__(self, model: Any) -> Image.Image:
        """Return the sheet. model: an AutoencoderKL."""
        x = to_tensor(self.pictures).to(model.device)
        with torch.no_grad():
            back = to_images(model(x))
        return grid([[a, b] for a, b in zip(self.pictures, back, strict=True)])
