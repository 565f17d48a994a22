"""The data of a run: built from its config, encoded beforehand where that is asked for, set to where the run stands."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ldm.checkpoint.save import weights_hash
from ldm.config import instantiate_from_config
from ldm.data.check import check_identifier
from ldm.data.datamodule import PairDataModule
from ldm.data.encoded import Encode, EncodedPairs, cached
from ldm.errors import UserError
from ldm.models.devices import choose_device
from ldm.modules.text import encode_words
from ldm.training.settings import TrainSettings
from ldm.typed import plain

logger = logging.getLogger(__name__)


def build_data(config: DictConfig, settings: TrainSettings, model: Any, logs: Path, done: int = 0) -> Any:
    """Return the data module of a run.

    config: of the whole run; settings: its ``training`` section; model: whose first stage encodes the pictures now,
    with ``cache_latents``; logs: the folder of all runs, for encoded datasets; done: optimiser steps of an earlier part
    of the run. Raises UserError for settings that do not fit.
    """
    data = instantiate_from_config(config["data"])
    for key in ("validate_every", "drift_every"):
        if getattr(settings, key) and not isinstance(data, PairDataModule):
            raise UserError(f"training.{key} needs pairs (PairDataModule)")
    if hasattr(data, "check_model"):
        data.check_model(model)
    if isinstance(data, PairDataModule):
        identifier = getattr(data.streams["instance"], "identifier", "")
        for line in check_identifier(identifier, encode_words) if identifier else []:
            logger.warning(line)
    if settings.cache_latents:
        encode = encoder_of(model)
        if isinstance(data, PairDataModule):
            sizes = data.streams["instance"].sizes()
            data.streams = {name: EncodedPairs(stream, encode, sizes=sizes) for name, stream in data.streams.items()}
        else:
            key = {"data": plain(config["data"]["params"]["train"])}
            key["first_stage"] = weights_hash(model.first_stage_model)
            key = json.dumps(key, sort_keys=True)
            data.dataset = cached(data.dataset, encode, logs / "cache", key, num_workers=data.num_workers)
        data.num_workers = 0
    data.total_batches = settings.max_steps * settings.accumulate
    data.start_batch = done * settings.accumulate
    return data


def encoder_of(model: Any) -> Encode:
    """Return the model's first stage as a function of pictures, on this process' GPU if there is one."""
    device = choose_device()
    layout = torch.channels_last  # without a backward pass the faster one on a CPU, too
    stage = model.first_stage_model.to(device, memory_format=layout).eval()

    @torch.no_grad()
    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = stage.encode(x.to(device, memory_format=layout))
        return posterior.mean.float(), posterior.logvar.float()

    return encode
