"""The class pictures of DreamBooth's prior preservation, made by the frozen model."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm.data.images import SUFFIXES, save_image
from ldm.dataset_generation.gates import Gates, judge
from ldm.errors import UserError
from ldm.files import read_json, write_json
from ldm.inference.generator import ImageGenerator
from ldm.inference.recipe import text_recipe
from ldm.inference.settings import TextSettings
from ldm.inference.text_job import TextRequest, load_generator

CLASS_NOTE = ".class-images.json"


def generate_class_images(request: TextRequest) -> list[Path]:
    """Fill the request's folder with its number of ``class_images``; return their paths. Raises UserError."""
    generator, settings = load_generator(request)
    return make_class_images(
        generator,
        request.prompt[0],
        Path(request.output),
        request.class_images or 0,
        settings,
        request.seed,
        request.batch_size,
    )


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
    seeds. Raises UserError if the folder holds pictures made in another way, or one stays blank.
    """
    gates = gates or Gates()
    folder.mkdir(parents=True, exist_ok=True)
    note = text_recipe(generator.provenance, settings, prompt, seed)
    path = folder / CLASS_NOTE
    if path.is_file():
        if read_json(path) != json.loads(json.dumps(note)):
            raise UserError(f"'{folder}' holds class images made in another way; choose another --output")
    elif any(p.suffix.lower() in SUFFIXES for p in folder.iterdir()):
        raise UserError(f"'{folder}' holds pictures that were not made here; choose another --output")
    else:
        write_json(path, note, indent=None)
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
                raise UserError(
                    f"“{prompt}” gives blank pictures, {gates.attempts} times over; try another --precision"
                )
    return files


def _is_blank(picture: Image.Image, gates: Gates) -> bool:
    return judge(picture, picture, gates).figures["contrast"] < gates.blank
