"""The optimiser and the learning-rate schedule of a run, from its config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ldm.config import get_class, instantiate_from_config
from ldm.errors import UserError


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rate: float,
    optimizer_config: Any = None,
    scheduler_config: Any = None,
) -> dict[str, Any]:
    """Return what Lightning's ``configure_optimizers`` wants.

    parameters: named; the names reach only optimisers that want them (a class attribute ``wants_names``).
    optimizer_config: ``target`` + ``params`` of any torch-like optimiser (8-bit and schedule-free ones drop in);
    default AdamW. scheduler_config: a class with ``schedule(step) -> factor`` on the learning rate.
    Raises UserError if there is nothing to train.
    """
    parameters = [(name, p) for name, p in parameters if p.requires_grad]
    if not parameters:
        raise UserError("nothing to train: every parameter is frozen")
    config = optimizer_config or {"target": "torch.optim.AdamW", "params": {"weight_decay": 0.01}}
    if not getattr(get_class(config.get("target", "")), "wants_names", False):
        parameters = [p for _, p in parameters]
    optimizer = instantiate_from_config(config, params=parameters, lr=learning_rate)
    if not scheduler_config:
        return {"optimizer": optimizer}
    schedule = instantiate_from_config(scheduler_config).schedule
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1}}
