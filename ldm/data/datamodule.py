"""Batches for a run, by Lightning's interface."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.config import instantiate_from_config
from ldm.data.stream import StepSampler


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors; keep texts as a list."""
    batch = default_collate([{k: v for k, v in item.items() if k != "text"} for item in items])
    if "text" in items[0]:
        batch["text"] = [item["text"] for item in items]
    return batch


class StreamDataModule(pl.LightningDataModule):
    """One stream of training batches, in an order that depends on the seed and the step alone."""

    def __init__(self, train: Any, batch_size: int, num_workers: int = 0, seed: int = 0):
        """train: a dataset, or its config. batch_size and num_workers: per process."""
        super().__init__()
        self.dataset: Dataset = train if isinstance(train, Dataset) else instantiate_from_config(train)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.total_batches = 1
        self.start_batch = 0

    def train_dataloader(self) -> DataLoader:
        """Return the loader of micro-steps ``start_batch`` to ``total_batches`` (set by the run)."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = StepSampler(
            len(self.dataset), self.batch_size, self.total_batches, self.seed, self.start_batch, rank, world
        )
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
            multiprocessing_context="spawn" if self.num_workers else None,
        )
