"""What happens beside the steps: checkpoints, pictures, and a clear end when the run is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from ldm.checkpoint.read import METADATA_KEY
from ldm.checkpoint.save import save_checkpoint
from ldm.data.images import save_image

logger = logging.getLogger(__name__)


@contextmanager
def evaluating(trainer: pl.Trainer, module: Any) -> Iterator[None]:
    """Let the model be used inside the ``with`` block as it would be after training: in evaluation mode, without
    gradients, with its averaged weights (an average of the optimiser's own, too: schedule-free ones have ``eval`` and
    ``train``), and in bf16 where the run trains in it."""
    switched = [o for o in trainer.optimizers if hasattr(o, "eval") and hasattr(o, "train")]
    module.eval()
    for optimizer in switched:
        optimizer.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(module.ema_scope())
            if trainer.precision == "bf16-mixed":  # fp16 would overflow in the published first stage
                stack.enter_context(trainer.precision_plugin.forward_context())
            yield
    finally:
        for optimizer in switched:
            optimizer.train()
        module.train()


class Checkpoints(pl.Callback):
    """Keep ``last.ckpt`` (everything, to resume from) and weights alone at named steps (to use).

    Both are written under a temporary name and then renamed.
    """

    def __init__(
        self,
        folder: Path,
        keep_at: list[int],
        every: int,
        metadata: dict[str, Any],
        suffix: str = ".safetensors",
        run_config: dict[str, Any] | None = None,
    ):
        """keep_at: optimiser steps whose weights are kept; every: steps between two writings of ``last.ckpt``; suffix:
        of the kept weights, .safetensors or .ckpt; run_config: goes into ``last.ckpt``, to be compared on resuming."""
        self.folder, self.keep_at, self.every, self.metadata = folder, set(keep_at), every, metadata
        self.suffix, self.run_config = suffix, run_config
        self._done = -1
        self._random: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step that the run begins or goes on at: nothing is due before the next one is complete."""
        self._done = trainer.global_step
        for optimizer in trainer.optimizers:
            if hasattr(optimizer, "eval") and hasattr(optimizer, "train"):
                optimizer.train()
        if self._random is not None:
            torch.set_rng_state(self._random["cpu"])
            if torch.cuda.is_available() and len(self._random["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._random["cuda"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Write what is due at this step."""
        step = trainer.global_step
        if step == self._done:
            return
        self._done = step
        if step in self.keep_at:
            self.keep(trainer, pl_module)
        if step % self.every == 0:
            self.save_last(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put what the weights carry, and the run's own config, into a full checkpoint.

        Lightning counts a batch as completed only after the hook that saves here; left so, a resumed run would do the
        next batch under this one's number, and accumulate by the wrong ones.
        """
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
        for counts in progress.values():
            if isinstance(counts, dict) and "completed" in counts:
                counts["completed"] = counts["processed"]
        checkpoint[METADATA_KEY] = {**self.metadata, "run_config": self.run_config}
        # steps draw from generators of their own; these states are for what layers draw (dropout)
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["random_states"] = {"cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take up the random states of a full checkpoint; they are set when the training goes on."""
        self._random = checkpoint.get("random_states")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt`` at the end, also when the run was told to stop."""
        self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt``: weights, optimiser, schedules, and how far the run is."""
        path = self.folder / "last.ckpt"
        temporary = path.with_name(".last.ckpt.tmp")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # torch says a full disk with a RuntimeError
            temporary.unlink(missing_ok=True)
            raise OSError(f"cannot write '{path}' ({error}); what was saved before is still there") from error

    def keep(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the weights alone, in fp16, by the published names."""
        if trainer.is_global_zero:
            path = self.folder / f"step={trainer.global_step}{self.suffix}"
            with evaluating(trainer, pl_module):
                state = pl_module.export_state()
            save_checkpoint(path, state, {**self.metadata, "step": trainer.global_step})
            logger.info("weights of step %d: %s", trainer.global_step, path)


class ProgressBar(TQDMProgressBar):
    """The bar of the run's optimiser steps, on stderr, and only where somebody watches: standard output is for results.

    Lightning's counts batches of an epoch, which a resumed run begins in the middle of.
    """

    def init_train_tqdm(self) -> Tqdm:
        """Return the bar."""
        disable = self.is_disabled or not sys.stderr.isatty()
        return Tqdm(desc="Training", disable=disable, leave=True, dynamic_ncols=True, file=sys.stderr, smoothing=0)

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Set the bar to the step that the run begins or goes on at."""
        super().on_train_start()
        self.train_progress_bar.reset(total=trainer.max_steps)
        self.train_progress_bar.initial = self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.refresh()

    def on_train_epoch_start(self, *args: Any) -> None:
        """Do nothing: Lightning would set the bar to the epoch's batches."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Show the steps that are done, and the losses."""
        step = trainer.global_step
        if self.is_enabled and (step % self.refresh_rate == 0 or step == trainer.max_steps):
            self.train_progress_bar.n = step
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))  # draws the bar, too


class Sheets(pl.Callback):
    """Make a picture of what the model does, at set steps, into the run's ``images/``."""

    def __init__(self, folder: Path, every: int, draw: Callable[[pl.LightningModule], Image.Image]):
        """draw: returns the sheet for the model, which is in evaluation mode with its averaged weights."""
        self.folder, self.every, self.draw = folder, every, draw
        self._done = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step that the run begins or goes on at."""
        self._done = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Draw at this step if it is due."""
        step = trainer.global_step
        if step == self._done or step % self.every or not trainer.is_global_zero:
            return
        self._done = step
        with evaluating(trainer, pl_module):
            sheet = self.draw(pl_module)
        save_image(sheet, self.folder / f"step={step}.png")


class StopOnSignal(pl.Callback):
    """On SIGTERM or SIGINT finish the step, save and end; a second signal ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the two signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.received = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Ask the trainer to stop after this step; inside an accumulation, after its last batch."""
        if (args[2] + 1) % trainer.accumulate_grad_batches:
            return
        stop = self.received is not None
        if trainer.world_size > 1:  # all processes stop at the same step, whichever got the signal
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop and not trainer.should_stop:
            if self.received is not None:
                logger.warning("%s received: saving and stopping", signal.Signals(self.received).name)
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
