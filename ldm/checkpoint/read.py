"""Checkpoints: read weights from any of the formats in use, put them into a model with a report, write them safely.

Formats: Lightning 1.x / PyTorch pickles (``.ckpt``, ``.pt``, ``.bin``), ``.safetensors``, diffusers folders. The format
is told by content, not by name. Nothing in a file is ever run, and tensors stay on disk until they are used.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.diffusers_format import (
    FIRST_STAGE,
    TEXT,
    UNET,
    from_diffusers_text,
    from_diffusers_unet,
    from_diffusers_vae,
)
from ldm.checkpoint.runs import weights_of
from ldm.checkpoint.unpickle import read_pickle
from ldm.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

EMA = "model_ema."
METADATA_KEY = "instruct2dream"

# Found in published files, and rightly not loaded: derived from the config, or of training's other half.
_DERIVED = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
)


@dataclass
class Checkpoint:
    """The contents of a checkpoint: tensors by their published names (views of the file), and what is said of them."""

    path: Path
    format: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ema(self) -> bool:
        """Whether averaged weights are in it."""
        return any(name.startswith(f"{EMA}diffusion_model") for name in self.tensors)

    def families(self) -> dict[str, list[torch.Tensor]]:
        """Group the tensors by what they belong to: unet, ema, first stage, text encoder, derived, other."""
        groups: dict[str, list[torch.Tensor]] = {}
        for name, tensor in self.tensors.items():
            groups.setdefault(_family(name), []).append(tensor)
        return groups


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint of any format, or the best weights of a run folder; tensors are mapped, not read.

    Raises MissingFileError if it is not there, UserError (one line that says what was found) if it is no checkpoint.
    """
    path = weights_of(Path(path))
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise MissingFileError(f"checkpoint '{path}' does not exist")
    if not os.access(path, os.R_OK):
        raise UserError(f"checkpoint '{path}' cannot be read (permissions)")
    kind = _sniff(path)
    if kind == "safetensors":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _split_pickle(read_pickle(path), path)
    if not tensors:
        raise UserError(f"'{path}' holds no tensors")
    return Checkpoint(path, kind, _published_names(tensors), metadata)


def _sniff(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(256)
    if not head:
        raise UserError(f"'{path}' is empty (0 bytes): the download or copy failed")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"'{path}' is a web page, not weights: download the file itself, not the page about it")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"'{path}' is a Git LFS pointer, not weights: fetch it with 'git lfs pull'")
    # safetensors first: the length at its start may look like another format's mark
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "ckpt"
    raise UserError(f"'{path}' is neither a PyTorch pickle nor safetensors (it starts with {head[:12]!r})")


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"'{path}' is truncated or no safetensors file ({error})") from error
    ours = metadata.pop(METADATA_KEY, None)
    try:
        own = json.loads(ours) if ours else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}': its '{METADATA_KEY}' metadata is not JSON ({error})") from error
    if not isinstance(own, dict):
        raise UserError(f"'{path}': its '{METADATA_KEY}' metadata is not a JSON object")
    return tensors, {**metadata, **own}


def _split_pickle(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not a dictionary of weights")
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise UserError(f"'{path}': its state_dict is a {type(state).__name__}, not a dictionary")
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    plain = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, (int, float, str, bool))}
    ours = content.get(METADATA_KEY)
    return tensors, {**plain, **(ours if isinstance(ours, dict) else {})}


def _read_folder(path: Path) -> Checkpoint:
    parts = {"unet": from_diffusers_unet, "vae": from_diffusers_vae, "text_encoder": from_diffusers_text}
    tensors: dict[str, torch.Tensor] = {}
    for name, rename in parts.items():
        files = sorted((path / name).glob("*.safetensors"), key=lambda f: (len(f.name), f.name))
        if files:
            read: dict[str, torch.Tensor] = {}
            for file in _shards(files):
                read.update(_read_safetensors(file)[0])
            tensors.update(rename(read))
    if not tensors:
        raise UserError(f"folder '{path}' has no unet/, vae/ or text_encoder/ with .safetensors (diffusers layout)")
    return Checkpoint(path, "diffusers", tensors, _prediction(path / "scheduler" / "scheduler_config.json"))


def _shards(files: list[Path]) -> list[Path]:
    """Return the files that hold one part: the one with the shortest name, and those it is split over."""
    split = re.fullmatch(r"(.+)-\d+-of-(\d+)\.safetensors", files[0].name)
    if split is None:
        return files[:1]
    shards = [f for f in files if re.fullmatch(rf"{re.escape(split[1])}-\d+-of-{split[2]}\.safetensors", f.name)]
    if len(shards) != int(split[2]):
        raise UserError(f"'{files[0].parent}' holds {len(shards)} of the {int(split[2])} files of {split[1]}")
    return shards


def _prediction(path: Path) -> dict[str, Any]:
    """Return what diffusers' scheduler says that the UNet predicts, as ``parameterization``; {} without one."""
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8")).get("prediction_type", "epsilon")
        return {"parameterization": {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[said]}
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
        raise UserError(f"'{path}' does not say what the UNet predicts ({type(error).__name__}: {error})") from error


def _published_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give bare files (a first stage alone; a UNet, VAE or text encoder in diffusers' names) the published prefixes."""
    names = tensors.keys()
    if any(n.startswith("encoder.down_blocks.") for n in names):
        return from_diffusers_vae(tensors)
    if any(n.startswith("down_blocks.") for n in names):
        return from_diffusers_unet(tensors)
    if any(n.startswith("encoder.down.") for n in names):
        return {FIRST_STAGE + n: t for n, t in tensors.items()}
    if any(n.startswith(("text_model.embeddings.", "embeddings.token_embedding.")) for n in names):
        return from_diffusers_text(tensors)
    bare = f"{TEXT}embeddings."
    if any(n.startswith(bare) for n in names):  # saved by a text model without its "text_model." level
        return {n.replace(TEXT, f"{TEXT}text_model.", 1) if n.startswith(TEXT) else n: t for n, t in tensors.items()}
    return tensors


def _family(name: str) -> str:
    prefixes = {UNET: "unet", EMA: "unet (EMA)", FIRST_STAGE: "first stage", "cond_stage_model.": "text encoder"}
    for prefix, family in prefixes.items():
        if name.startswith(prefix):
            return family
    return "schedule" if name in _DERIVED else "other"
