"""The order of training items: batch k of a run is a pure function of (seed, k), so a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ldm.errors import UserError


class StepSampler(Sampler[list[int]]):
    """Batches of item indices for micro-steps ``start`` to ``total``; every item once per epoch, shuffled by epoch.

    With several processes each takes its own part of the same global batch, so nothing is seen twice in an epoch.
    """

    def __init__(
        self, items: int, batch_size: int, total: int, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ):
        """items: in the dataset; batch_size: per process; total: micro-steps of the whole run.

        Raises UserError for an empty dataset or batch.
        """
        if items < 1 or batch_size < 1:
            raise UserError(f"{items} items in batches of {batch_size}: at least 1 of each is needed")
        self.items, self.batch_size, self.total, self.seed = items, batch_size, total, seed
        self.start, self.rank, self.world = start, rank, world
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.total):
            yield [item for item, _ in self.keys_of(step)]

    def keys_of(self, step: int) -> list[tuple[int, int]]:
        """Return this process' items of a step, each with its visit: how often it was seen before."""
        first = (step * self.world + self.rank) * self.batch_size
        return [(self._item(first + i), (first + i) // self.items) for i in range(self.batch_size)]

    def _item(self, position: int) -> int:
        epoch, place = divmod(position, self.items)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.items, generator=generator)
        return int(self._order[place])


class StreamSampler(Sampler[list[tuple[str, int, int]]]):
    """Batches from several streams side by side: each gives its own number of items to every batch.

    Keys are (stream, item, visit): a stream shorter than another starts its next visit by itself.
    """

    def __init__(self, items: dict[str, int], batch_sizes: dict[str, int], total: int, **where: int):
        """items, batch_sizes: of each stream by name. total, and where (seed, start, rank, world): see
        ``StepSampler``."""
        self.total = total
        self.samplers = {
            name: StepSampler(
                items[name], batch_sizes[name], total, **{**where, "seed": where.get("seed", 0) + 7919 * k}
            )
            for k, name in enumerate(items)
        }

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[tuple[str, int, int]]]:
        some = next(iter(self.samplers.values()))
        for step in range(some.start, self.total):
            yield [(name, *key) for name, sampler in self.samplers.items() for key in sampler.keys_of(step)]
