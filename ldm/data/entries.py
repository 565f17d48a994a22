"""What the streams of personalising share: entries that are visited again and again, each time seen anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ldm.data.augment import JointCrop, Size
from ldm.data.images import picture_size
from ldm.errors import UserError

FEWEST = 8  # photos below which none is held out


class EntryDataset(Dataset, ABC):
    """Entries of one stream. An item is a pure function of (seed, index, visit): flip, crop and wording are drawn anew
    at each visit."""

    def __init__(
        self,
        entries: Sequence[Any],
        photos: Sequence[str],
        view: JointCrop,
        reg: bool,
        repeats: int,
        seed: int,
        held_out: float,
        limit: int | None,
    ):
        """entries: of the stream; photos: what each was made from; repeats: how often each counts in an epoch;
        held_out: share of the photos kept for validation (everything of a photo goes together; nothing below eight
        photos); limit: use the first so many entries only.

        Raises UserError for what makes no sense.
        """
        if repeats < 1:
            raise UserError(f"repeats is {repeats}; at least 1 is needed")
        if not 0 <= held_out < 1:
            raise UserError(f"held_out is {held_out}; a share from 0 to below 1 is expected")
        if limit is not None and limit < 1:
            raise UserError(f"limit is {limit}; at least 1 is needed")
        self.view, self.reg, self.repeats, self.seed = view, reg, repeats, seed
        self.entries, self.held_out = _split(entries[:limit], photos[:limit], held_out)

    def __len__(self) -> int:
        return len(self.entries) * self.repeats

    @abstractmethod
    def sentence(self, entry: Any, rng: np.random.Generator) -> str:
        """Return a sentence for an entry."""

    @abstractmethod
    def pictures(
        self, entry: Any, flip: bool, rng: np.random.Generator, size: Size | None = None
    ) -> dict[str, torch.Tensor]:
        """Return an entry's pictures as one view shows them, by name, each ``3 h w`` in [-1, 1]; size: of the view,
        None for the one that fits the entry best."""

    @abstractmethod
    def files(self, entry: Any) -> list[Any]:
        """Return the paths of an entry's pictures."""

    @property
    def fixed(self) -> bool:
        """Whether an entry has one view only (and its mirror): then its latents can be kept."""
        return self.view.fixed

    @cached_property
    def _sizes(self) -> list[Size]:
        """The size that fits each entry best: of pictures that differ in shape, the one nearest to a square."""
        if len(self.view.sizes) == 1:
            return [self.view.size] * len(self.entries)
        shapes = [[picture_size(path) for path in self.files(entry)] for entry in self.entries]
        aspects = [min((w / h for w, h in sizes), key=lambda ratio: max(ratio, 1 / ratio)) for sizes in shapes]
        return [self.view.size_for(aspect) for aspect in aspects]

    def size_of(self, index: int) -> Size:
        """Return the (width, height) that fits item ``index`` best, of the view's sizes."""
        return self._sizes[index % len(self.entries)]

    def sizes(self) -> list[Size]:
        """Return the sizes that fit any of the entries best."""
        return sorted(set(self._sizes))

    def draw(self, index: int, visit: int = 0) -> tuple[int, bool, str, np.random.Generator]:
        """Return which entry item ``index`` is at its visit, whether it is mirrored, its sentence, and the generator
        that the crop is drawn from."""
        rng = np.random.default_rng([self.seed, int(self.reg), index, visit])
        which = index % len(self.entries)
        return which, bool(rng.random() < self.view.flip), self.sentence(self.entries[which], rng), rng

    def item(self, index: int, visit: int = 0, size: Size | None = None) -> dict[str, Any]:
        """Return the pictures (3 h w, [-1, 1]), ``text`` and ``is_reg``; size: of the pictures, None for the best."""
        which, flip, text, rng = self.draw(index, visit)
        shown = self.pictures(self.entries[which], flip, rng, size)
        return {**shown, "text": text, "is_reg": torch.tensor(self.reg)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.item(index)


def _split(entries: Sequence[Any], photos: Sequence[str], share: float) -> tuple[list[Any], list[Any]]:
    """Return (training, held out): whole photos, spread over the list."""
    different = list(dict.fromkeys(photos))
    n = min(round(len(different) * share), len(different) - 1) if len(different) >= FEWEST else 0
    chosen = {different[(2 * i + 1) * len(different) // (2 * n)] for i in range(n)}
    both = list(zip(entries, photos, strict=True))
    return [e for e, photo in both if photo not in chosen], [e for e, photo in both if photo in chosen]
