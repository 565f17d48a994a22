"""What a subject's training gains and costs while it runs, and which of the kept steps is the best of them.

Three figures, all against the frozen model that the run began with, none of which needs another network:

- subject: edited with the identifier, how much of the way from the input to the subject's photo is gone (0 to 1).
- leak: edited without the identifier, how much further towards the photo than the frozen model goes.
- background: PSNR of edits with the identifier against their inputs, where the frozen model's answer changes nothing.

"The way" is a distance between pictures: of DINO features where a DINO is given, else of coarse colours (CIELAB).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab

from ldm.data import instructions as words
from ldm.data.datamodule import PairDataModule
from ldm.data.images import to_images
from ldm.data.pairs import replacement_pairs
from ldm.errors import UserError
from ldm.files import write_json
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.training.callbacks import evaluating
from ldm.typed import settings as typed_settings

logger = logging.getLogger(__name__)

UNTOUCHED = 0.08  # of the range [-1, 1]: less change by the frozen model counts as background
BACKGROUND_WEIGHT = 1 / 20  # in the score, 2 dB of background lost weigh a tenth of the subject

Row = dict[str, float]


def coarse_colours(x: torch.Tensor) -> torch.Tensor:
    """Return pictures ``n 3 h w`` in [-1, 1] as ``n d``: CIELAB over 16 x 16 averages."""
    return F.adaptive_avg_pool2d(rgb_to_lab(((x.float() + 1) / 2).clamp(0, 1)), 16).flatten(1)


def progress_to_goal(
    x: torch.Tensor, start: torch.Tensor, goal: torch.Tensor, describe: Callable = coarse_colours
) -> float:
    """Return how much of the way from ``start`` to ``goal`` pictures ``x`` have gone: 1 at the goal, 0 as far from it
    as the start, below 0 farther. The mean over the batch."""
    far, left = describe(start) - describe(goal), describe(x) - describe(goal)
    return (1 - left.norm(dim=1) / far.norm(dim=1).clamp(min=1e-6)).mean().item()


def kept_psnr(x: torch.Tensor, input: torch.Tensor, answer: torch.Tensor) -> float:
    """Return the PSNR in dB of ``x`` against ``input`` where ``answer`` (the frozen model's) leaves the input alone."""
    change = F.avg_pool2d((answer - input).abs().amax(1, keepdim=True), 5, stride=1, padding=2)
    outside = (change < UNTOUCHED).float()
    error = ((x - input).square().mean(1, keepdim=True) / 4 * outside).flatten(1).sum(1)
    area = outside.flatten(1).sum(1)
    there = area > 0
    if not bool(there.any()):
        return 0.0
    return (-10 * torch.log10((error[there] / area[there]).clamp(min=1e-6))).mean().item()


def score(row: Row, frozen: Row) -> float:
    """Return one number for a step: the subject, less the leak, less what the background lost."""
    lost = max(0.0, frozen["background"] - row["background"])
    return row["subject"] - max(0.0, row["leak"]) - BACKGROUND_WEIGHT * lost


class Monitor(pl.Callback):
    """Measure a run in training at set steps, log what was found, and name the best of its kept steps at the end."""

    def __init__(self, every: int, keep_at: list[int], folder: Path, suffix: str):
        """every: steps; keep_at: steps whose weights are kept, always measured; folder, suffix: where and how those
        are written."""
        self.every, self.keep_at, self.folder, self.suffix = every, set(keep_at), folder, suffix
        self.rows: dict[int, Row] = {}
        self._done = -1

    def measure(self, module: Any, step: int) -> Row:
        """Return the figures of a model; step 0 is the frozen one."""
        raise NotImplementedError

    def score(self, row: Row) -> float:
        """Return one number for a step's figures, higher is better."""
        raise NotImplementedError

    def describe(self, row: Row) -> str:
        """Return a step's figures in words."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to know of the steps before."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was measured before."""
        self.rows = dict(state_dict["rows"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the frozen model."""
        self._done = trainer.global_step
        if trainer.global_step == 0:
            self._run(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Measure at this step if it is due."""
        step = trainer.global_step
        if step != self._done and (step % self.every == 0 or step in self.keep_at):
            self._run(trainer, pl_module)

    def _run(self, trainer: pl.Trainer, module: Any) -> None:
        step = self._done = trainer.global_step
        if not trainer.is_global_zero:
            return
        with evaluating(trainer, module):
            self.rows[step] = self.measure(module, step)
        for log in trainer.loggers:
            log.log_metrics({f"drift/{name}": value for name, value in self.rows[step].items()}, step=step)

    def best(self) -> dict[str, Any] | None:
        """Return the best kept step with its figures and the reason; None before one is kept."""
        kept = [step for step in sorted(self.rows) if step in self.keep_at]
        if not kept or 0 not in self.rows:
            return None
        scores = {step: self.score(row) for step, row in self.rows.items() if step > 0}
        step = max(kept, key=lambda s: scores[s])
        others = [f"step {s} scores {scores[s]:.2f}: {self.describe(self.rows[s])}" for s in kept if s != step]
        why = f"step {step} scores {scores[step]:.2f}: {self.describe(self.rows[step])}"
        return {
            "weights": f"step={step}{self.suffix}",
            "step": step,
            "score": scores[step],
            "why": "; ".join([why, *others]),
            "frozen": self.rows[0],
            "steps": self.rows,
        }

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``checkpoints/best.json`` and say which step it names and why."""
        best = self.best()
        if best is None or not trainer.is_global_zero:
            return
        write_json(self.folder / "best.json", best, indent=1)
        logger.info("best of the kept steps: %s (frozen: %s)", best["why"], self.describe(best["frozen"]))
        better = max((s for s in self.rows if s), key=lambda s: self.score(self.rows[s]))
        if better not in self.keep_at and self.score(self.rows[better]) > best["score"] + 0.02:
            logger.info("step %d was better still; training.keep_at=[%d] would keep it", better, better)


class DriftMonitor(Monitor):
    """Log ``drift/subject``, ``drift/leak`` and ``drift/background`` at set steps, and name the best kept step."""

    def __init__(
        self,
        data: PairDataModule,
        every: int,
        keep_at: list[int],
        folder: Path,
        suffix: str,
        pairs: int = 6,
        settings: dict[str, Any] | None = None,
        dino: str | None = None,
    ):
        """data: with instance and regularization pairs; held-out instance pairs are used where there are any. every,
        keep_at, folder, suffix: see ``Monitor``. pairs: how many of each stream; settings: of the edits, see
        ``EditSettings``; dino: a DINO ViT-S/16 by folder.

        Raises UserError for data without regularization pairs, or without pairs at all.
        """
        super().__init__(every, keep_at, folder, suffix)
        streams = {name: getattr(s, "dataset", s) for name, s in data.streams.items()}
        if "reg" not in streams or not hasattr(streams["instance"], "pairs"):
            raise UserError("training.drift_every needs instance and regularization pairs (PersonalizedEdit)")
        if pairs < 1:
            raise UserError(f"training.drift.params.pairs is {pairs}; at least 1 is needed")
        self.settings = typed_settings(EditSettings, settings, "training.drift.params.settings")
        self._plain_at_start = 0.0
        subject, reg = streams["instance"], streams["reg"]
        self.input, self.photo, chosen = _some(
            subject, replacement_pairs(subject.held_out) or replacement_pairs(subject.entries), pairs
        )
        self.reg_input, self.reg_answer, reg_chosen = _some(reg, replacement_pairs(reg.entries), pairs)
        self.prompts, self.plain_prompts = (
            [_prompt(subject, pair, name) for pair in chosen] for name in (subject.identifier, "")
        )
        self.tell_leak = [i for i, (a, b) in enumerate(zip(self.prompts, self.plain_prompts, strict=True)) if a != b]
        if not self.tell_leak:
            logger.warning("no pair's instruction has the identifier: drift/leak cannot be told and stays 0")
        self.reg_prompts = [_prompt(subject, pair, subject.identifier) for pair in reg_chosen]
        self._describe = described_by(dino) or coarse_colours

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to know of the steps before."""
        return {"rows": self.rows, "plain_begun": self._plain_at_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was measured before."""
        self.rows, self._plain_at_start = dict(state_dict["rows"]), state_dict["plain_begun"]

    def measure(self, module: Any, step: int) -> Row:
        """Return subject, leak and background of an editor."""
        editor = ImageEditor(module)

        def edited(x: torch.Tensor, texts: list[str]) -> torch.Tensor:
            return editor.sample(x, texts, self.settings, range(len(x))).clamp(-1, 1).cpu()

        subject = progress_to_goal(edited(self.input, self.prompts), self.input, self.photo, self._describe)
        plain = 0.0
        if self.tell_leak:
            start, goal = self.input[self.tell_leak], self.photo[self.tell_leak]
            plain = progress_to_goal(
                edited(start, [self.plain_prompts[i] for i in self.tell_leak]), start, goal, self._describe
            )
        if step == 0:
            self._plain_at_start = plain
        background = kept_psnr(edited(self.reg_input, self.reg_prompts), self.reg_input, self.reg_answer)
        return {"subject": subject, "leak": plain - self._plain_at_start, "background": background}

    def score(self, row: Row) -> float:
        """Return the subject, less leak and lost background, see ``score``."""
        return score(row, self.rows[0])

    def describe(self, row: Row) -> str:
        """Return a step's figures in words."""
        return f"subject {row['subject']:.2f}, leak {row['leak']:.2f}, background {row['background']:.1f} dB"


def described_by(dino: str | None) -> Callable | None:
    """Return a function from pictures in [-1, 1] to DINO features, or None without a folder."""
    if not dino:
        return None
    from ldm.models.backbones import Dino

    model = Dino(dino)
    return lambda x: model.images(to_images(x))


def _some(stream: Any, entries: list[Any], n: int) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """Return the inputs and the edited pictures of n entries, spread over the list, and the entries."""
    chosen = [entries[i * len(entries) // min(n, len(entries))] for i in range(min(n, len(entries)))]
    shown = [stream.pictures(entry, False, np.random.default_rng(0), stream.view.size) for entry in chosen]
    return torch.stack([s["input"] for s in shown]), torch.stack([s["edited"] for s in shown]), chosen


def _prompt(subject: Any, pair: Any, identifier: str) -> str:
    """Return a pair's own instruction, or the subject's first one for it, with or ("") without the identifier."""
    if pair.instruction is not None:
        words_of = words.with_identifier(pair.instruction, subject.identifier).split()
        return " ".join(w for w in words_of if identifier or w != subject.identifier)
    source = pair.source_word or subject.source_word or "picture"
    return words.fill(subject.templates[0], identifier, subject.class_word or "", source)
