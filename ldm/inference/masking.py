"""Edit only inside a mask: feathered inwards, every pixel outside equal to the photo's, bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from PIL import Image

from ldm.errors import UserError


def check_mask(mask: Image.Image | None, size: tuple[int, int]) -> None:
    """Raise UserError if there is a mask and it is not of the photo's size (width, height)."""
    if mask is not None and mask.size != size:
        raise UserError(
            f"the mask is {mask.width} x {mask.height}, the photo {size[0]} x {size[1]}; they must be equal"
        )


def soft_mask(mask: Image.Image, feather: float = 0.01) -> np.ndarray:
    """Return weights ``h w`` in [0, 1] from a mask (light = edit): 0 wherever the mask is dark, rising inwards.

    feather: width of the soft edge over the longer side. Raises UserError for a mask without any light part.
    """
    hard = (np.asarray(mask.convert("L"), dtype=np.float32) >= 128).astype(np.float32)
    if not hard.any():
        raise UserError("the mask has no light part: white marks where to edit")
    sigma = feather * max(hard.shape)
    if sigma < 0.3:
        return hard
    size = 2 * int(2 * sigma + 0.5) + 1
    size = min(size, *(2 * ((side - 1) // 2) + 1 for side in hard.shape))
    blurred = gaussian_blur2d(torch.from_numpy(hard)[None, None], (size, size), (sigma, sigma), border_type="replicate")
    # the blur is 1/2 on the edge itself: what lies above rises from 0 there to 1 inside
    return (blurred[0, 0].numpy() * 2 - 1).clip(0, 1) * hard


def composite(photo: Image.Image, edited: Image.Image, weights: np.ndarray) -> Image.Image:
    """Return the photo with the edit laid over it by ``weights`` (``h w``); equal sizes; exact where they are 0."""
    below, above = (np.asarray(image, dtype=np.float32) for image in (photo, edited))
    mixed = below + weights[:, :, None] * (above - below)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
