"""Encoded pairs kept in memory, each as it is and mirrored: the first stage runs twice per pair in a whole run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ldm.data.latent_cache import Encode
from ldm.data.personalized_edit import PersonalizedEdit


class EncodedPairs:
    """A ``PersonalizedEdit`` whose pictures are latents: ``edited_mean``, ``edited_std`` and ``c_concat``.

    Mirrored pictures are encoded by themselves: the encoder does not commute with mirroring.
    """

    def __init__(self, dataset: PersonalizedEdit, encode: Encode, batch_size: int = 8):
        """encode: from pictures to mean and log-variance. Raises ValueError where crops are random: their latents
        cannot be kept."""
        if not dataset.view.fixed:
            raise ValueError(
                "cache_latents keeps one view of each pair; crops that vary need training.cache_latents=false"
            )
        self.dataset = dataset
        self._flips = [flip for flip in (False, True) if (dataset.view.flip < 1, dataset.view.flip > 0)[flip]]
        self._kept = {flip: encode_pairs(dataset, dataset.pairs, flip, encode, batch_size) for flip in self._flips}

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int, visit: int = 0) -> dict[str, Any]:
        """Return item ``index`` at its visit."""
        which, flip, text, _ = self.dataset.draw(index, visit)
        kept = {name: tensor[which] for name, tensor in self._kept[flip].items()}
        return {**kept, "text": text, "is_reg": torch.tensor(self.dataset.reg)}


@torch.no_grad()
def encode_pairs(
    dataset: PersonalizedEdit, pairs: list, flip: bool, encode: Encode, batch_size: int = 8
) -> dict[str, torch.Tensor]:
    """Return the latents of pairs, ``n c h w`` fp32 on the CPU each."""
    parts: dict[str, list[torch.Tensor]] = {"edited_mean": [], "edited_std": [], "c_concat": []}
    for first in range(0, len(pairs), batch_size):
        pictures = [dataset.pictures(p, flip, np.random.default_rng(0)) for p in pairs[first : first + batch_size]]
        before, after = (torch.stack(side) for side in zip(*pictures, strict=True))
        mean, logvar = encode(after)
        found = (mean, (0.5 * logvar).exp(), encode(before)[0])
        for name, value in zip(parts, found, strict=True):
            parts[name].append(value.float().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}
