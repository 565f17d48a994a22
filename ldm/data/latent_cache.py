"""Encoded items kept in memory: the first stage runs once per picture instead of once per step."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ldm.checkpoint import replacing
from ldm.data.datamodule import collate

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
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
        if path.is_file():
            logger.info("latents from %s", path)
            stored = torch.load(path, mmap=True, weights_only=True)
            return LatentCache(stored["tensors"], stored["texts"])
    cache = _encode_all(dataset, encode, batch_size, num_workers)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save({"tensors": cache.tensors, "texts": cache.texts}, temporary)
        path.with_suffix(".json").write_text(json.dumps({"key": key}, indent=2))
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
        found = {"edited_mean": mean, "edited_std": (0.5 * logvar).exp()}
        if "input" in batch:
            found["c_concat"] = encode(batch["input"])[0]
        for name, value in found.items():
            parts.setdefault(name, []).append(value.half().cpu())
        texts += batch["text"]
    return LatentCache({name: torch.cat(values) for name, values in parts.items()}, texts)
