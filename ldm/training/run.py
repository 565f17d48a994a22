"""One training run: YAML in, a run folder out."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm.checkpoint.read import read_checkpoint
from ldm.config import as_written_today, instantiate_from_config
from ldm.errors import MissingFileError, MissingPackageError, UserError
from ldm.models.build import structure_of
from ldm.models.devices import choose_device, choose_precision
from ldm.training.callbacks import Checkpoints, ProgressBar, Sheets, StopOnSignal
from ldm.training.checkpoint_io import DirectCheckpointIO
from ldm.training.csv_log import keep_earlier_part, merge
from ldm.training.memory import MemoryUsed, estimate
from ldm.training.prepare import build_data
from ldm.training.settings import TrainSettings, load_training_config
from ldm.training.validation import Validation
from ldm.typed import plain

logger = logging.getLogger(__name__)
for _noisy in ("pytorch_lightning", "lightning_fabric"):  # they set their own levels when they are imported
    logging.getLogger(_noisy).setLevel(logging.ERROR)

LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # autocast: weights stay fp32


def make_run_folder(folder: Path) -> None:
    """Make a run's folder; raises FileExistsError if it is there already."""
    for part in ("checkpoints", "images"):
        (folder / part).mkdir(parents=True, exist_ok=part == "images")


def finished(run: Path) -> bool:
    """Return whether a run folder's last checkpoint is at the run's last step."""
    wanted = TrainSettings.of(load_training_config(run / "config.yaml")).max_steps
    last = run / "checkpoints" / "last.ckpt"
    return last.is_file() and read_checkpoint(last).metadata.get("global_step", 0) >= wanted


