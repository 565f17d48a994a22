"""The data of a run: built from its config, encoded beforehand where that is asked for, set to where the run stands."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint.read import read_checkpoint
from ldm.config import instantiate_from_config
from ldm.data.check import check_identifier
from ldm.data.datamodule import PairDataModule
from ldm.data.encoded import Encode, EncodedPairs, cached
from ldm.models.devices import choose_device
from ldm.modules.text import encode_words
from ldm.spriteworld.weights.latent_pictures import LatentPictures

logger = logging.getLogger(__name__)


def build_data(config: DictConfig, settings: dict[str, Any], model: Any, logs: Path, last: Path | None) -> Any:
    """Return the data module of a run.

    settings: the ``training`` section; with ``cache_latents`` the model's first stage encodes the pictures now. last:
    the checkpoint that the run goes on from, None for a new run. Raises ValueError for settings that do not fit.
    """
    data = instantiate_from_config(config["data"])
    for key in ("validate_every", "drift_every"):
        if settings[key] and not isinstance(data, PairDataModule):
            raise ValueError(f"training.{key} needs pairs (PairDataModule)")
    if isinstance(inner := _inmost(data), LatentPictures):
        _check_latents(inner, model)
    if isinstance(data, PairDataModule):
        _check_sizes(data, model)
        identifier = getattr(data.streams["instance"], "identifier", "")
        for line in check_identifier(identifier, encode_words) if identifier else []:
            logger.warning(line)
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


def _inmost(data: Any) -> Any:
    """The dataset of a data module of one stream, without what keeps it in memory; None for others."""
    found = getattr(data, "dataset", None)
    return getattr(found, "dataset", found)


def _check_latents(data: LatentPictures, model: Any) -> None:
    """Raise ValueError for latents that this first stage's decoder cannot learn from."""
    if not getattr(model, "decoder_only", False):
        raise ValueError("these data hold latents: an encoder learns nothing from them; set decoder_only: true")
    item = data[0]
    found, size = tuple(item["z"].shape), tuple(item["edited"].shape[1:])
    wanted = (model.embed_dim, *(side // model.downsampling for side in size))
    if found != wanted:
        raise ValueError(
            f"latents of {found} with pictures of {size}: this first stage makes {wanted} of such pictures"
        )


def _check_sizes(data: PairDataModule, model: Any) -> None:
    """Raise ValueError for pictures that the network cannot take, or streams of different sizes."""
    views = {name: stream.view for name, stream in data.streams.items() if hasattr(stream, "view")}
    grid = model.grid()
    for name, view in views.items():
        for size in view.sizes:
            if size[0] % grid or size[1] % grid:
                raise ValueError(f"{name} pictures of {size[0]} x {size[1]}: sides must be multiples of {grid} here")
        if view.bucketed and name != "instance":
            raise ValueError(f"data.params.{name} has aspect_buckets, but a step has the size of its instance pair")
        if view.bucketed and len(view.sizes) == 1:
            logger.warning("aspect_buckets gives %s pictures no other size than %d x %d", name, *view.size)
        if view.size != views["instance"].size:
            raise ValueError(
                f"instance pictures of {views['instance'].size} and {name} pictures of {view.size} share a step: set "
                f"data.params.{name}.params.size to the same"
            )


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


def _hash_of(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
