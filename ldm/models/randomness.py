"""Where a training run stands: random numbers that depend on the step alone, so that resuming is exact."""

from __future__ import annotations

from typing import Any

import torch


def step_generator(module: Any, batch_index: int, device: torch.device | None = None) -> torch.Generator:
    """Return a generator for a LightningModule's step, seeded by (run seed, batch, process).

    batch_index: counted over the whole run, which is one epoch. On the CPU unless another device is asked for.
    """
    trainer = module._trainer
    rank = trainer.global_rank if trainer is not None else 0
    seed = int(getattr(module, "run_seed", 0))
    mixed = (seed * 1_000_003 + batch_index) * 1009 + rank
    return torch.Generator(device or "cpu").manual_seed(mixed % 2**63)


class BatchNoise:
    """The random numbers of a batch: from the step's generator, or, where the samples bring seeds, from one generator
    each, so that a sample's numbers do not depend on the batch or process that it falls into."""

    def __init__(self, generator: torch.Generator, run_seed: int = 0, seeds: torch.Tensor | None = None):
        """seeds: ``(b,)`` integers of the samples, or None."""
        self.generators = [generator]
        if seeds is not None:
            self.generators = [torch.Generator().manual_seed(run_seed * 1_000_003 + int(seed)) for seed in seeds]
            self._one = False
        else:
            self._one = True

    def rand(self, b: int) -> torch.Tensor:
        """Return ``(b,)`` uniform numbers in [0, 1)."""
        return self._drawn(torch.rand, (b,))

    def randn(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return standard normal numbers of the shape, the batch first."""
        return self._drawn(torch.randn, tuple(shape))

    def _drawn(self, draw: Any, shape: tuple[int, ...]) -> torch.Tensor:
        if self._one:
            return draw(shape, generator=self.generators[0])
        return torch.stack([draw(shape[1:], generator=g) for g in self.generators])
