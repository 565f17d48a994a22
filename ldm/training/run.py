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
from ldm.config import instantiate_from_config, nearest
from ldm.models.devices import bf16_is_faster
from ldm.training.callbacks import Checkpoints, ProgressBar, Sheets, StopOnSignal
from ldm.training.checkpoint_io import DirectCheckpointIO
from ldm.training.csv_log import merge, set_aside
from ldm.training.memory import MemoryUsed, estimate
from ldm.training.prepare import build_data
from ldm.training.validation import Validation

logger = logging.getLogger(__name__)
for _noisy in ("pytorch_lightning", "lightning_fabric"):  # they set their own levels when they are imported
    logging.getLogger(_noisy).setLevel(logging.ERROR)

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
    "text_defaults": None,  # the same for text to image
    "weights_suffix": ".safetensors",  # of the kept weights: .safetensors or .ckpt
    "wandb": None,  # a Weights & Biases project to log to, too
    "validate_every": 0,  # steps between two validations on held-out pairs, 0: none
    "drift_every": 0,  # steps between two measures of subject, leak and background, 0: none
    "drift": None,  # target + params of what measures them
}

WHOLE_NUMBERS = {  # of them: the least that makes sense
    **dict.fromkeys(("max_steps", "accumulate", "save_every", "log_every", "devices", "num_nodes"), 1),
    **dict.fromkeys(("seed", "sheet_every", "validate_every", "drift_every"), 0),
}


def settings_of(config: DictConfig) -> dict[str, Any]:
    """Return the ``training`` section over its defaults. Raises ValueError for an unknown key or a wrong value."""
    given = OmegaConf.to_container(config.get("training") or OmegaConf.create(), resolve=True)
    for key in given:
        if key not in DEFAULTS:
            raise ValueError(f"unknown key 'training.{key}'{nearest(key, list(DEFAULTS))}")
    settings = {**DEFAULTS, **given}
    if settings["weights_suffix"] not in (".safetensors", ".ckpt"):
        raise ValueError(f"training.weights_suffix is '{settings['weights_suffix']}'; known: .safetensors, .ckpt")
    for key, least in WHOLE_NUMBERS.items():
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"training.{key} is {value!r}; a whole number from {least} is expected")
    clip = settings["gradient_clip"]
    if clip is not None and (isinstance(clip, (bool, str)) or not clip > 0):
        raise ValueError(f"training.gradient_clip is {clip!r}; a number above 0, or null for none, is expected")
    kept = settings["keep_at"]
    if not isinstance(kept, list) or any(type(step) is not int for step in kept):
        raise ValueError(f"training.keep_at is {kept!r}; a list of steps such as [500, 800] is expected")
    late = [step for step in settings["keep_at"] if not 1 <= step <= settings["max_steps"]]
    if late:
        raise ValueError(f"training.keep_at names step {late[0]}, but the run has steps 1 to {settings['max_steps']}")
    return settings


def choose_precision(name: str) -> str:
    """Return Lightning's precision: autocast only, the weights stay fp32.

    auto: bf16 on a GPU that has it, fp16 with a gradient scaler on an older one; on a CPU bf16 where a trial
    shows that it is clearly faster, else fp32. Raises ValueError for what the machine cannot do.
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
    return "bf16-mixed" if bf16_is_faster() else "32-true"


def make_run_folder(folder: Path) -> None:
    """Make a run's folder; raises FileExistsError if it is there already."""
    for part in ("checkpoints", "images"):
        (folder / part).mkdir(parents=True, exist_ok=part == "images")


def finished(run: Path) -> bool:
    """Return whether a run folder's last checkpoint is at the run's last step."""
    wanted = settings_of(OmegaConf.load(run / "config.yaml"))["max_steps"]
    last = run / "checkpoints" / "last.ckpt"
    return last.is_file() and read_checkpoint(last).metadata.get("global_step", 0) >= wanted


