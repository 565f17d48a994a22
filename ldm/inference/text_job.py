"""A whole text-to-image job: which sentences and seeds, where the results go; class images for prior preservation."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm.checkpoint import read_checkpoint, replacing
from ldm.data.images import SUFFIXES, check_writable, picture_format, save_image
from ldm.inference.gates import Gates, judge
from ldm.inference.generator import ImageGenerator, TextSettings
from ldm.inference.recipe import KEY
from ldm.inference.sheets import contact_sheet

logger = logging.getLogger(__name__)

CLASS_NOTE = ".class-images.json"


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
                save_image(picture, path, {KEY: json.dumps(_recipe(generator, settings, text, seed))})
                written.append(path)
            pictures += made
            bar.update(len(batch))
    if len(written) > 1:
        rows = [pictures[i : i + args.num_samples] for i in range(0, len(pictures), args.num_samples)]
        save_image(contact_sheet(rows, [text[:40] for text in args.prompt]), place / "sheet.png")
        written.append(place / "sheet.png")
    return written


def make_class_images(
    generator: ImageGenerator,
    prompt: str,
    folder: Path,
    number: int,
    settings: TextSettings,
    seed: int,
    batch_size: int = 1,
    gates: Gates | None = None,
) -> list[Path]:
    """Fill a folder with ``number`` pictures of a class by the frozen model, as DreamBooth's prior preservation asks.

    Stopped and started again it goes on where it was, with the same pictures; blank ones are made again with other
    seeds. Raises ValueError if the folder holds pictures made in another way, or one stays blank.
    """
    gates = gates or Gates()
    folder.mkdir(parents=True, exist_ok=True)
    note = {**_recipe(generator, settings, prompt, seed)}
    path = folder / CLASS_NOTE
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(note)):
            raise ValueError(f"'{folder}' holds class images made in another way; choose another --output")
    elif any(p.suffix.lower() in SUFFIXES for p in folder.iterdir()):
        raise ValueError(f"'{folder}' holds pictures that were not made here; choose another --output")
    else:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(note), encoding="utf-8")
    files = [folder / f"{i:04d}.png" for i in range(number)]
    missing = [i for i, file in enumerate(files) if not file.is_file()]
    with tqdm(total=number, initial=number - len(missing), unit="picture", disable=None) as bar:
        for first in range(0, len(missing), batch_size):
            todo = missing[first : first + batch_size]
            for attempt in range(gates.attempts):
                seeds = [seed + i + 10_000_000 * attempt for i in todo]
                made = generator.generate([prompt] * len(todo), settings, seeds)
                good = [k for k, picture in enumerate(made) if not _is_blank(picture, gates)]
                for k in good:
                    save_image(made[k], files[todo[k]])
                bar.update(len(good))
                todo = [i for k, i in enumerate(todo) if k not in good]
                if not todo:
                    break
            if todo:
                raise ValueError(
                    f"“{prompt}” gives blank pictures, {gates.attempts} times over; try another --precision"
                )
    return files


def _is_blank(picture: Image.Image, gates: Gates) -> bool:
    return judge(picture, picture, gates).figures["contrast"] < gates.blank


def _recipe(generator: ImageGenerator, settings: TextSettings, text: str, seed: int) -> dict:
    return {
        "text": text,
        "seed": seed,
        **asdict(settings),
        "precision": generator.precision,
        "checkpoint": Path(generator.checkpoint).name,
        "checkpoint_hash": generator.checkpoint_hash,
        "weights": generator.weights,
        "vae_hash": generator.vae_hash,
        "config": generator.config,
    }