def train(config: DictConfig, name: str, logs: Path = Path("logs"), resume: Path | None = None) -> Path | None:
    """Train as the config says and return the run folder; None in a process that is not the first, which writes none.

    config: ``model``, ``data`` and ``training`` sections. resume: a run folder to continue; the config is then the
    one kept there. name: of the new run's folder, after the time; logs: where it goes. Raises UserError for what does
    not fit, before anything is trained.
    """
    config = OmegaConf.create(plain(config))
    settings = TrainSettings.of(config)
    precision = choose_precision(settings.precision, choose_device(), training=True)
    _check_together(config, settings, precision)
    last, done = (None, 0) if resume is None else _last_of(resume, config)
    # only the first process writes
    folder = logs / (f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_{name}" if rank_zero_only.rank == 0 else name)
    if resume is not None:
        folder, logs = resume, resume.parent
    pl.seed_everything(settings.seed, verbose=False)
    logger.info(estimate(config))
    model = instantiate_from_config(config["model"])
    model.run_seed = settings.seed
    if torch.cuda.is_available():  # on a CPU, group norm's backward is several times slower in that layout
        model.to(memory_format=torch.channels_last)
    data = build_data(config, settings, model, logs, done)
    trainer = _trainer(config, settings, folder, precision, data)  # before there is a folder: it may refuse
    if rank_zero_only.rank == 0:
        if resume is None:
            make_run_folder(folder)
            OmegaConf.save(config, folder / "config.yaml")
        keep_earlier_part(folder / "metrics")
    try:
        trainer.fit(model, datamodule=data, ckpt_path=None if last is None else str(last), weights_only=False)
    finally:
        if trainer.is_global_zero:
            merge(folder / "metrics")
    if trainer.is_global_zero and trainer.global_step < settings.max_steps:
        logger.warning("stopped at step %d; go on with --resume %s", trainer.global_step, folder)
    return folder if trainer.is_global_zero else None


def _trainer(config: DictConfig, settings: TrainSettings, folder: Path, precision: str, data: Any) -> pl.Trainer:
    chosen = {
        "max_steps": settings.max_steps,
        "max_epochs": -1,
        "accelerator": "auto",
        "devices": settings.devices,
        "num_nodes": settings.num_nodes,
        "precision": LIGHTNING_PRECISION[precision],
        "accumulate_grad_batches": settings.accumulate,
        "gradient_clip_val": settings.gradient_clip,
        "logger": _loggers(settings, folder),
        "log_every_n_steps": settings.log_every,
        "callbacks": _callbacks(config, settings, folder, data),
        "plugins": [DirectCheckpointIO()],
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    try:
        return pl.Trainer(**chosen)
    except MisconfigurationException as error:  # no ValueError of its own
        raise UserError(" ".join(str(error).split())) from error


def _callbacks(config: DictConfig, settings: TrainSettings, folder: Path, data: Any) -> list[pl.Callback]:
    """The run's callbacks; what saves comes last, so that it saves what the others measured at that step."""
    kept = {"keep_at": settings.kept_steps, "folder": folder / "checkpoints", "suffix": settings.weights_suffix}
    metadata = _metadata(config, settings, data)
    callbacks: list[pl.Callback] = [ProgressBar(refresh_rate=settings.log_every), MemoryUsed(), StopOnSignal()]
    if settings.validate_every:
        callbacks.append(Validation(data, settings.validate_every))
    if settings.drift_every:
        callbacks.append(instantiate_from_config(settings.drift, data=data, every=settings.drift_every, **kept))
    if settings.sheet_every:
        drawer = instantiate_from_config(settings.sheet)
        callbacks.append(Sheets(folder / "images", settings.sheet_every, drawer))
    saving = Checkpoints(**kept, every=settings.save_every, metadata=metadata, run_config=_fixed(config))
    return [*callbacks, saving]


def _metadata(config: DictConfig, settings: TrainSettings, data: Any) -> dict[str, Any]:
    """What kept weights carry: the model's config for inference, settings to start from, and the data's recipe."""
    metadata: dict[str, Any] = {"config": {"model": structure_of(plain(config["model"]))}}
    defaults = {"edit_defaults": settings.edit_defaults, "text_defaults": settings.text_defaults}
    metadata.update({name: chosen for name, chosen in defaults.items() if chosen})
    if getattr(data, "recipe", None):
        metadata["recipe"] = data.recipe
    return metadata


def _loggers(settings: TrainSettings, folder: Path) -> list[Any]:
    loggers = [CSVLogger(folder, name="", version="metrics"), TensorBoardLogger(folder, name="", version="metrics")]
    return [*loggers, _wandb(settings.wandb, folder)] if settings.wandb else loggers


def _fixed(config: DictConfig) -> dict[str, Any]:
    """What of a config may not change between a run's parts: model (but for the learning rate's schedule), data, and
    those settings of the training that change what a step is."""
    whole = plain(config)
    params = {k: v for k, v in (whole["model"].get("params") or {}).items() if k != "scheduler_config"}
    settings = TrainSettings.of(config)
    steps = {key: getattr(settings, key) for key in ("seed", "accumulate", "precision", "gradient_clip")}
    return {"model": {**whole["model"], "params": params}, "data": whole["data"], "training": steps}


def _last_of(run: Path, config: DictConfig) -> tuple[Path, int]:
    """Return a run's full checkpoint and the optimiser steps done in it.

    Raises UserError if there is none, or if it was begun with another model or data than its config now says.
    """
    last = run / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise MissingFileError(f"run '{run}' has no checkpoints/last.ckpt to resume from")
    metadata = read_checkpoint(last).metadata
    before = metadata.get("run_config")
    if before is not None:
        before, now = as_written_today(before), as_written_today(_fixed(config))
        now = {section: now[section] for section in before if section in now}
        if before != now:
            raise UserError(
                f"the run was begun with another config: {_first_difference(before, now)}; put its config.yaml back, "
                "or begin a new run with model.params.ckpt_path set to what this one kept"
            )
    return last, int(metadata.get("global_step", 0))


def _first_difference(a: Any, b: Any, path: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if a.get(key) != b.get(key) or (key in a) != (key in b):
                return _first_difference(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    return f"{path} was {a!r}, is {b!r}"[:200]


def _wandb(project: str, folder: Path) -> Any:
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "training.wandb needs the package wandb: pip install 'instruct2dream[wandb]'"
        ) from error
    from pytorch_lightning.loggers import WandbLogger

    return WandbLogger(project=project, name=folder.name, save_dir=str(folder))


def _check_together(config: DictConfig, settings: TrainSettings, precision: str) -> None:
    """Raise UserError for settings that exclude each other."""
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and settings.devices > gpus:
        raise UserError(f"training.devices is {settings.devices}, but this machine has {gpus} GPU(s)")
    optimizer = config["model"].get("params", {}).get("optimizer_config") or {}
    fused = bool((optimizer.get("params") or {}).get("fused"))
    if precision == "fp16" and fused and settings.gradient_clip:
        raise UserError(
            "fp16 with gradient clipping cannot use a fused optimiser: set model.params.optimizer_config.params.fused="
            "false, or training.gradient_clip=null"
        )
