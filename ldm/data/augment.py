"""One random draw for both pictures of a pair: the same flip, the same scale, the same crop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldm.data.images import LANCZOS
from ldm.errors import UserError

CROPS = ("random", "center")
WIDEST = 2.0  # no bucket is longer than so many times its shorter side

Size = tuple[int, int]


def bucket_sizes(size: Size, step: int) -> list[Size]:
    """Return the sizes (width, height) that share a training run: ``size`` first, then those whose sides are multiples
    of ``step``, as large as the area of ``size`` allows, and at most twice as long as wide."""
    sizes, area = [size], size[0] * size[1]
    for width in range(step, int((area * WIDEST) ** 0.5) + 1, step):
        height = area // width // step * step
        if height and max(width, height) <= WIDEST * min(width, height) and (width, height) != size:
            sizes.append((width, height))
    return sizes


@dataclass(frozen=True)
class View:
    """What is seen of a pair: mirrored or not, the part of the picture as shares of its sides, and the size in pixels
    that it gets."""

    flip: bool
    left: float
    top: float
    width: float
    height: float
    size: Size


class JointCrop:
    """Draws views and applies them. A picture is cropped, never squashed."""

    def __init__(
        self,
        size: int | tuple[int, int],
        min_resize: int | None = None,
        max_resize: int | None = None,
        crop: str = "center",
        flip: float = 0.5,
        aspect_buckets: int | None = None,
    ):
        """size: of the result in pixels, a side or (width, height). min_resize, max_resize: the picture covers a frame
        between so many and so many pixels (of the shorter side) before ``size`` is cut out of it; default ``size``
        itself. crop: "random" or "center". flip: share of mirrored pairs. aspect_buckets: let pictures keep about
        their shape, in sizes of that area whose sides are multiples of so many pixels (64 at full size); None: all
        have one size.

        Raises UserError for a frame smaller than the crop, or shares outside 0 to 1.
        """
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        short = min(self.size)
        self.min_resize, self.max_resize = min_resize or short, max_resize or max(min_resize or 0, short)
        if min(self.size) < 8:
            raise UserError(f"size is {size}; at least 8 pixels are needed")
        if not short <= self.min_resize <= self.max_resize:
            raise UserError(
                f"min_resize {self.min_resize} and max_resize {self.max_resize} must rise from the size, {short}"
            )
        if crop not in CROPS:
            raise UserError(f"unknown crop '{crop}'; known: {', '.join(CROPS)}")
        if not 0 <= flip <= 1:
            raise UserError(f"flip is {flip}; a share from 0 to 1 is expected")
        self.crop, self.flip = crop, flip
        if aspect_buckets is not None and not 8 <= aspect_buckets <= short:
            raise UserError(f"aspect_buckets is {aspect_buckets}; the sides' step, from 8 to the size, is expected")
        self.bucketed = aspect_buckets is not None
        self.sizes = [self.size] if aspect_buckets is None else bucket_sizes(self.size, aspect_buckets)

    @property
    def fixed(self) -> bool:
        """Whether a pair has one view only (and its mirror): then its latents can be kept."""
        return self.crop == "center" and self.min_resize == self.max_resize

    def size_for(self, aspect: float) -> Size:
        """Return the size that loses least of a picture whose width is ``aspect`` times its height."""
        return min(self.sizes, key=lambda size: abs(math.log(size[0] / size[1] / aspect)))

    def draw(self, aspect: float, rng: np.random.Generator, flip: bool | None = None, size: Size | None = None) -> View:
        """Return a view of pictures whose width is ``aspect`` times their height. flip: None to draw it; size: one of
        ``sizes``, None for the one that fits best."""
        u = rng.random(4)
        size = self.size_for(aspect) if size is None else size
        wanted = size[0] / size[1]
        width, height = (wanted / aspect, 1.0) if aspect > wanted else (1.0, aspect / wanted)
        zoom = min(self.size) / (self.min_resize + u[0] * (self.max_resize - self.min_resize))
        width, height = width * zoom, height * zoom
        x, y = (u[1], u[2]) if self.crop == "random" else (0.5, 0.5)
        mirrored = bool(u[3] < self.flip) if flip is None else flip
        return View(mirrored, x * (1 - width), y * (1 - height), width, height, size)

    def apply(self, image: Image.Image, view: View) -> Image.Image:
        """Return the part of the picture that the view shows, at the view's size."""
        box = (
            view.left * image.width,
            view.top * image.height,
            (view.left + view.width) * image.width,
            (view.top + view.height) * image.height,
        )
        whole = image.size == view.size and box == (0, 0, *image.size)
        result = image if whole else image.resize(view.size, LANCZOS, box=box)
        return result.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else result


def to_common_aspect(a: Image.Image, b: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return both pictures cropped in the centre to one aspect ratio: that of the one nearer to a square.

    The edit of a photo may be a few pixels off its shape, as upstream's is, which cuts the long side in the centre.
    """
    aspect = min((a.width / a.height, b.width / b.height), key=lambda ratio: max(ratio, 1 / ratio))
    return _cut(a, aspect), _cut(b, aspect)


def _cut(image: Image.Image, aspect: float) -> Image.Image:
    width = min(image.width, round(image.height * aspect))
    height = min(image.height, round(image.width / aspect))
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
