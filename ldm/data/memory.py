"""Items kept in memory once they are drawn, for datasets whose items cost more to make than to hold."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset


class InMemory(Dataset):
    """A dataset that asks the wrapped one for each item once. Tensors are held in fp16, which tells all 256 values of
    a picture in [-1, 1] apart; an item reads the same the first time and later."""

    def __init__(self, dataset: Dataset):
        """dataset: gives mappings of tensors and texts. Memory grows to all of its items."""
        self.dataset = dataset
        self._items: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return item ``index``, floating tensors in fp32."""
        if index not in self._items:
            item = self.dataset[index]
            self._items[index] = {k: v.half() if _is_float(v) else v for k, v in item.items()}
        return {k: v.float() if _is_float(v) else v for k, v in self._items[index].items()}


def _is_float(value: Any) -> bool:
    return torch.is_tensor(value) and value.is_floating_point()
