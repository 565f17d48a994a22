"""The data of a run: built from its config, encoded beforehand where that is asked for, set to where the run stands."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import read_checkpoint
from ldm.config import instantiate_from_config
from ldm.data.datamodule import PairDataModule
from ldm.data.latent_cache import Encode, cached
from ldm.data.pair_cache import EncodedPairs


def build_data(config: DictConfig, settings: dict[str, Any], model: Any, logs: Path, last: Path | None) -> Any:
    """Return the data module of a run.

    settings: the ``training`` section; with ``cache_latents`` the model's first stage encodes the pictures now. last:
    the checkpoint that the run goes on from, None for a new run. Raises ValueError for settings that do not fit.
    """
    data = instantiate_from_config(config["data"])
    for key in ("validate_every", "drift_every"):
        if settings[key] and not isinstance(data, PairDataModule):
            raise ValueError(f"training.{key} needs pairs (PairDataModule)")
    if settings["cache_latents"]:
        encode = encoder_of(model)
        if isinstance(data, PairDataModule):
            sizes = data.streams["instance"].sizes()
            data.streams = {name: EncodedPairs(stream, encode, sizes=sizes) for name, stream in data.streams.items()}
        else:
            key = {"data": OmegaConf.to_container(config["data"]["params"]["train"], resolve=True)}
            key["first_stage"] = _hash_of(model.first_stage_model)
            key = json.dumps(key, sort_keys=True)
            data.dataset = cached(data.dataset, encode, logs / "cache", key, num_workers=data.num_workers)
        data.num_workers = 0
    data.total_batches = settings["max_steps"] * settings["accumulate"]
    if last is not None:
        done = read_checkpoint(last).metadata.get("global_step", 0)
        data.start_batch = int(done) * settings["accumulate"]
    return data


def encoder_of(model: Any) -> Encode:
    """Return the model's first stage as a function of pictures, on the machine's GPU if it has one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage = model.first_stage_model.to(device).eval()

    @torch.no_grad()
    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = stage.encode(x.to(device))
        return posterior.mean.float(), posterior.logvar.float()

    return encode


def _hash_of(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
