"""A validation loss on held-out pairs that can be compared between steps: always the same noise and times."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from ldm.data.datamodule import PairDataModule
from ldm.data.encoded import encode_pairs
from ldm.diffusion.conditioning import Conditioning
from ldm.training.callbacks import evaluating

logger = logging.getLogger(__name__)


class Validation(pl.Callback):
    """Log ``val/instance`` and ``val/reg``: the loss of held-out pairs at fixed times with fixed noise."""

    def __init__(self, data: PairDataModule, every: int, times: int = 8):
        """data: a ``PairDataModule`` whose datasets hold pairs out; every: steps; times: how many time indices."""
        streams = {name: getattr(s, "dataset", s) for name, s in data.streams.items()}
        self.streams = {name: stream for name, stream in streams.items() if stream.held_out}
        if not self.streams:
            logger.warning("no pairs are held out (held_out is 0, or there are fewer than eight photos): no validation")
        self.every, self.times = every, times
        self._done, self._latents = -1, {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate what the run starts from; what a resumed run starts from was validated before it was kept."""
        self._done = trainer.global_step
        if trainer.global_step == 0:
            self._run(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Validate at this step if it is due."""
        if trainer.global_step % self.every == 0 and trainer.global_step != self._done:
            self._run(trainer, pl_module)

    def _run(self, trainer: pl.Trainer, module: Any) -> None:
        self._done = trainer.global_step
        if not trainer.is_global_zero or not self.streams:
            return
        with evaluating(trainer, module):
            losses = {f"val/{name}": self._loss(module, name) for name in self.streams}
        for log in trainer.loggers:
            log.log_metrics(losses, step=trainer.global_step)

    def _loss(self, module: Any, name: str) -> float:
        stream = self.streams[name]
        if name not in self._latents:

            def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                posterior = module.encode_first_stage(x.to(module.device))
                return posterior.mean, posterior.logvar

            self._latents[name] = encode_pairs(stream, stream.held_out, False, encode)
        kept = {key: value.to(module.device) for key, value in self._latents[name].items()}
        texts = [stream.sentence(pair, np.random.default_rng(i)) for i, pair in enumerate(stream.held_out)]
        conditioning = Conditioning(module.get_learned_conditioning(texts), kept.get("c_concat"))
        z = kept["edited_mean"] * module.scale_factor
        generator = torch.Generator().manual_seed(0)
        losses = []
        for k in range(self.times):
            t = torch.full((len(z),), int((k + 0.5) * len(module.schedule) / self.times), device=z.device)
            noise = torch.randn(z.shape, generator=generator).to(z)
            losses.append(module.p_losses(z, conditioning, t, noise).mean())
        return torch.stack(losses).mean().item()
