"""Encoded items kept in memory: the first stage runs once per picture instead of once per step."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ldm.data.augment import Size
from ldm.data.datamodule import collate
from ldm.data.entries import EntryDataset
from ldm.errors import UserError
from ldm.files import content_hash, replacing, write_json

logger = logging.getLogger(__name__)

# From pictures b 3 h w in [-1, 1] to the latent's mean and log-variance, each b c h w.
Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class LatentCache(Dataset):
    """A dataset whose pictures are latents: ``edited_mean``, ``edited_std`` and, where there is an input picture,
    ``c_concat`` (its mode), beside ``text``. Kept in fp16."""

    def __init__(self, tensors: dict[str, torch.Tensor], texts: list[str]):
        """tensors: ``n c h w`` each; texts: n of them."""
        self.tensors, self.texts = tensors, texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return item ``index`` in fp32."""
        return {**{k: v[index].float() for k, v in self.tensors.items()}, "text": self.texts[index]}


def cached(
    dataset: Dataset, encode: Encode, folder: Path | None, key: str, batch_size: int = 64, num_workers: int = 0
) -> LatentCache:
    """Return the dataset encoded, from the file that an earlier call with the same key left in ``folder``, if any.

    key: the dataset's config and the first stage's hash; what the dataset makes of its config is looked at here.
    """
    path = None
    if folder is not None:
        key = f"{key} {_sample_hash(dataset)}"
        path = folder / f"{content_hash(key)}.pt"
        if path.is_file():
            logger.info("latents from %s", path)
            stored = torch.load(path, mmap=True, weights_only=True)
            return LatentCache(stored["tensors"], stored["texts"])
    cache = _encode_all(dataset, encode, batch_size, num_workers)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save({"tensors": cache.tensors, "texts": cache.texts}, temporary)
        write_json(path.with_suffix(".json"), {"key": key})
    return cache


def _sample_hash(dataset: Dataset, most: int = 64) -> str:
    """Return a hash of some items, spread over the dataset: what draws or reads them may have changed."""
    digest = hashlib.sha256(str(len(dataset)).encode())
    for index in sorted({i * len(dataset) // most for i in range(most)}):
        item = dataset[index]
        for name in sorted(item):
            value = item[name]
            digest.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else str(value).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _encode_all(dataset: Dataset, encode: Encode, batch_size: int, num_workers: int) -> LatentCache:
    from tqdm import tqdm

    context = "spawn" if num_workers else None
    loader = DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=collate, multiprocessing_context=context
    )
    parts: dict[str, list[torch.Tensor]] = {}
    texts: list[str] = []
    for batch in tqdm(loader, desc="encoding", unit="batch", disable=None):
        mean, logvar = encode(batch["edited"])
        latents = {"edited_mean": mean, "edited_std": (0.5 * logvar).exp()}
        if "input" in batch:
            latents["c_concat"] = encode(batch["input"])[0]
        for name, value in latents.items():
            parts.setdefault(name, []).append(value.half().cpu())
        texts += batch["text"]
    return LatentCache({name: torch.cat(values) for name, values in parts.items()}, texts)


class EncodedPairs:
    """A stream whose pictures are latents: ``edited_mean``, ``edited_std`` and, of pairs, ``c_concat``.

    Mirrored pictures are encoded by themselves: the encoder does not commute with mirroring.
    """

    def __init__(self, dataset: EntryDataset, encode: Encode, batch_size: int = 8, sizes: Sequence[Size] | None = None):
        """encode: from pictures to mean and log-variance. sizes: that items will be asked for, default the view's own.
        Raises UserError where crops are random: their latents cannot be kept."""
        if not dataset.fixed:
            raise UserError(
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
    dataset: EntryDataset,
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
        latents = {"edited_mean": mean, "edited_std": (0.5 * logvar).exp()}
        if "input" in sides:
            latents["c_concat"] = encode(sides["input"])[0]
        for name, value in latents.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}
