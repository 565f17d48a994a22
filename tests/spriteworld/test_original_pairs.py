"""Pairs as the first personalised editors were fed them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.encoded import EncodedPairs
from ldm.spriteworld.experiments.original_pairs import OriginalPairs


def ramp(width: int, height: int, blue: int = 0) -> np.ndarray:
    """Red tells the place from left to right, green from top to bottom, blue which side it is."""
    values = np.zeros((height, width, 3))
    values[..., 0] = (np.arange(width) + 0.5) / width * 255
    values[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    values[..., 2] = blue
    return values.round().astype(np.uint8)


def write_pairs(
    root: Path, number: int, small: tuple[int, int] = (48, 36), large: tuple[int, int] = (160, 120), content=None
) -> str:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.fromarray(ramp(*small, blue=2 * i)).save(root / f"{i:02d}_0.png")
        Image.fromarray(ramp(*large, blue=255 - 2 * i)).save(root / f"{i:02d}_1.png")
    if content is not None:
        (root / "manifest.json").write_text(json.dumps(content))
    return str(root)


def mirrored(picture: torch.Tensor) -> bool:
    return bool(picture[0, :, 0].mean() > picture[0, :, -1].mean())


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Not equal under mirroring, as a first stage is not: columns weigh more to the right."""
    weight = torch.arange(x.shape[-1], dtype=x.dtype)
    return (x * weight)[..., ::2], -(x.square())[..., ::2]


def test_the_originals_pairs_are_mirrored_apart_and_squashed(tmp_path):
    root = write_pairs(tmp_path / "pairs", 2)
    data = OriginalPairs(root, class_word="dog", source_word="wolf", size=16)
    together = set()
    for visit in range(40):
        item = data.item(0, visit)
        assert item["input"].shape == item["edited"].shape == (3, 16, 16)
        together.add((mirrored(item["input"]), mirrored(item["edited"])))
        whole = [float(side[0].max() - side[0].min()) for side in (item["input"], item["edited"])]
        assert min(whole) > 1.7  # the ramp from edge to edge: nothing was cut off
    assert together == {(False, False), (False, True), (True, False), (True, True)}
    with pytest.raises(ValueError, match="cache_latents=false"):
        EncodedPairs(data, encode)
