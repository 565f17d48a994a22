"""One training run: YAML in, a run folder out."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from ldm.checkpoint import read_checkpoint
from ldm.config import instantiate_from_config, nearest
from ldm.data.latent_cache import cached
from ldm.training.callbacks import Checkpoints, Sheets, StopOnSignal

logger = logging.getLogger(__name__)

DEFAULTS = {
    "max_steps": 800,  # optimiser steps
    "seed": 23,
    "precision": "auto",  # auto | fp32 | bf16 | fp16; the weights themselves stay fp32
    "accumulate": 1,
    "gradient_clip": None,
    "devices": 1,
    "num_nodes": 1,
    "keep_at": [],  # steps whose weights are kept
    "save_every": 250,  # steps between two writings of last.ckpt
    "sheet_every": 0,  # steps between two sheets, 0: none
    "sheet": None,  # target + params of what draws them
    "log_every": 10,
    "cache_latents": False,
    "edit_defaults": None,  # settings that editing with the kept weights starts from
}


def settings_of(config: DictConfig) -> dict[str, Any]:
    """Return the ``training`` section over its defaults. Raises ValueError for an unknown key."""
    given = OmegaConf.to_container(config.get("training") or OmegaConf.create(), resolve=True)
    for key in given:
        if key not in DEFAULTS:
            raise ValueError(f"unknown key 'training.{key}'{nearest(key, list(DEFAULTS))}")
    return {**DEFAULTS, **given}


def choose_precision(name: str) -> str:
    """Return Lightning's precision: autocast only, the weights stay fp32.

    auto: bf16 on a GPU that has it, fp16 with a gradient scaler on an older one; on a CPU bf16 where it has the
    instructions, else fp32. Raises ValueError for what the machine cannot do.
    """
    known = {"auto": None, "fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    if name not in known:
        raise ValueError(f"unknown precision '{name}'; known: {', '.join(known)}")
    cuda = torch.cuda.is_available()
    if name == "fp16" and not cuda:
        raise ValueError("training in fp16 needs a GPU; on a CPU use fp32 or bf16")
    if name == "bf16" and cuda and torch.cuda.get_device_capability()[0] < 8:
        raise ValueError("this GPU has no bf16; use fp16 or auto")
    if name != "auto":
        return known[name]
    if cuda:
        return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "16-mixed"
    return "bf16-mixed" if torch.cpu.get_capabilities().get("avx512_bf16") else "32-true"


def new_run_folder(root: Path, name: str) -> Path:
    """Return ``root/<time>_<name>``, made; raises FileExistsError if it is there already."""
    folder = root / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_{name}"
    for part in ("checkpoints", "images"):
        (folder / part).mkdir(parents=True, exist_ok=part == "images")
    return folder


def train(config: DictConfig, name: str, logs: Path = Path("logs"), resume: Path | None = None) -> Path:
    """Train as the config says and return the run folder.

    config: ``model``, ``data`` and ``training`` sections. resume: a run folder to continue; the config is then the
    one kept there. Raises ValueError or FileNotFoundError for what does not fit, before anything is trained.
    """
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    settings = settings_of(config)
    last = None
    if resume is not None:
        folder, last = resume, resume / "checkpoints" / "last.ckpt"
        if not last.is_file():
            raise FileNotFoundError(f"run '{resume}' has no checkpoints/last.ckpt to resume from")
    else:
        folder = new_run_folder(logs, name)
        OmegaConf.save(config, folder / "config.yaml")
    precision = choose_precision(settings["precision"])
    pl.seed_everything(settings["seed"], verbose=False)
    model = instantiate_from_config(config["model"])
    model.run_seed = settings["seed"]
    model.to(memory_format=torch.channels_last)
    data = _data(config, settings, model, logs, last)
    stop = StopOnSignal()
    trainer = _trainer(config, settings, folder, precision, stop)
    trainer.fit(model, datamodule=data, ckpt_path=None if last is None else str(last), weights_only=False)
    if trainer.global_step < settings["max_steps"]:
        logger.warning("stopped at step %d; go on with --resume %s", trainer.global_step, folder)
    return folder


def _data(config: DictConfig, settings: dict[str, Any], model: Any, logs: Path, last: Path | None) -> Any:
    data = instantiate_from_config(config["data"])
    if settings["cache_latents"]:
        stage = model.first_stage_model
        key = json.dumps(
            {
                "data": OmegaConf.to_container(config["data"]["params"]["train"], resolve=True),
                "first_stage": _hash_of(stage),
            },
            sort_keys=True,
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stage.to(device).eval()

        def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            posterior = stage.encode(x.to(device))
            return posterior.mean.float(), posterior.logvar.float()

        data.dataset = cached(data.dataset, encode, logs / "cache", key, num_workers=data.num_workers)
        data.num_workers = 0
    data.total_batches = settings["max_steps"] * settings["accumulate"]
    if last is not None:
        done = read_checkpoint(last).metadata.get("global_step", 0)
        data.start_batch = int(done) * settings["accumulate"]
    return data


def _hash_of(module: torch.nn.Module) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _trainer(
    config: DictConfig, settings: dict[str, Any], folder: Path, precision: str, stop: StopOnSignal
) -> pl.Trainer:
    metadata = {"config": OmegaConf.to_container(OmegaConf.create({"model": config["model"]}), resolve=True)}
    metadata["config"]["model"]["params"] = _inference_params(metadata["config"]["model"]["params"])
    if settings["edit_defaults"]:
        metadata["edit_defaults"] = settings["edit_defaults"]
    keep_at = settings["keep_at"] or [settings["max_steps"]]
    callbacks: list[pl.Callback] = [
        Checkpoints(folder / "checkpoints", keep_at, settings["save_every"], metadata),
        TQDMProgressBar(refresh_rate=settings["log_every"]),
        stop,
    ]
    if settings["sheet_every"]:
        drawer = instantiate_from_config(settings["sheet"])
        callbacks.append(Sheets(folder / "images", settings["sheet_every"], drawer))
    return pl.Trainer(
        max_steps=settings["max_steps"],
        max_epochs=-1,
        accelerator="auto",
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        precision=precision,
        accumulate_grad_batches=settings["accumulate"],
        gradient_clip_val=settings["gradient_clip"],
        logger=[CSVLogger(folder, name="", version="metrics"), TensorBoardLogger(folder, name="", version="metrics")],
        log_every_n_steps=settings["log_every"],
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def _inference_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return a model's parameters without those that only training reads (kept in the run's config.yaml)."""
    training = {
        "ckpt_path",
        "learning_rate",
        "optimizer_config",
        "scheduler_config",
        "use_ema",
        "ema_decay",
        "lossconfig",
        "weights",
        "cond_stage_trainable",
        "dropout_text",
        "dropout_image",
        "dropout_both",
        "t_power",
        "change_weight",
    }
    kept = {key: value for key, value in params.items() if key not in training}
    for value in kept.values():
        if isinstance(value, dict) and isinstance(value.get("params"), dict):
            value["params"] = {k: v for k, v in value["params"].items() if k not in training}
    return kept
