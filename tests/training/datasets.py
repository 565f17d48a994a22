"""Datasets that cost nothing: smooth random pictures, each a pure function of its index."""

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

SIZE = 64  # pixels


def picture(seed: int, size: int = SIZE) -> torch.Tensor:
    """Return colours that change slowly over a picture, ``3 size size`` in [-1, 1]."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)[0].clamp(-1, 1)


class _Indexed(Dataset):
    def __init__(self, length: int = 8, seed: int = 0, size: int = SIZE):
        self.length, self.seed, self.size = length, seed, size

    def __len__(self) -> int:
        return self.length

    def shown(self, index: int) -> torch.Tensor:
        return picture(1000 * self.seed + index, self.size)


class Pictures(_Indexed):
    """What a first stage learns from."""

    def __getitem__(self, index: int) -> dict:
        return {"edited": self.shown(index), "weight": torch.ones(1, self.size, self.size)}


class Captions(_Indexed):
    """What a text-to-image model learns from."""

    def __getitem__(self, index: int) -> dict:
        return {"edited": self.shown(index), "text": f"picture {index % 4}"}


class Triplets(_Indexed):
    """What an editor learns from: the picture turned upside down."""

    def __getitem__(self, index: int) -> dict:
        return {"input": self.shown(index), "edited": self.shown(index).flip(1), "text": "turn it upside down"}


class Sheet:
    """A sheet of what a model makes of nothing: one grey picture."""

    def __call__(self, model: object):
        from PIL import Image

        return Image.new("RGB", (8, 8), (128, 128, 128))
