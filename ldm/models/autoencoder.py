"""The first stage: pictures to latents and back (AutoencoderKL)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ldm.checkpoint.diffusers_format import FIRST_STAGE
from ldm.checkpoint.load import load_into
from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.checkpoint.save import exported
from ldm.config import instantiate_from_config
from ldm.errors import UserError
from ldm.models.optimizer import make_optimizer
from ldm.models.randomness import step_generator
from ldm.modules.distributions import DiagonalGaussian
from ldm.modules.ema import LitEma
from ldm.modules.vae_blocks import Decoder, Encoder
from ldm.typed import nearest


def split_ddconfig(ddconfig: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the encoder's and the decoder's parameters from upstream's common ``ddconfig``.

    Raises UserError for a missing or unknown key.
    """
    if not isinstance(ddconfig, Mapping):
        raise UserError(f"ddconfig must be a mapping, found {ddconfig!r}"[:200])
    needed = ("ch", "ch_mult", "num_res_blocks", "z_channels", "resolution")
    known = (*needed, "in_channels", "out_ch", "attn_resolutions", "dropout", "double_z", "num_groups")
    for key in ddconfig:
        if key not in known:
            raise UserError(f"ddconfig has no key '{key}'{nearest(str(key), list(known))}")
    missing = [key for key in needed if key not in ddconfig]
    if missing:
        raise UserError(f"ddconfig lacks {', '.join(missing)}")
    encoder = {k: v for k, v in ddconfig.items() if k != "out_ch"}
    decoder = {k: v for k, v in ddconfig.items() if k not in ("in_channels", "double_z")}
    return encoder, decoder


class AutoencoderKL(pl.LightningModule):
    """A convolutional autoencoder with a diagonal normal latent (Rombach et al. 2022)."""

    STRUCTURE = ("ddconfig", "embed_dim")  # parameters that describe the network; the others are training's

    def __init__(
        self,
        ddconfig: dict[str, Any],
        embed_dim: int,
        ckpt_path: str | None = None,
        lossconfig: Any = None,
        learning_rate: float = 4.5e-6,
        optimizer_config: Any = None,
        scheduler_config: Any = None,
        use_ema: bool = False,
        ema_decay: float = 0.999,
        decoder_only: bool = False,
    ):
        """Build it with random weights, or with those of ``ckpt_path`` (a first stage alone, or a whole model).

        ddconfig: ch, ch_mult, num_res_blocks, z_channels, resolution, attn_resolutions, in_channels, out_ch,
        dropout, double_z (must be true), num_groups. embed_dim: channels of the latent. lossconfig and what follows
        are for training: the loss (``ReconstructionLoss``), the optimiser and the average of the weights;
        decoder_only: the encoder stays, so models that live in its latents need not follow (as the published
        ``sd-vae-ft-mse`` was made). Raises UserError for a loss that then has terms without effect.
        """
        super().__init__()
        encoder, decoder = split_ddconfig(ddconfig)
        if not ddconfig.get("double_z", True):
            raise UserError("AutoencoderKL needs ddconfig.double_z: true (mean and log-variance)")
        self.embed_dim = embed_dim
        self.downsampling = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.encoder = Encoder(**encoder)
        self.decoder = Decoder(**decoder)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self.learning_rate, self.optimizer_config, self.scheduler_config = (
            learning_rate,
            optimizer_config,
            scheduler_config,
        )
        loss = instantiate_from_config(lossconfig) if lossconfig else None
        self.decoder_only = decoder_only
        if decoder_only:
            self._freeze_encoder(loss)
        if ckpt_path is not None:
            load_first_stage(self, ckpt_path)
        self.model_ema = LitEma(self, ema_decay) if use_ema else None
        self.loss = loss  # last: a loss may have a network of its own, which is neither loaded nor averaged

    def _freeze_encoder(self, loss: Any) -> None:
        idle = [name for name in ("kl", "whiten") if getattr(loss, name, 0)]
        if idle:
            raise UserError(
                f"decoder_only leaves the latents as they are: {' and '.join(idle)} would have no effect; set "
                f"{', '.join(f'model.params.lossconfig.params.{name}=0' for name in idle)}"
            )
        for part in (self.encoder, self.quant_conv):
            part.requires_grad_(False)

    def encode(self, x: torch.Tensor) -> DiagonalGaussian:
        """Return the latent's distribution. x: ``b 3 H W`` in [-1, 1]; latents are ``b embed_dim H/f W/f``."""
        return DiagonalGaussian(self.quant_conv(self.encoder(x.to(next(self.encoder.norm_out.parameters()).dtype))))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return pictures ``b 3 H W``, about [-1, 1] (not clamped), from latents ``b embed_dim h w``."""
        return self.decoder(self.post_quant_conv(z.to(next(self.decoder.norm_out.parameters()).dtype)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction by the latent's mean."""
        return self.decode(self.encode(x).mode())

    def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        """Return the loss of a batch: ``edited`` pictures and, optionally, a ``weight`` for each pixel, and the
        unscaled latents ``z`` to draw them from (with ``decoder_only``; else those that the encoder makes)."""
        x, posterior = batch["edited"], None
        if "z" in batch:
            z = batch["z"]
        else:
            posterior = self.encode(x)
            z = posterior.sample(step_generator(self, batch_index))
        reconstruction = self.decode(z)
        loss, parts = self.loss(x, reconstruction, posterior, batch.get("weight"))
        self.log_dict({f"train/{name}": value.detach() for name, value in {"loss": loss, **parts}.items()})
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the averages: before any hook that saves, so that what is saved belongs together."""
        super().optimizer_step(*args, **kwargs)
        if self.model_ema is not None:
            self.model_ema.update(self)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser of all parameters that are to learn."""
        if self.loss is None:
            raise UserError(
                "training a first stage needs a lossconfig, such as ldm.modules.first_stage_loss.ReconstructionLoss"
            )
        return make_optimizer(self.named_parameters(), self.learning_rate, self.optimizer_config, self.scheduler_config)

    @contextmanager
    def ema_scope(self):
        """Use the averaged weights inside the ``with`` block; without EMA, do nothing."""
        with self.model_ema.swapped_into(self) if self.model_ema is not None else nullcontext():
            yield

    def export_state(self) -> dict[str, torch.Tensor]:
        """Return the weights to ship by their published names, averaged if there is an average: in fp16, on the CPU."""
        with self.ema_scope():
            kept = {name: tensor for name, tensor in exported(self).items() if not name.startswith("loss.")}
        return {f"{FIRST_STAGE}{name}": tensor for name, tensor in kept.items()}


class _As(nn.Module):
    def __init__(self, first_stage: nn.Module):
        super().__init__()
        self.first_stage_model = first_stage


def load_first_stage(first_stage: nn.Module, path: str, dtype: torch.dtype | None = None) -> str:
    """Load a first stage from a file of its own (``--vae-ckpt``) or from a whole model; return the report's text."""
    holder, checkpoint = _As(first_stage), read_checkpoint(path)
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(FIRST_STAGE)}
    checkpoint = Checkpoint(checkpoint.path, checkpoint.format, own, checkpoint.metadata)
    report = load_into(holder, checkpoint, "raw", (lambda name: dtype) if dtype else None)
    return report.summary()
