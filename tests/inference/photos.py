"""Small photos, and a small editor's settings."""

from pathlib import Path

import numpy as np
from PIL import Image

from ldm.inference.settings import EditSettings

FAST = EditSettings(text_scale=3.0, image_scale=1.5, steps=2, resolution=64, sampler="euler_a")


def picture(width: int = 50, height: int = 37, seed: int = 0) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [np.sin(x / 9 + seed), np.cos(y / 7 + 2 * seed), np.sin((x + y) / 11 + 3 * seed)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).round().astype(np.uint8))


def photo(path: Path, width: int = 50, height: int = 37, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(width, height, seed).save(path)
    return path


def pixels(image: Image.Image | Path) -> np.ndarray:
    if isinstance(image, Path):
        with Image.open(image) as opened:
            return np.asarray(opened.convert("RGB")).astype(int)
    return np.asarray(image.convert("RGB")).astype(int)


def rectangle(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return mask


def leftovers(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.name.endswith(".tmp")]
