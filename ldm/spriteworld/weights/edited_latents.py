"""Latents that an editor makes, with the pictures that it should have made: what a decoder learns to draw from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ldm.checkpoint.read import read_checkpoint
from ldm.files import check_writable
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.spriteworld.weights.latent_pictures import save_latent_pictures
from ldm.spriteworld.world.dataset import SpritePictures, SpriteTriplets, pixel_weights
from ldm.spriteworld.world.tensors import masks, pictures

SCALES = ((1.0, 1.0), (1.25, 1.1), (1.5, 1.2))  # of text and picture, a batch each in turn; the middle one ships
HATS = 0.5  # heads under hats are the hardest to draw: there the first stage loses most
STEPS = 10  # as good as 20 here
WEIGHT, LOW_CONTRAST = 8.0, 3.0  # as configs/spriteworld/first-stage.yaml has them
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # latents, pictures, pixels' weights


@torch.no_grad()
def write_edited_latents(
    ckpt: Path, output: Path, n: int, seed: int, n_pictures: int | None = None, batch_size: int = 50
) -> Path:
    """Write the latents of edits of fresh triplets, and of pictures in any coat as the encoder makes them.

    Every new animal's coat is named, so the true picture is known; a third of the edits is made without guidance, the
    rest with some. ckpt: an editor. n: edits. n_pictures: pictures in any coat, None for n. Returns the file's path.
    Raises UserError for a model that edits no pictures.
    """
    checkpoint = read_checkpoint(ckpt)
    check_writable(output)
    editor = ImageEditor.from_checkpoint(checkpoint)
    own = EditSettings.of_checkpoint(checkpoint.metadata)
    parts = [*_edited(editor, own, n, seed, batch_size), *_encoded(editor, n_pictures or n, seed, batch_size)]
    save_latent_pictures(output, *(torch.cat(values) for values in zip(*parts, strict=True)))
    return output


def _batches(n: int, batch_size: int, what: str) -> Iterable[range]:
    numbers = [range(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
    return tqdm(numbers, desc=what, unit="batch", disable=None)


def _edited(editor: ImageEditor, own: EditSettings, n: int, seed: int, batch_size: int) -> Iterator[Part]:
    triplets = SpriteTriplets(n, seed, any_coat=0.3, any_style=0.35, named_coat=1.0, any_hat=HATS)
    for k, numbers in enumerate(_batches(n, batch_size, "edits")):
        edits = [triplets.edit(i) for i in numbers]
        text, picture = SCALES[k % len(SCALES)]
        settings = EditSettings(**{**own.__dict__, "text_scale": text, "image_scale": picture, "steps": STEPS})
        before, truth = (pictures([getattr(e, side) for e in edits]) for side in ("source", "target"))
        noises = [seed * 1_000_000 + i for i in numbers]
        z = editor.sample_latents(before, [e.instruction for e in edits], settings, noises)
        was, will = (masks([getattr(e, side) for e in edits]) for side in ("source", "target"))
        weight = [
            pixel_weights(p, m, WEIGHT, LOW_CONTRAST, also=w / 2) for p, m, w in zip(truth, will, was, strict=True)
        ]
        yield z.float().cpu() / editor.model.scale_factor, truth, torch.stack(weight)


def _encoded(editor: ImageEditor, n: int, seed: int, batch_size: int) -> Iterator[Part]:
    dataset = SpritePictures(n, seed, subject_weight=WEIGHT, low_contrast=LOW_CONTRAST, any_coat=0.8, any_hat=HATS)
    for numbers in _batches(n, batch_size, "pictures"):
        items = [dataset[i] for i in numbers]
        x, weight = (torch.stack([item[name] for item in items]) for name in ("edited", "weight"))
        yield editor.model.picture_condition(x.to(editor.device)).float().cpu(), x, weight
