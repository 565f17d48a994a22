"""Sheets of the sprite world for training runs: what the model makes of fixed scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.data.images import to_images, to_tensor
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.spriteworld.world.scene import SUBJECTS, draw, random_scene, subject_scene


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
        """scenes: how many random ones. size: pixels of a side."""
        rng = np.random.default_rng(7)
        examples = [random_scene(rng) for _ in range(scenes)]
        examples += [subject_scene(rng, name) for name in SUBJECTS]
        self.pictures = [draw(scene, size) for scene in examples]

    def __call__(self, model: Any) -> Image.Image:
        """Return the sheet. model: an AutoencoderKL."""
        x = to_tensor(self.pictures).to(model.device)
        with torch.no_grad():
            back = to_images(model(x))
        return grid([[a, b] for a, b in zip(self.pictures, back, strict=True)])


INSTRUCTIONS = (
    "replace the {animal} with a dog",
    "replace the {animal} with a wolf",
    "replace the {animal} with a horse",
    "replace the {animal} with a rabbit",
    "put it on the beach",
    "put it in the snow",
    "make it night",
    "make it black and white",
    "make the {animal} red",
    "give the {animal} a blue hat",
)


class EditSheet:
    """Random scenes to the left, then what each of a row of instructions makes of them."""

    def __init__(
        self, scenes: int = 6, size: int = 64, steps: int = 12, text_scale: float = 1.25, image_scale: float = 1.1
    ):
        """scenes: rows. size: pixels of a side. steps, text_scale, image_scale: of the sampling."""
        rng = np.random.default_rng(11)
        self.scenes = [random_scene(rng, style="day") for _ in range(scenes)]
        self.pictures = [draw(scene, size) for scene in self.scenes]
        self.settings = EditSettings(
            text_scale=text_scale, image_scale=image_scale, steps=steps, sampler="dpmpp_2m", resolution=size
        )

    def __call__(self, model: Any) -> Image.Image:
        """Return the sheet. model: a LatentDiffusion that edits."""
        editor = ImageEditor(model)
        columns = [self.pictures]
        for text in INSTRUCTIONS:
            texts = [text.format(animal=scene.animal) for scene in self.scenes]
            columns.append(editor.edit(self.pictures, texts, self.settings))
        return grid(columns)
