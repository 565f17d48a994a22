"""The recipe of a picture: what it was made from and how, kept inside the PNG itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from ldm.config import load_config
from ldm.data.images import MAX_PIXELS

KEY = "instruct2dream"


@dataclass(frozen=True)
class Recipe:
    """Everything that is needed to make an edit again."""

    instruction: str
    seed: int
    text_scale: float
    image_scale: float
    sampler: str
    spacing: str
    steps: int
    resolution: int
    precision: str
    checkpoint: str
    checkpoint_hash: str
    weights: str
    input: str
    vae_hash: str = ""
    config: str = ""  # see ``told_of``; "" for the checkpoint's own
    negative: str = ""
    guidance_interval: tuple[float, float] | None = None
    keep_size: bool = True
    mask: str = ""

    def chunks(self, **instead: Any) -> dict[str, str]:
        """Return the PNG text entries. instead: what a sheet has in place of single values, like a list of scales."""
        return {KEY: json.dumps({**asdict(self), **instead}, ensure_ascii=False)}


def told_of(config: Any) -> str:
    """Return what a recipe says of a config that was named: the file's name and a hash of all that it means, bases
    included; "" for None."""
    if config is None:
        return ""
    name = f"{Path(config).name} " if isinstance(config, (str, Path)) else ""
    whole = OmegaConf.to_yaml(load_config(config) if name else config, resolve=True)
    return f"{name}{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def text_recipe(generator: Any, settings: Any, text: str, seed: int) -> dict[str, Any]:
    """Return the recipe of a picture made from text. generator: an ``ImageGenerator``; settings: ``TextSettings``."""
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


def read_recipe(path: str | Path) -> dict:
    """Return the recipe inside a PNG. Raises FileNotFoundError, or ValueError if there is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"picture '{path}' does not exist")
    # the project writes larger pictures than Pillow reads by itself
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
            text = getattr(image, "text", {}).get(KEY)
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise ValueError(f"'{path}' is not a picture that can be read ({error})") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if text is None:
        raise ValueError(f"'{path}' carries no recipe (only PNG files written by this project do)")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the recipe inside '{path}' is damaged ({error})") from error
