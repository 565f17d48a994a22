"""The recipe of a picture: what it was made from and how, kept inside the PNG itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint.read import Checkpoint
from ldm.config import load_config
from ldm.data.images import MAX_PIXELS
from ldm.errors import MissingFileError, UserError
from ldm.files import content_hash, fingerprint
from ldm.inference.settings import TextSettings

KEY = "instruct2dream"


@dataclass(frozen=True)
class Provenance:
    """Which weights a model was made of, as recipes and manifests tell it.

    checkpoint: the file's path; checkpoint_hash, vae_hash: ``fingerprint``s; weights: "ema", "raw" or "auto", as asked
    for; config: see ``describe_config``; precision: "fp32", "fp16" or "bf16".
    """

    checkpoint: str = ""
    checkpoint_hash: str = ""
    weights: str = ""
    vae_hash: str = ""
    config: str = ""
    precision: str = "fp32"

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, config: Any, vae_ckpt: str | Path | None, weights: str, precision: str
    ) -> Provenance:
        """Return that of a model which was loaded from an open checkpoint; the rest as ``load_model`` takes it."""
        vae_hash = "" if vae_ckpt is None else fingerprint(vae_ckpt)
        path = checkpoint.path
        return cls(str(path), fingerprint(path), weights, vae_hash, describe_config(config), precision)

    @property
    def file(self) -> str:
        """The checkpoint's file name."""
        return Path(self.checkpoint).name


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
    config: str = ""  # see ``describe_config``; "" for the checkpoint's own
    negative: str = ""
    guidance_interval: tuple[float, float] | None = None
    keep_size: bool = True
    mask: str = ""

    def chunks(self, **instead: Any) -> dict[str, str]:
        """Return the PNG text entries. instead: what a sheet has in place of single values, like a list of scales."""
        return {KEY: json.dumps({**asdict(self), **instead}, ensure_ascii=False)}


def describe_config(config: Any) -> str:
    """Return what a recipe says of a config that was named: the file's name and a hash of all that it means, bases
    included; "" for None."""
    if config is None:
        return ""
    name = f"{Path(config).name} " if isinstance(config, (str, Path)) else ""
    whole = OmegaConf.to_yaml(load_config(config) if name else config, resolve=True)
    return f"{name}{content_hash(whole)}"


def text_recipe(provenance: Provenance, settings: TextSettings, text: str, seed: int) -> dict[str, Any]:
    """Return the recipe of a picture made from a text by a model, settings and a seed."""
    return {
        "text": text,
        "seed": seed,
        **asdict(settings),
        "precision": provenance.precision,
        "checkpoint": provenance.file,
        "checkpoint_hash": provenance.checkpoint_hash,
        "weights": provenance.weights,
        "vae_hash": provenance.vae_hash,
        "config": provenance.config,
    }


def read_recipe(path: str | Path) -> dict:
    """Return the recipe inside a PNG. Raises UserError if there is none."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"picture '{path}' does not exist")
    # the project writes larger pictures than Pillow reads by itself
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{image.width} x {image.height} pixels are too many")
            image.load()
            text = getattr(image, "text", {}).get(KEY)
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise UserError(f"'{path}' is not a picture that can be read ({error})") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if text is None:
        raise UserError(f"'{path}' carries no recipe (only PNG files written by this project do)")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the recipe inside '{path}' is damaged ({error})") from error
