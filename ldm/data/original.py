"""Pairs as the first personalised editors were fed them: kept to measure what that costs, not to be trained with."""

from __future__ import annotations

import numpy as np
import torch

from ldm.data.augment import Size
from ldm.data.images import open_rgb, resize, to_tensor
from ldm.data.pairs import Pair
from ldm.data.personalized_edit import PersonalizedEdit


class OriginalPairs(PersonalizedEdit):
    """``PersonalizedEdit`` with the original's defects: each picture of a pair is mirrored by a draw of its own, and
    squashed to the size instead of cropped. Its latents cannot be cached (``training.cache_latents=false``)."""

    @property
    def fixed(self) -> bool:
        """False: what a pair shows depends on two mirrors."""
        return False

    def pictures(
        self, pair: Pair, flip: bool, rng: np.random.Generator, size: Size | None = None
    ) -> dict[str, torch.Tensor]:
        """Return ``input`` and ``edited``, each ``3 h w`` in [-1, 1]; ``flip`` mirrors the input alone."""
        flips = {"input": flip, "edited": bool(rng.random() < self.view.flip)}
        found = {}
        for name, path in (("input", pair.input), ("edited", pair.edited)):
            x = to_tensor(resize(open_rgb(path), size or self.view.size))[0]
            found[name] = x.flip(-1) if flips[name] else x
        return found
