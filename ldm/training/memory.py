"""How much memory a run will need, said before anything is loaded, and how much its first step really used."""

from __future__ import annotations

import logging
import resource
from typing import Any

import pytorch_lightning as pl
import torch

from ldm.checkpoint.inspect import without_checkpoints
from ldm.config import instantiate_from_config
from ldm.typed import plain

logger = logging.getLogger(__name__)

GIB = 2**30


def parameter_counts(config: Any) -> tuple[int, int]:
    """Return (all, trained) parameters of a run's model, built without memory for them."""
    node = without_checkpoints(plain(config["model"]))
    with torch.device("meta"):
        model = instantiate_from_config(node)
    counted = [p for name, p in model.named_parameters() if not name.startswith("model_ema.")]
    return sum(p.numel() for p in counted), sum(p.numel() for p in counted if p.requires_grad)


def estimate(config: Any) -> str:
    """Return a line on the memory that weights, gradients and optimiser will take, all in fp32.

    What the layers keep for the backward pass comes on top: it grows with batch and resolution.
    """
    total, trained = parameter_counts(config)
    params = config["model"].get("params") or {}
    averaged = trained if params.get("use_ema", True) else 0
    target = str((params.get("optimizer_config") or {}).get("target", "torch.optim.AdamW"))
    per_weight = 2 if "8bit" in target else 8
    parts = {
        "weights": 4 * (total + averaged),
        "gradients": 4 * trained,
        f"optimiser ({target.rpartition('.')[2]})": per_weight * trained,
    }
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    return (
        f"{trained / 1e6:.1f} of {total / 1e6:.1f} million parameters are trained; memory about "
        f"{sum(parts.values()) / GIB:.2f} GiB ({listed}), and the layers' own for the backward pass"
    )


def used() -> float:
    """Return the most memory used so far in GiB: the GPU's where there is one, else the process'."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (GIB / 1024)


class MemoryUsed(pl.Callback):
    """Say once, after the first optimiser step, how much memory the run really takes."""

    def __init__(self) -> None:
        self._said = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Say it."""
        if not self._said and trainer.global_step > 0 and trainer.is_global_zero:
            self._said = True
            where = "GPU" if torch.cuda.is_available() else "process"
            logger.info("after the first step the %s has used %.2f GiB at most", where, used())
