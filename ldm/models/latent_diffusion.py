"""LatentDiffusion: a first stage, a text encoder and a denoising UNet, by the published names."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ldm.checkpoint import Checkpoint, LoadReport, load_into, read_checkpoint
from ldm.config import instantiate_from_config
from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.loss import sample_losses
from ldm.diffusion.parameterization import check_parameterization, target
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.modules.ema import LitEma

logger = logging.getLogger(__name__)

# conditioning_key -> whether the input picture's latent is concatenated to the noised one
CONDITIONING_KEYS = {"crossattn": False, "hybrid": True}


class DiffusionWrapper(nn.Module):
    """Holds the UNet under its published name and hands it the conditioning."""

    def __init__(self, unet: nn.Module, conditioning_key: str):
        super().__init__()
        self.diffusion_model = unet
        self.concatenates = CONDITIONING_KEYS[conditioning_key]

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the UNet's prediction ``b c h w``. Raises ValueError if a picture is missing or not wanted."""
        if self.concatenates != (conditioning.c_concat is not None):
            need = "needs" if self.concatenates else "takes no"
            raise ValueError(f"this model {need} the latent of an input picture (c_concat)")
        if self.concatenates:
            z_t = torch.cat([z_t, conditioning.c_concat.to(z_t)], dim=1)
        return self.diffusion_model(z_t, t, conditioning.c_crossattn)


class LatentDiffusion(pl.LightningModule):
    """The one model of all recipes: text to image (crossattn) and editing (hybrid); YAML chooses."""

    def __init__(
        self,
        unet_config: Any,
        first_stage_config: Any,
        cond_stage_config: Any,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 0.00085,
        linear_end: float = 0.0120,
        parameterization: str = "eps",
        conditioning_key: str = "crossattn",
        scale_factor: float = 0.18215,
        loss_type: str = "l2",
        use_ema: bool = True,
        ema_decay: float = 0.9999,
        cond_stage_trainable: bool = False,
        ckpt_path: str | None = None,
        weights: str = "auto",
    ):
        """Build the parts from their configs, and load ``ckpt_path`` into them if it is given.

        scale_factor: multiplies the latent that is diffused (not ``c_concat``). weights: "ema", "raw" or "auto",
        which copy of the UNet to load. Raises ValueError for unknown names or a checkpoint that does not fit.
        """
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            raise ValueError(f"unknown conditioning_key '{conditioning_key}'; known: {', '.join(CONDITIONING_KEYS)}")
        self.parameterization = check_parameterization(parameterization)
        self.conditioning_key = conditioning_key
        self.scale_factor = scale_factor
        self.loss_type = loss_type
        self.cond_stage_trainable = cond_stage_trainable
        self.schedule = Schedule(make_betas(timesteps, linear_start, linear_end, beta_schedule))
        self.model = DiffusionWrapper(instantiate_from_config(unet_config), conditioning_key)
        self.first_stage_model = instantiate_from_config(first_stage_config).requires_grad_(False)
        self.cond_stage_model = instantiate_from_config(cond_stage_config).requires_grad_(cond_stage_trainable)
        self._check_channels()
        if ckpt_path is not None:
            logger.info(self.load_checkpoint(ckpt_path, weights).summary())
        self.model_ema = LitEma(self.model, ema_decay) if use_ema else None

    def _check_channels(self) -> None:
        unet, latent = self.model.diffusion_model, self.first_stage_model.embed_dim
        expected = latent * (2 if self.model.concatenates else 1)
        if (unet.in_channels, unet.out_channels) != (expected, latent):
            raise ValueError(
                f"conditioning_key '{self.conditioning_key}' with a first stage of {latent} latent channels needs a "
                f"UNet with in_channels {expected} and out_channels {latent}, "
                f"found {unet.in_channels} and {unet.out_channels}"
            )

    def load_checkpoint(self, source: Any, weights: str = "auto", dtype_of: Any = None) -> LoadReport:
        """Load UNet, first stage and text encoder from a path or an open ``Checkpoint``; see ``load_into``.

        A file that carries a noise schedule other than this model's is refused (ValueError).
        """
        checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
        theirs, ours = checkpoint.tensors.get("alphas_cumprod"), self.schedule.alphas_cumprod
        if theirs is not None and (theirs.shape != ours.shape or (theirs.float() - ours).abs().max() > 1e-3):
            raise ValueError(f"'{checkpoint.path}' has another noise schedule than the config (alphas_cumprod)")
        return load_into(self, checkpoint, weights, dtype_of)

    @property
    def has_picture_input(self) -> bool:
        """Whether the model edits pictures (hybrid) rather than making them from text alone."""
        return self.model.concatenates

    @property
    def latent_channels(self) -> int:
        """Channels of the latent (4 at full size)."""
        return self.first_stage_model.embed_dim

    def grid(self) -> int:
        """Return the number of pixels that a picture's sides must be a multiple of."""
        levels = 2 ** sum(type(m).__name__ == "Downsample" for m in self.model.diffusion_model.modules())
        return self.first_stage_model.downsampling * levels

    def apply_model(self, z_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the network's prediction (eps, v or x0). z_t: ``b c h w``; t: ``(b,)``, may be fractional."""
        return self.model(z_t, t, conditioning)

    def denoiser(self) -> Denoiser:
        """Return this model as D(z, sigma, conditioning)."""
        return Denoiser(self.apply_model, self.schedule, self.parameterization)

    def get_learned_conditioning(self, texts: list[str]) -> torch.Tensor:
        """Return the text states ``b 77 d``."""
        return self.cond_stage_model(list(texts))

    def encode_first_stage(self, x: torch.Tensor):
        """Return the latent's distribution (``.mean .logvar .mode() .sample()``), unscaled.

        x: ``b 3 H W`` in [-1, 1].
        """
        return self.first_stage_model.encode(x)

    def decode_first_stage(self, z: torch.Tensor) -> torch.Tensor:
        """Return pictures ``b 3 H W``, about [-1, 1], from diffused (scaled) latents ``b c h w``."""
        return self.first_stage_model.decode(z / self.scale_factor)

    def picture_condition(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``c_concat`` of input pictures ``b 3 H W``: the posterior's mode, without the scale factor."""
        return self.encode_first_stage(x).mode()

    def p_losses(
        self, z: torch.Tensor, conditioning: Conditioning, t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of each sample, ``(b,)``, at time indices ``t`` (integers) with the given noise.

        z, noise: ``b c h w``, z scaled. Ho et al. 2020, eq. 14, for eps; the same error of the other targets.
        """
        alpha, sigma = self.schedule.alpha_sigma(t, z)
        prediction = self.apply_model(alpha * z + sigma * noise, t, conditioning)
        return sample_losses(prediction, target(self.parameterization, z, noise, alpha, sigma), self.loss_type)

    @contextmanager
    def ema_scope(self):
        """Use the averaged weights inside the ``with`` block; without EMA, do nothing."""
        if self.model_ema is None:
            yield
            return
        with self.model_ema.swapped_into(self.model):
            yield
