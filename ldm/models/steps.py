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


def finished_step(module: Any) -> bool:
    """Return whether the batch that just ended completed an optimiser step (not only accumulated)."""
    done = module.trainer.global_step
    changed = done != getattr(module, "_last_step", 0)
    module._last_step = done
    return changed