def train(config: DictConfig, name: str, logs: Path = Path("logs"), resume: Path | None = None) -> Path | None:
    """Train as the config says and return the run folder; None in a process that is not the first, which writes none.

    config: ``model``, ``data`` and ``training`` sections. resume: a run folder to continue; the config is then the
    one kept there. Raises ValueError or FileNotFoundError for what does not fit, before anything is trained.
    """
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    settings = settings_of(config)
    precision = choose_precision(settings["precision"])
    _check_together(config, settings, precision)
    last = None
    # only the first process writes
    folder = logs / (f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_{name}" if rank_zero_only.rank == 0 else name)
    if resume is not None:
        folder, logs = resume, resume.parent
        last = folder / "checkpoints" / "last.ckpt"
        if not last.is_file():
            raise FileNotFoundError(f"run '{resume}' has no checkpoints/last.ckpt to resume from")
        _check_unchanged(config, last)
    pl.seed_everything(settings["seed"], verbose=False)
    logger.info(estimate(config))
    model = instantiate_from_config(config["model"])
    model.run_seed = settings["seed"]
    if torch.cuda.is_available():  # on a CPU, group norm's backward is several times slower in that layout
        model.to(memory_format=torch.channels_last)
    data = build_data(config, settings, model, logs, last)
    trainer = _trainer(config, settings, folder, precision, data)  # before there is a folder: it may refuse
    if rank_zero_only.rank == 0:
        if resume is None:
            make_run_folder(folder)
            OmegaConf.save(config, folder / "config.yaml")
        set_aside(folder / "metrics")
    try:
        trainer.fit(model, datamodule=data, ckpt_path=None if last is None else str(last), weights_only=False)
    finally:
        if trainer.is_global_zero:
            merge(folder / "metrics")
    if trainer.is_global_zero and trainer.global_step < settings["max_steps"]:
        logger.warning("stopped at step %d; go on with --resume %s", trainer.global_step, folder)
    return folder if trainer.is_global_zero else None


def _trainer(config: DictConfig, settings: dict[str, Any], folder: Path, precision: str, data: Any) -> pl.Trainer:
    chosen = {
        "max_steps": settings["max_steps"],
        "max_epochs": -1,
        "accelerator": "auto",
        "devices": settings["devices"],
        "num_nodes": settings["num_nodes"],
        "precision": precision,
        "accumulate_grad_batches": settings["accumulate"],
        "gradient_clip_val": settings["gradient_clip"],
        "logger": _loggers(settings, folder),
        "log_every_n_steps": settings["log_every"],
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
        raise ValueError(" ".join(str(error).split())) from error


def _callbacks(config: DictConfig, settings: dict[str, Any], folder: Path, data: Any) -> list[pl.Callback]:
    """The run's callbacks; what saves comes last, so that it saves what the others measured at that step."""
    keep_at = settings["keep_at"] or [settings["max_steps"]]
    kept = {"keep_at": keep_at, "folder": folder / "checkpoints", "suffix": settings["weights_suffix"]}
    metadata = _metadata(config, settings, data)
    found: list[pl.Callback] = [ProgressBar(refresh_rate=settings["log_every"]), MemoryUsed(), StopOnSignal()]
    if settings["validate_every"]:
        found.append(Validation(data, settings["validate_every"]))
    if settings["drift_every"]:
        found.append(instantiate_from_config(settings["drift"], data=data, every=settings["drift_every"], **kept))
    if settings["sheet_every"]:
        drawer = instantiate_from_config(settings["sheet"])
        found.append(Sheets(folder / "images", settings["sheet_every"], drawer))
    saving = Checkpoints(**kept, every=settings["save_every"], metadata=metadata, run_config=_fixed(config))
    return [*found, saving]


def _metadata(config: DictConfig, settings: dict[str, Any], data: Any) -> dict[str, Any]:
    """What kept weights carry: the model's config for inference, settings to start from, and the data's recipe."""
    model = OmegaConf.to_container(config["model"], resolve=True)
    found: dict[str, Any] = {"config": {"model": {**model, "params": _inference_params(model["params"])}}}
    found.update({name: settings[name] for name in ("edit_defaults", "text_defaults") if settings[name]})
    if getattr(data, "recipe", None):
        found["recipe"] = data.recipe
    return found


def _loggers(settings: dict[str, Any], folder: Path) -> list[Any]:
    found = [CSVLogger(folder, name="", version="metrics"), TensorBoardLogger(folder, name="", version="metrics")]
    return [*found, _wandb(settings["wandb"], folder)] if settings["wandb"] else found


def _fixed(config: Any) -> dict[str, Any]:
    """What of a config may not change between a run's parts: model (but for the learning rate's schedule), data, and
    those settings of the training that change what a step is."""
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    params = {k: v for k, v in (plain["model"].get("params") or {}).items() if k != "scheduler_config"}
    settings = {**DEFAULTS, **(plain.get("training") or {})}
    steps = {key: settings[key] for key in ("seed", "accumulate", "precision", "gradient_clip")}
    return {"model": {**plain["model"], "params": params}, "data": plain["data"], "training": steps}


def _check_unchanged(config: DictConfig, last: Path) -> None:
    """Raise ValueError if a run was begun with another model or other data than its config now says."""
    begun = read_checkpoint(last).metadata.get("run_config")
    now = _fixed(config)
    if begun is not None and begun != (now := {section: now[section] for section in begun if section in now}):
        other = _first_difference(begun, now)
        raise ValueError(
            f"the run was begun with another config: {other}; put its config.yaml back, or begin a new run with "
            "model.params.ckpt_path set to what this one kept"
        )


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
        raise ImportError("training.wandb needs the package wandb: pip install 'instruct2dream[wandb]'") from error
    from pytorch_lightning.loggers import WandbLogger

    return WandbLogger(project=project, name=folder.name, save_dir=str(folder))


def _check_together(config: DictConfig, settings: dict[str, Any], precision: str) -> None:
    """Raise ValueError for settings that exclude each other."""
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and settings["devices"] > gpus:
        raise ValueError(f"training.devices is {settings['devices']}, but this machine has {gpus} GPU(s)")
    optimizer = config["model"].get("params", {}).get("optimizer_config") or {}
    fused = bool((optimizer.get("params") or {}).get("fused"))
    if precision == "16-mixed" and fused and settings["gradient_clip"]:
        raise ValueError(
            "fp16 with gradient clipping cannot use a fused optimiser: set model.params.optimizer_config.params.fused="
            "false, or training.gradient_clip=null"
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
        "decoder_only",
        "weights",
        "cond_stage_trainable",
        "dropout_text",
        "dropout_image",
        "dropout_both",
        "dropped_weight",
        "t_power",
        "change_weight",
        "dream_detail_preservation",
        "reg_weight",
        "offset_noise",
        "min_snr_gamma",
        "snr_offset",
        "unet_trainable",
    }
    kept = {key: value for key, value in params.items() if key not in training}
    for value in kept.values():
        if isinstance(value, dict) and isinstance(value.get("params"), dict):
            value["params"] = {k: v for k, v in value["params"].items() if k not in training}
    return kept
