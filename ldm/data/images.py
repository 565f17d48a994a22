"""Pictures: files to RGB, RGB to tensors in [-1, 1] and back. The only place that knows value ranges."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from ldm.errors import MissingFileError, UserError
from ldm.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
WRITTEN = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA", "JPEG2000")  # hold any size, in colour
MAX_PIXELS = 200_000_000  # more is taken for a mistake, or for an attack by a small file that unpacks to gigabytes
MAX_ASPECT = 8.0
LANCZOS = Image.Resampling.LANCZOS


def open_rgb(path: str | Path) -> Image.Image:
    """Return a picture file as RGB, upright (EXIF orientation applied), transparency over white.

    Palette, grey, 16-bit, CMYK and animated files (first frame) are converted. Raises MissingFileError, or
    UserError for what is no readable picture or has more than 200 megapixels.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"picture '{path}' does not exist")
    if path.is_dir():
        raise UserError(f"'{path}' is a folder, not a picture")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _TooLarge(
                    f"picture '{path}' is {image.width} x {image.height} pixels; at most "
                    f"{MAX_PIXELS // 1_000_000} megapixels are read: make it smaller first"
                )
            return to_rgb(ImageOps.exif_transpose(image))
    except _TooLarge:
        raise
    except UnidentifiedImageError:
        size = path.stat().st_size
        what = "is empty (0 bytes)" if size == 0 else "is not a picture that can be read"
        raise UserError(f"'{path}' {what}") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise UserError(f"picture '{path}' is damaged or cannot be read ({error})") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class _TooLarge(UserError):
    pass


def picture_size(path: str | Path) -> tuple[int, int]:
    """Return an upright picture's (width, height), where possible without reading its pixels. Raises UserError as
    ``open_rgb`` does."""
    try:
        with Image.open(path) as image:
            has_exif = "exif" in image.info or "Raw profile type exif" in image.info
            if image.format == "TIFF" or not has_exif:  # Pillow turns a TIFF's size by itself
                return image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except Exception:  # whatever it is, the reader of pixels says it better
        return open_rgb(path).size


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any Pillow picture as 8-bit RGB; transparent parts over white, 16-bit greys and floats from 0 to 1 scaled
    to 8 bits."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = 255 if values.max() <= 1 else 1  # floats are written from 0 to 1, or as the 8-bit values
        image = Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def to_tensor(images: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
    """Return RGB pictures of one size as ``b 3 h w`` fp32 in [-1, 1]."""
    images = [images] if isinstance(images, Image.Image) else images
    arrays = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def to_images(x: torch.Tensor) -> list[Image.Image]:
    """Return pictures from ``b 3 h w`` in [-1, 1]; values beyond are clamped, then rounded to 8 bits."""
    values = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(array) for array in values.permute(0, 2, 3, 1).cpu().numpy()]


def check_aspect(size: tuple[int, int]) -> None:
    """Raise UserError for a picture more than 8 times as long as it is wide (or the reverse)."""
    if max(size) > MAX_ASPECT * min(size):
        raise UserError(f"a picture of {size[0]} x {size[1]} is too narrow to edit (at most 8 : 1); crop it first")


def upstream_size(size: tuple[int, int], resolution: int, grid: int = 64) -> tuple[int, int]:
    """Return the working size that InstructPix2Pix's ``edit_cli.py`` takes: the long side about ``resolution``, the
    short side rounded up and the long side down to the grid."""
    factor = resolution / max(size)
    factor = math.ceil(min(size) * factor / grid) * grid / min(size)
    width, height = (max(grid, int((side * factor) // grid) * grid) for side in size)
    return width, height


def working_size(size: tuple[int, int], resolution: int, grid: int = 64) -> tuple[int, int]:
    """Return the size on the model's grid nearest in shape to ``size``, for a picture whose own size is restored
    afterwards: as ``upstream_size``, but the long side is rounded to the nearest."""
    factor = resolution / max(size)
    factor = math.ceil(round(min(size) * factor, 6) / grid) * grid / min(size)
    width, height = (max(grid, round(side * factor / grid) * grid) for side in size)
    return width, height


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture scaled to cover ``size`` and cropped in the centre (never squashed)."""
    return image if image.size == size else ImageOps.fit(image, size, method=LANCZOS)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture resized to exactly ``size``."""
    return image if image.size == size else image.resize(size, LANCZOS)


def picture_format(path: str | Path) -> str:
    """Return Pillow's name of the format that a path's ending asks for. Raises UserError if it cannot be written."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower())  # loads all formats
    if kind not in WRITTEN or kind not in Image.SAVE:
        raise UserError(f"cannot save '{path}': end its name in .png (keeps the recipe), .jpg or .webp")
    return kind


def save_image(image: Image.Image, path: str | Path, text: dict[str, str] | None = None) -> None:
    """Write a picture under a temporary name, then rename it. text: entries for a PNG's text chunks.

    Raises UserError if the place cannot be written or the name's ending is no picture format.
    """
    path, kind = Path(path), picture_format(path)
    options: dict = {}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in (text or {}).items():
            options["pnginfo"].add_itxt(key, value.encode("utf-8", "backslashreplace").decode())
    elif kind in ("JPEG", "WEBP"):
        options["quality"] = 95
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            image.save(temporary, format=kind, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write '{path}' ({getattr(error, 'strerror', None) or error})") from error


def small(photo: Image.Image, resolution: int) -> Image.Image:
    """Return the photo no larger than the model's working resolution, in its own shape."""
    factor = resolution / max(photo.size)
    if factor >= 1:
        return photo
    return resize(photo, tuple(max(1, round(side * factor)) for side in photo.size))


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files that lie in a folder, by their endings (``SUFFIXES``), sorted; hidden files, whose names
    begin with a dot, are none."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def find_photos(patterns: list[str]) -> list[Path]:
    """Return the pictures that files, folders and globs name, sorted within each. Raises MissingFileError."""
    photos: list[Path] = []
    for pattern in patterns:
        if not pattern:
            raise UserError("--input has an empty name; give a photo, a folder or a glob")
        path = Path(pattern)
        if path.is_dir():
            inside = pictures_in(path)
            if not inside:
                raise MissingFileError(f"folder '{path}' holds no pictures ({', '.join(SUFFIXES)})")
            photos += inside
        elif path.exists():
            photos.append(path)
        else:
            inside = sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file())
            if not inside:
                what = "no picture matches" if any(c in pattern for c in "*?[") else "there is no picture"
                raise MissingFileError(f"{what} '{pattern}'")
            photos += inside
    return list(dict.fromkeys(photos))


@lru_cache(maxsize=256)
def working_copy(path: Path, resolution: int) -> Image.Image:
    """Return a photo as RGB, no larger than ``resolution`` pixels on its longer side; decoded once as long as it is
    among the last 256. Raises UserError as ``open_rgb`` does."""
    return small(open_rgb(path), resolution)
