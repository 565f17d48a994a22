"""Batches for a run, by Lightning's interface."""

from __future__ import annotations

import hashlib
import logging
import zlib
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.config import instantiate_from_config
from ldm.data.augment import Size
from ldm.data.order import StepSampler, StreamSampler
from ldm.errors import UserError

logger = logging.getLogger(__name__)

MANY = 5000  # files that are read whole for a hash


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors; keep texts as a list."""
    batch = default_collate([{k: v for k, v in item.items() if k != "text"} for item in items])
    if "text" in items[0]:
        batch["text"] = [item["text"] for item in items]
    return batch


class StreamDataModule(pl.LightningDataModule):
    """One stream of training batches, in an order that depends on the seed and the step alone."""

    def __init__(self, train: Any, batch_size: int, num_workers: int = 0, seed: int = 0, in_memory: bool = False):
        """train: a dataset, or its config. batch_size and num_workers: per process. in_memory: make each item once
        and keep it.

        Raises UserError for in_memory with workers, whose memories would be as many and as large.
        """
        super().__init__()
        if in_memory and num_workers:
            raise UserError(f"in_memory keeps items in one process: set num_workers to 0, found {num_workers}")
        self.dataset: Dataset = train if isinstance(train, Dataset) else instantiate_from_config(train)
        if in_memory:
            self.dataset = InMemory(self.dataset)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.total_batches = 1
        self.start_batch = 0

    def check_model(self, model: Any) -> None:
        """Let the dataset say (UserError) what of it a model cannot take, if it can tell (``check_model``)."""
        dataset = getattr(self.dataset, "dataset", self.dataset)  # what InMemory wraps
        if hasattr(dataset, "check_model"):
            dataset.check_model(model)

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


class PairDataModule(pl.LightningDataModule):
    """Instance pairs and regularization pairs side by side, each stream in its own seeded order."""

    def __init__(
        self,
        train: Any,
        reg: Any = None,
        batch_size: int = 1,
        reg_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ):
        """train, reg: datasets with ``item(index, visit, size)`` and ``size_of(index)`` such as ``PersonalizedEdit``,
        or their configs; reg: None trains without prior preservation. batch_size, reg_batch_size: pairs of each in a
        step of one process (the second defaults to the first)."""
        super().__init__()
        if reg is None and reg_batch_size is not None:
            raise UserError(f"reg_batch_size is {reg_batch_size}, but there are no regularization pairs (reg)")
        self.streams = {"instance": _built(train)}
        self.batch_sizes = {"instance": batch_size}
        if reg is not None:
            self.streams["reg"] = _built(reg, reg=True)
            self.batch_sizes["reg"] = batch_size if reg_batch_size is None else reg_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.total_batches = 1
        self.start_batch = 0
        self.recipe = self._recipe()

    def check_model(self, model: Any) -> None:
        """Raise UserError for pictures that a network cannot take, or streams of different sizes."""
        views = {name: stream.view for name, stream in self.streams.items() if hasattr(stream, "view")}
        grid = model.grid()
        for name, view in views.items():
            for size in view.sizes:
                if size[0] % grid or size[1] % grid:
                    raise UserError(f"{name} pictures of {size[0]} x {size[1]}: sides must be multiples of {grid} here")
            if view.bucketed and name != "instance":
                raise UserError(f"data.params.{name} has aspect_buckets, but a step has the size of its instance pair")
            if view.bucketed and len(view.sizes) == 1:
                logger.warning("aspect_buckets gives %s pictures no other size than %d x %d", name, *view.size)
            if view.size != views["instance"].size:
                raise UserError(
                    f"instance pictures of {views['instance'].size} and {name} pictures of {view.size} share a step: "
                    f"set data.params.{name}.params.size to the same"
                )

    def _recipe(self) -> dict[str, Any]:
        """What the weights' file says of the data: the words, and a hash over the pictures."""
        subject = self.streams["instance"]
        words = {name: getattr(subject, name, None) for name in ("identifier", "class_word", "source_word")}
        sources = dict.fromkeys(p.source_word for p in getattr(subject, "pairs", []) if getattr(p, "source_word", None))
        if sources:
            words["source_words"] = list(sources)
        streams = {name: stream for name, stream in self.streams.items() if hasattr(stream, "entries")}
        counts = {f"{name}_pairs": len(stream.entries) for name, stream in streams.items()}
        files = [path for stream in streams.values() for entry in stream.entries for path in stream.files(entry)]
        digest = hashlib.sha256()
        for path in files:  # of a large set the names and sizes have to do
            known = path.read_bytes() if len(files) <= MANY else f"{path.name} {path.stat().st_size}".encode()
            digest.update(hashlib.sha256(known).digest())
        return {**{k: v for k, v in words.items() if v}, **counts, "data_hash": digest.hexdigest()[:16]}

    def train_dataloader(self) -> DataLoader:
        """Return the loader of micro-steps ``start_batch`` to ``total_batches`` (set by the run)."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        lengths = {name: len(stream) for name, stream in self.streams.items()}
        where = {"seed": self.seed, "start": self.start_batch, "rank": rank, "world": world}
        return DataLoader(
            _Keyed(self.streams),
            batch_sampler=StreamSampler(lengths, self.batch_sizes, self.total_batches, **where),
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="spawn" if self.num_workers else None,
        )


class _Keyed(Dataset):
    """Items of several streams by (stream, index, visit); a batch has the size that fits its first item best."""

    def __init__(self, streams: dict[str, Any]):
        self.streams = streams

    def __getitems__(self, keys: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
        first, index, _ = keys[0]
        size = self.streams[first].size_of(index)
        return [self._item(*key, size) for key in keys]

    def _item(self, name: str, index: int, visit: int, size: Size) -> dict[str, Any]:
        seed = zlib.crc32(f"{name}/{index}/{visit}".encode())
        return {**self.streams[name].item(index, visit, size), "seed": torch.tensor(seed)}


def _built(node: Any, **extra: Any) -> Any:
    return node if hasattr(node, "item") else instantiate_from_config(node, **extra)


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
