"""Encoded pairs kept in memory, each as it is and mirrored: the first stage runs twice per pair in a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ldm.data.augment import Size
from ldm.data.latent_cache import Encode
from ldm.data.visited import Visited


class EncodedPairs:
    """A stream whose pictures are latents: ``edited_mean``, ``edited_std`` and, of pairs, ``c_concat``.

    Mirrored pictures are encoded by themselves: the encoder does not commute with mirroring.
    """

    def __init__(self, dataset: Visited, encode: Encode, batch_size: int = 8, sizes: Sequence[Size] | None = None):
        """encode: from pictures to mean and log-variance. sizes: that items will be asked for, default the view's own.
        Raises ValueError where crops are random: their latents cannot be kept."""
        if not dataset.fixed:
            raise ValueError(
                "cache_latents keeps one view of each pair; crops that vary need training.cache_latents=false"
            )
        self.dataset = dataset
        self._flips = [flip for flip in (False, True) if (dataset.view.flip < 1, dataset.view.flip > 0)[flip]]
        self._sizes = list(sizes or [dataset.view.size])
        self._kept = {
            (flip, size): encode_pairs(dataset, dataset.entries, flip, encode, batch_size, size)
            for flip in self._flips
            for size in self._sizes
        }

    def __len__(self) -> int:
        return len(self.dataset)

    def size_of(self, index: int) -> Size:
        """Return the (width, height) in pixels that fits item ``index`` best."""
        return self.dataset.size_of(index)

    def item(self, index: int, visit: int = 0, size: Size | None = None) -> dict[str, Any]:
        """Return item ``index`` at its visit; size: one of those that were encoded, default the first."""
        which, flip, text, _ = self.dataset.draw(index, visit)
        kept = {name: tensor[which] for name, tensor in self._kept[flip, size or self._sizes[0]].items()}
        return {**kept, "text": text, "is_reg": torch.tensor(self.dataset.reg)}


@torch.no_grad()
def encode_pairs(
    dataset: Visited,
    entries: list[Any],
    flip: bool,
    encode: Encode,
    batch_size: int = 8,
    size: Size | None = None,
) -> dict[str, torch.Tensor]:
    """Return the latents of entries, ``n c h w`` fp32 on the CPU each; size: of all the pictures, default the view's
    own."""
    size = size or dataset.view.size
    parts: dict[str, list[torch.Tensor]] = {}
    for first in range(0, len(entries), batch_size):
        seen = [dataset.pictures(e, flip, np.random.default_rng(0), size) for e in entries[first : first + batch_size]]
        sides = {name: torch.stack([pictures[name] for pictures in seen]) for name in seen[0]}
        mean, logvar = encode(sides["edited"])
        found = {"edited_mean": mean, "edited_std": (0.5 * logvar).exp()}
        if "input" in sides:
            found["c_concat"] = encode(sides["input"])[0]
        for name, value in found.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}
