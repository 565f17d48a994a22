"""A whole text-to-image job: which sentences and seeds, where the results go; class images for prior preservation."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from tqdm import tqdm

from ldm.checkpoint.read import read_checkpoint
from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import check_writable, picture_format, save_image
from ldm.inference.generator import ImageGenerator
from ldm.inference.recipe import KEY, text_recipe
from ldm.inference.settings import TextSettings

logger = logging.getLogger(__name__)


def make_pictures(args: argparse.Namespace) -> list[Path]:
    """Do what ``txt2img.py``'s parsed command line asks for; return the files written.

    Everything is checked, the checkpoint's header included, before a model is loaded. Raises FileNotFoundError or
    ValueError.
    """
    if args.num_samples < 1 or args.batch_size < 1:
        raise ValueError("--num-samples and --batch-size must be at least 1")
    if args.class_images and (len(args.prompt) > 1 or args.num_samples > 1):
        what = f"{len(args.prompt)} prompts" if len(args.prompt) > 1 else f"--num-samples {args.num_samples}"
        raise ValueError(
            f"--class-images fills a folder with pictures of one --prompt, by a number of its own; {what} "
            "would have no effect"
        )
    if not 0 <= args.seed < 2**62:
        raise ValueError(f"--seed is {args.seed}; 0 or more is expected")
    checkpoint = read_checkpoint(args.ckpt)
    names = ("scale", "steps", "sampler", "spacing", "width", "height", "negative")
    settings = TextSettings.of_checkpoint(checkpoint.metadata, **{name: getattr(args, name) for name in names})
    settings.checked(1)  # the model's own grid is known when it is loaded
    if settings.scale == 1 and settings.negative:
        raise ValueError("--negative has no effect at a --scale of 1, which does not guide; take a higher scale")
    place, wanted = Path(args.output), [(t, args.seed + i) for t in args.prompt for i in range(args.num_samples)]
    single = place.suffix != "" and not place.is_dir()
    if single and (len(wanted) > 1 or args.class_images):
        raise ValueError(f"several pictures do not fit into the one file '{place}'; give a folder as --output")
    if single:
        picture_format(place)
    check_writable(place if single else place / "x.png")
    generator = ImageGenerator.from_checkpoint(
        checkpoint, args.config, args.vae_ckpt, args.weights, args.device, args.precision
    )
    settings.checked(generator.model.grid())
    if args.class_images:
        from ldm.dataset_generation.class_images import make_class_images

        return make_class_images(
            generator, args.prompt[0], place, args.class_images, settings, args.seed, args.batch_size
        )
    written, pictures = [], []
    with tqdm(total=len(wanted), unit="picture", disable=None) as bar:
        for first in range(0, len(wanted), args.batch_size):
            batch = wanted[first : first + args.batch_size]
            made = generator.generate([t for t, _ in batch], settings, [s for _, s in batch])
            for (text, seed), picture in zip(batch, made, strict=True):
                path = place if single else place / f"{len(written):04d}-{seed}.png"
                save_image(picture, path, {KEY: json.dumps(text_recipe(generator, settings, text, seed))})
                written.append(path)
            pictures += made
            bar.update(len(batch))
    if len(written) > 1:
        rows = [pictures[i : i + args.num_samples] for i in range(0, len(pictures), args.num_samples)]
        save_image(contact_sheet(rows, [text[:40] for text in args.prompt]), place / "sheet.png")
        written.append(place / "sheet.png")
    return written
