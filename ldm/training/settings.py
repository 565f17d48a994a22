"""The ``training`` section of a config: what a run does beside the model and the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.config import load_config
from ldm.errors import UserError
from ldm.inference.settings import EditSettings, TextSettings
from ldm.typed import settings

SUFFIXES = (".safetensors", ".ckpt")
LEAST = {  # of whole numbers: the least that makes sense
    **dict.fromkeys(("max_steps", "accumulate", "save_every", "log_every", "devices", "num_nodes"), 1),
    **dict.fromkeys(("seed", "sheet_every", "validate_every", "drift_every"), 0),
}


@dataclass(frozen=True)
class TrainSettings:
    """How long a run trains, on what, and what it leaves.

    max_steps: optimiser steps. seed: of all random numbers. precision: "auto", "fp32", "bf16" or "fp16"; the weights
    themselves stay fp32. accumulate: batches to a step. gradient_clip: largest norm of the gradient, None for no limit.
    devices, num_nodes: processes or GPUs on this machine, and machines. keep_at: steps whose weights are kept (default:
    the last). save_every: steps between two writings of ``last.ckpt``. sheet_every, sheet: steps between two sheets (0:
    none), and target + params of what draws them. log_every: steps between two rows of the metrics. cache_latents:
    encode all pictures before the first step. edit_defaults, text_defaults: settings that editing, or making pictures
    from text, with the kept weights starts from. weights_suffix: of the kept weights, ".safetensors" or ".ckpt".
    wandb: a Weights & Biases project to log to, too. validate_every: steps between two validations on held-out pairs
    (0: none). drift_every, drift: steps between two measures of subject, leak and background (0: none), and target +
    params of what measures them.

    Raises UserError for what makes no sense.
    """

    max_steps: int = 800
    seed: int = 23
    precision: str = "auto"
    accumulate: int = 1
    gradient_clip: float | None = None
    devices: int = 1
    num_nodes: int = 1
    keep_at: list[int] = field(default_factory=list)
    save_every: int = 250
    sheet_every: int = 0
    sheet: dict[str, Any] | None = None
    log_every: int = 10
    cache_latents: bool = False
    edit_defaults: dict[str, Any] | None = None
    text_defaults: dict[str, Any] | None = None
    weights_suffix: str = ".safetensors"
    wandb: str | None = None
    validate_every: int = 0
    drift_every: int = 0
    drift: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.weights_suffix not in SUFFIXES:
            raise UserError(f"training.weights_suffix is '{self.weights_suffix}'; known: {', '.join(SUFFIXES)}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"training.{name} is {getattr(self, name)}; a whole number from {least} is expected")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise UserError(
                f"training.gradient_clip is {self.gradient_clip:g}; a number above 0, or null for none, is expected"
            )
        late = [step for step in self.keep_at if not 1 <= step <= self.max_steps]
        if late:
            raise UserError(
                f"training.keep_at names step {late[0]}, but the run has steps 1 to {self.max_steps}; "
                f"give training.keep_at=[{self.max_steps}], too"
            )
        settings(EditSettings, self.edit_defaults, "training.edit_defaults")
        settings(TextSettings, self.text_defaults, "training.text_defaults")
        for name in ("sheet", "drift"):
            if getattr(self, f"{name}_every") and not getattr(self, name):
                raise UserError(f"training.{name}_every is set, but training.{name} names nothing to do it with")

    @classmethod
    def of(cls, config: DictConfig) -> TrainSettings:
        """Return those of a whole config's ``training`` section. Raises UserError."""
        return settings(cls, config.get("training"), "training")

    @property
    def kept_steps(self) -> list[int]:
        """The steps whose weights are kept."""
        return self.keep_at or [self.max_steps]


def load_training_config(
    path: str | Path, overrides: Sequence[str] = (), texts: Mapping[str, str] | None = None
) -> DictConfig:
    """Read a config to train by, as ``load_config`` does; an override may set any field of ``TrainSettings``."""
    return load_config(path, list(overrides), {"training": [f.name for f in fields(TrainSettings)]}, texts)
