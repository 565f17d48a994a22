"""load_model: from a config and a checkpoint to a model ready to use, with one copy of the weights in memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.checkpoint.diffusers_format import FIRST_STAGE, UNET
from ldm.checkpoint.inspect import without_checkpoints
from ldm.checkpoint.load import WEIGHTS
from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.config import get_class, instantiate_from_config, load_config, resolve_alias
from ldm.cpu.packed import pack, use_winograd
from ldm.errors import UserError
from ldm.models.autoencoder import load_first_stage
from ldm.models.devices import DEVICES, PRECISIONS, choose_device, choose_precision, dtype_of
from ldm.project import CONFIGS
from ldm.typed import nearest

logger = logging.getLogger(__name__)

PACK_FROM = 10_000_000  # parameters; in smaller networks a packed operator costs more than it saves (5 x at 4 million)
SECTIONS = ("model", "data", "dataset", "training", "lightning")  # of a config; upstream's last one has no effect here


@dataclass(frozen=True)
class ModelSource:
    """Which model a command uses, and how it is loaded.

    ckpt: ``.ckpt``, ``.safetensors``, a diffusers folder or a run folder. config: a YAML file, None for the
    checkpoint's own. vae_ckpt: a file to take the first stage from. weights: "auto", "ema" or "raw". device: "auto",
    "cpu" or "cuda". precision: "auto", "fp32", "fp16" or "bf16". Raises UserError for another word.
    """

    ckpt: str | Path
    config: str | Path | None = None
    vae_ckpt: str | Path | None = None
    weights: str = "auto"
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        known = {"weights": WEIGHTS, "device": DEVICES, "precision": ("auto", *PRECISIONS)}
        for name, words in known.items():
            if getattr(self, name) not in words:
                raise UserError(f"unknown {name} '{getattr(self, name)}'; known: {', '.join(words)}")

    @property
    def options(self) -> dict[str, Any]:
        """What ``from_checkpoint`` takes beside the checkpoint."""
        names = ("config", "vae_ckpt", "weights", "device", "precision")
        return {name: getattr(self, name) for name in names}


def config_for(checkpoint: Checkpoint) -> Any:
    """Return the config that a checkpoint carries, or the full-size one that its input channels tell.

    Raises UserError if it carries none and is no UNet of 4 or 8 input channels.
    """
    carried = checkpoint.metadata.get("config")
    if carried:
        if not isinstance(carried, Mapping):
            raise UserError(f"the config inside '{checkpoint.path}' is no mapping; name one (--config)")
        try:
            _check_carried(carried)
            return OmegaConf.create(carried)
        except (RecursionError, OmegaConfBaseException) as error:
            raise UserError(f"the config inside '{checkpoint.path}' cannot be read ({type(error).__name__})") from error
    _check_more_than_first_stage(checkpoint)
    first = checkpoint.tensors.get(f"{UNET}input_blocks.0.0.weight")
    names = {4: "v1-inference.yaml", 8: "v1-edit.yaml"}
    if first is None or first.ndim != 4 or first.shape[1] not in names:
        raise UserError(f"'{checkpoint.path}' carries no config and does not look like a model; name one (--config)")
    return load_config(CONFIGS / "stable-diffusion" / names[first.shape[1]])


_FIRST_STAGES = {"ldm.models.autoencoder.AutoencoderKL", "ldm.models.vq.VQModel"}


def _check_more_than_first_stage(checkpoint: Checkpoint) -> None:
    if checkpoint.tensors and all(name.startswith(FIRST_STAGE) for name in checkpoint.tensors):
        raise UserError(
            f"'{checkpoint.path}' is a first stage alone, no model to edit or generate with; give it as --vae-ckpt "
            "beside a whole model"
        )


def _check_whole(checkpoint: Checkpoint, node: Any) -> None:
    """Refuse (UserError) a first stage by itself, be it the checkpoint or what the config builds."""
    _check_more_than_first_stage(checkpoint)
    if isinstance(node, Mapping) and resolve_alias(node.get("target", "")) in _FIRST_STAGES:
        raise UserError(
            "the config builds a first stage alone, no model to edit or generate with; name that of the whole model "
            f"in '{checkpoint.path}' (--config)"
        )


_MODEL_CLASSES = {
    *_FIRST_STAGES,
    "ldm.models.latent_diffusion.LatentDiffusion",
    "ldm.modules.unet.UNetModel",
    "ldm.modules.text.FrozenCLIPEmbedder",
}


def _check_carried(node: Any) -> None:
    """Refuse a config from inside a file that names anything but our networks: a file must not choose code.

    Interpolations are refused too; OmegaConf could make names of them.
    """
    if isinstance(node, Mapping):
        name = node.get("target")
        if "target" in node and (not isinstance(name, str) or resolve_alias(name) not in _MODEL_CLASSES):
            raise UserError(f"the checkpoint's own config names {name!r}, which is not a model class; refused")
        for key, value in node.items():
            _check_carried(key)
            _check_carried(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _check_carried(value)
    elif isinstance(node, str):
        if "${" in node:
            raise UserError(f"the checkpoint's own config holds an interpolation ({node[:40]!r}); refused")
    elif node is not None and not isinstance(node, (bool, int, float)):
        raise UserError(f"the checkpoint's own config holds a {type(node).__name__}; refused")


def structure_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a model (plain containers) without what only training reads.

    A class says by ``STRUCTURE`` which of its parameters describe the network; all of them count for one without it.
    """
    params = node.get("params")
    if not isinstance(params, Mapping):
        return dict(node)
    kept = getattr(get_class(node["target"]), "STRUCTURE", params)
    return {
        **node,
        "params": {
            name: structure_of(value) if isinstance(value, Mapping) and "target" in value else value
            for name, value in params.items()
            if name in kept
        },
    }


