"""Put a checkpoint's tensors into a model, with a report of every key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ldm.checkpoint.diffusers_format import (
    FIRST_STAGE,
    TEXT,
    UNET,
)
from ldm.checkpoint.read import _DERIVED, EMA, Checkpoint
from ldm.errors import UserError

WEIGHTS = ("auto", "ema", "raw")


LISTED = 5  # names in a line that a person reads


_UNUSED = (
    EMA,
    f"{FIRST_STAGE}loss.",
    f"{FIRST_STAGE}model_ema.",
    "cond_stage_model.logit_scale",
    f"{TEXT}text_projection",
)


@dataclass
class LoadReport:
    """What became of every key when a checkpoint was put into a model."""

    source: str
    weights: str
    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    ignored: int = 0

    def summary(self) -> str:
        """Return the report as one paragraph."""
        parts = [f"{self.source}: {self.loaded} tensors loaded ({self.weights} weights)"]
        parts += [f"filled: {text}" for text in self.filled]
        if self.ignored:
            parts.append(f"{self.ignored} not needed (schedule, other copy of the weights, loss)")
        for title in ("unexpected", "mismatched", "missing"):
            names = getattr(self, title)
            if names:
                parts.append(f"{len(names)} {title}: {_listed(names)}")
        return "; ".join(parts)


def average_of(name: str) -> str:
    """Return the name that a UNet parameter's average has in the published files."""
    return EMA + name.removeprefix("model.").replace(".", "")


def select_weights(checkpoint: Checkpoint, names: list[str], weights: str = "auto") -> tuple[dict, str]:
    """Return the tensors with the chosen copy of the UNet under its plain names, and which copy that is.

    names: the model's parameter names. weights: "ema", "raw", or "auto" (EMA where the file has it).
    Raises UserError if EMA is asked for and absent, or only partly there.
    """
    if weights not in WEIGHTS:
        raise UserError(f"unknown weights '{weights}'; known: {', '.join(WEIGHTS)}")
    tensors = dict(checkpoint.tensors)
    averaged = [n for n in names if n.startswith("model.")]
    if weights == "raw" or (weights == "auto" and not checkpoint.has_ema) or not averaged:
        return tensors, "raw"
    copies = {n: average_of(n) for n in averaged}
    absent = [copies[n] for n in averaged if copies[n] not in tensors]
    if absent:
        raise UserError(
            f"'{checkpoint.path}' has {len(absent)} of {len(averaged)} EMA weights missing ({_listed(absent)}); "
            "use the raw ones instead (weights: raw)"
        )
    tensors.update({n: tensors[copy] for n, copy in copies.items()})
    return tensors, "ema"


def load_into(
    model: nn.Module,
    checkpoint: Checkpoint,
    weights: str = "auto",
    dtype_of: Callable[[str], torch.dtype] | None = None,
) -> LoadReport:
    """Put a checkpoint's tensors into a model; a model on the meta device receives them as its own, one copy.

    dtype_of: the type that a parameter gets on the meta device, by name (default: fp32). Raises UserError if any
    parameter is missing or mis-shaped; the line names the first, ``compare_keys`` gives all.
    """
    report, accepted = compare_keys(model, checkpoint, weights)
    if report.missing or report.mismatched:
        more = max(len(report.missing), len(report.mismatched), len(report.unexpected)) > LISTED
        hint = "; scripts/inspect_checkpoint.py --keys lists every key" if more else ""
        raise UserError(f"the checkpoint does not fit the config: {report.summary()}{hint}")
    _assign(model, accepted, dtype_of)
    return report


def compare_keys(
    model: nn.Module, checkpoint: Checkpoint, weights: str = "auto"
) -> tuple[LoadReport, dict[str, torch.Tensor]]:
    """Hold a checkpoint against a model: the report of every key, and the tensors that fit, by the model's names."""
    wanted = model.state_dict(keep_vars=True)
    own = {n for n in wanted if not n.startswith(EMA) and n not in _DERIVED}
    tensors, used = select_weights(checkpoint, [n for n, _ in model.named_parameters() if n in own], weights)
    report = LoadReport(str(checkpoint.path), used)
    accepted: dict[str, torch.Tensor] = {}
    for name in own:
        tensor = tensors.pop(name, None)
        if tensor is not None:
            tensor = _fitted(name, tensor, wanted[name], report)
            if tensor is not None:
                accepted[name] = tensor
        elif not name.endswith("position_ids"):  # a constant; newer files leave it out
            report.missing.append(name)
    for name in tensors:
        if name in _DERIVED or name.startswith(_UNUSED):
            report.ignored += 1
        else:
            report.unexpected.append(name)
    report.loaded = len(accepted)
    return report, accepted


def _fitted(name: str, tensor: torch.Tensor, own: torch.Tensor, report: LoadReport) -> torch.Tensor | None:
    """Return the tensor, with zero channels added where an editing UNet starts from a text-to-image one."""
    if tensor.shape == own.shape:
        return tensor
    extra = own.shape[1] - tensor.shape[1] if tensor.ndim == own.ndim == 4 else 0
    if name == f"{UNET}input_blocks.0.0.weight" and 0 < extra == tensor.shape[1] and tensor.shape[0] == own.shape[0]:
        report.filled.append(f"{extra} new input channels of {name} with zeros")
        return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], extra, *tensor.shape[2:])], dim=1)
    report.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(own.shape)}")
    return None


@torch.no_grad()
def _assign(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], dtype_of: Callable[[str], torch.dtype] | None
) -> None:
    """Copy each tensor into its place; a place on the meta device gets a fresh tensor of its type."""
    modules = dict(model.named_modules())
    for name, tensor in tensors.items():
        parent, _, leaf = name.rpartition(".")
        module = modules[parent]
        own = getattr(module, leaf)
        if not own.is_meta:
            own.copy_(tensor)
            continue
        dtype = own.dtype if not own.is_floating_point() else (dtype_of(name) if dtype_of else torch.float32)
        value = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if isinstance(own, nn.Parameter):
            module._parameters[leaf] = nn.Parameter(value, requires_grad=own.requires_grad)
        else:
            module._buffers[leaf] = value


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown
