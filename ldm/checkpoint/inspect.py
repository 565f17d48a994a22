"""Describe a checkpoint, and hold it against configs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.checkpoint.diffusers_format import UNET
from ldm.checkpoint.load import LoadReport, average_of, compare_keys
from ldm.checkpoint.read import Checkpoint
from ldm.config import instantiate_from_config, load_config
from ldm.errors import UserError
from ldm.files import fingerprint
from ldm.typed import plain

_SHOWN = ("global_step", "step", "epoch", "pytorch-lightning_version")


def describe(checkpoint: Checkpoint) -> str:
    """Return lines that say what is inside: families with their sizes and precision, raw or EMA, steps, identifier."""
    lines = [f"{checkpoint.path}: {checkpoint.format}, {_size(checkpoint)}, hash {fingerprint(checkpoint.path)}"]
    for family, tensors in checkpoint.families().items():
        numbers = sum(t.numel() for t in tensors)
        types = Counter(str(t.dtype).removeprefix("torch.") for t in tensors).most_common()
        lines.append(
            f"  {family:<14} {len(tensors):>5} tensors {numbers / 1e6:>9.2f} M parameters  "
            f"{', '.join(f'{name} x {count}' for name, count in types)}"
        )
    first = checkpoint.tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is not None and first.ndim == 4:
        lines.append(f"  UNet input channels: {first.shape[1]}")
    raw = any(name.startswith(UNET) for name in checkpoint.tensors)
    copies = [name for name, there in (("raw", raw), ("EMA", checkpoint.has_ema)) if there]
    lines.append(f"  UNet weights: {' and '.join(copies) or 'none'}")
    lines += [f"  {key}: {checkpoint.metadata[key]}" for key in _SHOWN if key in checkpoint.metadata]
    recipe = checkpoint.metadata.get("recipe")
    if isinstance(recipe, dict):
        lines += [" ".join(f"  {key}: {recipe[key]}".split("\n")) for key in recipe]
    lines.append(f"  carries its config: {'yes' if 'config' in checkpoint.metadata else 'no'}")
    return "\n".join(lines)


def fits(checkpoint: Checkpoint, config: Path) -> tuple[bool, str] | None:
    """Return whether a checkpoint fits the config's model, and what is to be said of it; None for a config without
    one."""
    model = _structure(config)
    if model is None:
        return None
    try:
        if hasattr(model, "check_meaning"):
            model.check_meaning(checkpoint)
        report = _held_against(model, checkpoint)
    except ValueError as error:
        return False, str(error)
    if not report.loaded:
        return False, "no tensor of the file has a place in it"
    counts = {title: getattr(report, title) for title in ("missing", "mismatched")}
    problems = [f"{len(names)} {title} (like {sorted(names)[0]})" for title, names in counts.items() if names]
    if problems:
        return False, ", ".join(problems)
    said = [f"fills {text}" for text in report.filled]
    if report.unexpected:
        said.append(f"{len(report.unexpected)} tensors would stay unused")
    return True, ", ".join(said)


def misfits(checkpoint: Checkpoint, config: Path) -> list[str]:
    """Return every key that is missing, of another shape or of no use for the config's model, each with what it is;
    none for a config without a model. Where averages are there, each that is missing is named, too."""
    model = _structure(config)
    if model is None:
        return []
    raw = any(name.startswith(UNET) for name in checkpoint.tensors)
    report, _ = compare_keys(model, checkpoint, "raw" if raw or not checkpoint.has_ema else "auto")
    titles = ("missing", "mismatched", "unexpected")
    problems = [f"{title} {name}" for title in titles for name in sorted(getattr(report, title))]
    if checkpoint.has_ema:
        copies = [average_of(name) for name, _ in model.named_parameters() if name.startswith("model.")]
        problems += [f"missing {name}" for name in sorted(copies) if name not in checkpoint.tensors]
    return problems


def _structure(config: Path) -> nn.Module | None:
    """Return a config's model without weights, None if it has none."""
    node = load_config(config).get("model")
    if not OmegaConf.is_dict(node) or "target" not in node:
        return None
    with torch.device("meta"):
        model = instantiate_from_config(without_checkpoints(node), use_ema=False)
    if not isinstance(model, nn.Module):
        raise UserError(f"'{config}': model.target '{node['target']}' builds no network")
    if not hasattr(model, "first_stage_model"):  # a first stage alone: hold it under its published name
        model, first_stage = nn.Module(), model
        model.first_stage_model = first_stage
    return model


def _held_against(model: nn.Module, checkpoint: Checkpoint) -> LoadReport:
    raw = any(name.startswith(UNET) for name in checkpoint.tensors)
    report, _ = compare_keys(model, checkpoint, "raw" if raw else "auto")
    if raw and checkpoint.has_ema:
        compare_keys(model, checkpoint, "auto")  # what an edit loads; half of the averages missing is an error
    return report


def without_checkpoints(node: Any) -> Any:
    """Return a config as plain containers with every ``ckpt_path`` taken out: only the structure is wanted."""
    if OmegaConf.is_config(node):
        node = plain(node)
    if isinstance(node, dict):
        return {key: without_checkpoints(value) for key, value in node.items() if key != "ckpt_path"}
    return node


def _size(checkpoint: Checkpoint) -> str:
    files = checkpoint.path.rglob("*.safetensors") if checkpoint.path.is_dir() else [checkpoint.path]
    return f"{sum(f.stat().st_size for f in files) / 1e6:.1f} MB"
