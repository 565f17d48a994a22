"""Pairs as the first personalised editors were fed them: kept to measure what that costs, not to be trained with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ldm.data.augment import Size
from ldm.data.images import open_rgb, resize, to_tensor
from ldm.data.pairs import Pair
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.errors import UserError


class OriginalPairs(PersonalizedEdit):
    """``PersonalizedEdit`` with the original's defects: each picture of a pair is mirrored by a draw of its own, and
    squashed to the size instead of cropped. Its latents cannot be cached (``training.cache_latents=false``)."""

    def __init__(self, *args: Any, **options: Any):
        """As ``PersonalizedEdit``; raises UserError for crops that vary: nothing is cropped here."""
        super().__init__(*args, **options)
        if not self.view.fixed:
            raise UserError("OriginalPairs squashes pictures; crop, min_resize and max_resize have no effect")

    @property
    def fixed(self) -> bool:
        """False: what a pair shows depends on two mirrors."""
        return False

    def item(self, index: int, visit: int = 0, size: Size | None = None) -> dict[str, Any]:
        """Return the pictures, each mirrored or not by itself, ``text`` and ``is_reg``."""
        which, flip, text, rng = self.draw(index, visit)
        shown = self.pictures(self.entries[which], flip, rng, size)
        if bool(rng.random() < self.view.flip) != flip:
            shown["edited"] = shown["edited"].flip(-1)
        return {**shown, "text": text, "is_reg": torch.tensor(self.reg)}

    def pictures(
        self, pair: Pair, flip: bool, rng: np.random.Generator, size: Size | None = None
    ) -> dict[str, torch.Tensor]:
        """Return ``input`` and ``edited``, squashed, both mirrored by ``flip``, each ``3 h w`` in [-1, 1]."""
        sides = {"input": pair.input, "edited": pair.edited}
        shown = {n: to_tensor(resize(open_rgb(path), size or self.view.size))[0] for n, path in sides.items()}
        return {name: x.flip(-1) if flip else x for name, x in shown.items()}
