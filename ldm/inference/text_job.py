"""A whole text-to-image job: which sentences and seeds, and where the results go."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.checkpoint.read import read_checkpoint
from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import picture_format, save_image
from ldm.errors import UserError
from ldm.files import check_writable
from ldm.inference.generator import ImageGenerator
from ldm.inference.recipe import KEY, text_recipe
from ldm.inference.settings import TextSettings
from ldm.models.build import ModelSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextRequest:
    """What ``txt2img.py`` is asked for.

    source: the model. prompt: the sentences. output: a file for one picture, a folder for several. num_samples:
    pictures of each prompt, seeds counting up from ``seed``. batch_size: pictures at once. class_images: fill the
    folder with so many pictures of the one prompt, for DreamBooth's prior preservation; None for pictures by
    themselves. settings: fields of ``TextSettings`` that are chosen, over what the checkpoint recommends.

    Raises UserError for what makes no sense by itself.
    """

    source: ModelSource
    prompt: tuple[str, ...]
    output: str
    num_samples: int = 1
    batch_size: int = 1
    seed: int = 0
    class_images: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1:
            raise UserError("--num-samples and --batch-size must be at least 1")
        if self.class_images is not None and self.class_images < 1:
            raise UserError(f"--class-images is {self.class_images}; a number from 1 is expected")
        if self.class_images is not None and (len(self.prompt) > 1 or self.num_samples > 1):
            what = f"{len(self.prompt)} prompts" if len(self.prompt) > 1 else f"--num-samples {self.num_samples}"
            raise UserError(
                f"--class-images fills a folder with pictures of one --prompt, by a number of its own; {what} "
                "cannot be had beside it"
            )
        if not 0 <= self.seed < 2**62:
            raise UserError(f"--seed is {self.seed}; 0 or more is expected")

    @property
    def is_file(self) -> bool:
        """Whether the output is one file, not a folder."""
        return Path(self.output).suffix != "" and not Path(self.output).is_dir()


def load_generator(request: TextRequest) -> tuple[ImageGenerator, TextSettings]:
    """Return the model of a request and the settings to use it with. Everything is checked before it is loaded.

    Raises UserError.
    """
    checkpoint = read_checkpoint(request.source.ckpt)
    settings = TextSettings.of_checkpoint(checkpoint.metadata, **request.settings)
    if settings.scale == 1 and settings.negative:
        logger.warning("--negative has no effect at a --scale of 1, which does not guide; take a higher scale")
    if request.is_file and (len(request.prompt) * request.num_samples > 1 or request.class_images):
        raise UserError(f"several pictures do not fit into the one file '{request.output}'; give a folder as --output")
    if request.is_file:
        picture_format(request.output)
    check_writable(request.output if request.is_file else Path(request.output) / "x.png")
    generator = ImageGenerator.from_checkpoint(checkpoint, **request.source.options)
    settings.check_grid(generator.model.grid())
    return generator, settings


def make_pictures(request: TextRequest) -> list[Path]:
    """Do what is asked for; return the files written. Raises UserError."""
    generator, settings = load_generator(request)
    place = Path(request.output)
    wanted = [(text, request.seed + i) for text in request.prompt for i in range(request.num_samples)]
    written, pictures = [], []
    with tqdm(total=len(wanted), unit="picture", disable=None) as bar:
        for first in range(0, len(wanted), request.batch_size):
            batch = wanted[first : first + request.batch_size]
            made = generator.generate([t for t, _ in batch], settings, [s for _, s in batch])
            for (text, seed), picture in zip(batch, made, strict=True):
                path = place if request.is_file else place / f"{len(written):04d}-{seed}.png"
                save_image(picture, path, {KEY: json.dumps(text_recipe(generator.provenance, settings, text, seed))})
                written.append(path)
            pictures += made
            bar.update(len(batch))
    if len(written) > 1:
        rows = [pictures[i : i + request.num_samples] for i in range(0, len(pictures), request.num_samples)]
        save_image(contact_sheet(rows, [text[:40] for text in request.prompt]), place / "sheet.png")
        written.append(place / "sheet.png")
    return written