def load_for_use(
    ckpt: str | Path | Checkpoint,
    config: Any = None,
    vae_ckpt: str | Path | None = None,
    weights: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> tuple[Any, str]:
    """Return (model, precision) for editing or generating: what ``load_model`` loads, with "auto" resolved, and on a
    CPU with its weights laid out for speed."""
    place = choose_device(device)
    precision = choose_precision(precision, place)
    model = load_model(ckpt, config, vae_ckpt, weights, place, precision)
    pack_for_cpu(model)
    return model, precision


def pack_for_cpu(model: Any) -> None:
    """Lay a model's weights out for fast inference, in place, where it is on a CPU and large enough to gain by it.

    A first stage in fp32 keeps its plain layers beside those that Winograd's filtering suits: on maps as large as
    pictures, packed ones took a fifth more time.
    """
    if model.device.type != "cpu":
        return
    first_stage = model.first_stage_model
    low = next(first_stage.parameters()).dtype != torch.float32
    for part, change in ((model.model, pack), (first_stage, pack if low else use_winograd)):
        if sum(p.numel() for p in part.parameters()) >= PACK_FROM:
            change(part)


def load_model(
    ckpt: str | Path | Checkpoint,
    config: Any = None,
    vae_ckpt: str | Path | None = None,
    weights: str = "auto",
    device: str | torch.device = "cpu",
    precision: str = "fp32",
):
    """Return a LatentDiffusion with a checkpoint's weights, in evaluation mode on the device.

    config: a DictConfig with ``model``, a YAML path, or None (the checkpoint's own, or told by its shapes).
    The model is built without memory, and each weight is read once, straight into its final type.
    Raises UserError, each with one line that says what was found.
    """
    checkpoint = ckpt if isinstance(ckpt, Checkpoint) else read_checkpoint(ckpt)
    if isinstance(config, (str, Path)):
        config = load_config(config)
    config = config_for(checkpoint) if config is None else config
    if "model" not in config:
        raise UserError(f"the config has no 'model' section; its keys: {', '.join(map(str, config))}")
    for key in config:
        if key not in SECTIONS:
            raise UserError(f"the config has an unknown section '{key}'{nearest(str(key), list(SECTIONS))}")
    _check_whole(checkpoint, config["model"])
    with torch.device("meta"):
        model = instantiate_from_config(without_checkpoints(config["model"]), use_ema=False)
    if not hasattr(model, "load_checkpoint"):
        raise UserError(f"the config's model is a {type(model).__name__}; a LatentDiffusion is expected")
    report = model.load_checkpoint(checkpoint, weights, dtype_of(precision))
    logger.log(logging.WARNING if report.unexpected else logging.INFO, report.summary())
    if vae_ckpt is not None:
        logger.info(load_first_stage(model.first_stage_model, str(vae_ckpt)))
    model.eval().requires_grad_(False)
    model.to(device)
    if precision != "fp32" or model.device.type != "cpu":
        # faster; but on a CPU group norm is less exact in this layout, which only fp32 would notice
        for part in (model.model, model.first_stage_model):
            part.to(memory_format=torch.channels_last)
    return model
