"""LatentDiffusion: a first stage, a text encoder and a denoising UNet, by the published names."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ldm.checkpoint.load import LoadReport, load_into
from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.checkpoint.save import exported
from ldm.config import instantiate_from_config
from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.objective import Objective
from ldm.diffusion.parameterization import check_parameterization, target, to_eps
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.errors import UserError
from ldm.models.optimizer import make_optimizer
from ldm.models.randomness import BatchNoise, step_generator
from ldm.modules.ema import LitEma
from ldm.typed import settings

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
        """Return the UNet's prediction ``b c h w``. Raises UserError if a picture is missing or not wanted."""
        if self.concatenates != (conditioning.c_concat is not None):
            need = "needs" if self.concatenates else "takes no"
            raise UserError(f"this model {need} the latent of an input picture (c_concat)")
        if self.concatenates:
            z_t = torch.cat([z_t, conditioning.c_concat.to(z_t)], dim=1)
        return self.diffusion_model(z_t, t, conditioning.c_crossattn)


class LatentDiffusion(pl.LightningModule):
    """The one model of all recipes: text to image (crossattn) and editing (hybrid); YAML chooses."""

    STRUCTURE = (  # parameters that describe the network; the others are training's
        "unet_config",
        "first_stage_config",
        "cond_stage_config",
        "timesteps",
        "beta_schedule",
        "linear_start",
        "linear_end",
        "parameterization",
        "conditioning_key",
        "scale_factor",
    )

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
        use_ema: bool = True,
        ema_decay: float = 0.9999,
        cond_stage_trainable: bool = False,
        ckpt_path: str | None = None,
        weights: str = "auto",
        unet_trainable: bool = True,
        learning_rate: float = 1e-6,
        optimizer_config: Any = None,
        scheduler_config: Any = None,
        objective_config: Any = None,
    ):
        """Build the parts from their configs, and load ``ckpt_path`` into them if it is given.

        scale_factor: multiplies the latent that is diffused (not ``c_concat``). weights: "ema", "raw" or "auto",
        which copy of the UNet to load. The rest is for training: unet_trainable and cond_stage_trainable say what
        learns, objective_config how (see ``Objective``). Raises UserError for what makes no sense or does not fit.
        """
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            raise UserError(f"unknown conditioning_key '{conditioning_key}'; known: {', '.join(CONDITIONING_KEYS)}")
        self.parameterization = check_parameterization(parameterization)
        self.conditioning_key = conditioning_key
        if not scale_factor > 0:
            raise UserError(f"scale_factor is {scale_factor!r}; a number above 0 is expected")
        self.scale_factor = scale_factor
        self.cond_stage_trainable = cond_stage_trainable
        self.schedule = Schedule(make_betas(timesteps, linear_start, linear_end, beta_schedule))
        self.model = DiffusionWrapper(instantiate_from_config(unet_config), conditioning_key)
        self.first_stage_model = instantiate_from_config(first_stage_config).requires_grad_(False)
        self.cond_stage_model = instantiate_from_config(cond_stage_config).requires_grad_(cond_stage_trainable)
        self.model.requires_grad_(unet_trainable)
        self.learning_rate = learning_rate
        self.optimizer_config, self.scheduler_config = optimizer_config, scheduler_config
        self.objective = settings(Objective, objective_config, "model.params.objective_config")
        self._check_parts()
        if ckpt_path is not None:
            logger.info(self.load_checkpoint(ckpt_path, weights).summary())
        self.model_ema = LitEma(self.model, ema_decay) if use_ema else None

    def _check_parts(self) -> None:
        """Raise UserError for parts that do not fit together."""
        if not any(True for _ in self.cond_stage_model.parameters()):
            kind = type(self.cond_stage_model).__name__
            raise UserError(f"cond_stage_config builds a {kind}, which has no weights: a text encoder is expected")
        if not self.learning_rate >= 0:
            raise UserError(f"model.params.learning_rate is {self.learning_rate!r}; a number from 0 is expected")
        unet, latent = self.model.diffusion_model, self.first_stage_model.embed_dim
        expected = latent * (2 if self.model.concatenates else 1)
        if (unet.in_channels, unet.out_channels) != (expected, latent):
            raise UserError(
                f"conditioning_key '{self.conditioning_key}' with a first stage of {latent} latent channels needs a "
                f"UNet with in_channels {expected} and out_channels {latent}, "
                f"found {unet.in_channels} and {unet.out_channels}"
            )

    def load_checkpoint(self, source: Any, weights: str = "auto", dtype_of: Any = None) -> LoadReport:
        """Load UNet, first stage and text encoder from a path or an open ``Checkpoint``; see ``load_into``.

        A file that carries a noise schedule other than this model's is refused (UserError).
        """
        checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
        self.check_meaning(checkpoint)
        return load_into(self, checkpoint, weights, dtype_of)

    def check_meaning(self, checkpoint: Checkpoint) -> None:
        """Refuse (UserError) weights that say themselves that they mean another noise schedule, another prediction or
        another scale of the latents than this model's."""
        theirs, ours = checkpoint.tensors.get("alphas_cumprod"), self.schedule.alphas_cumprod
        if theirs is not None and (theirs.shape != ours.shape or (theirs.float() - ours).abs().max() > 1e-3):
            raise UserError(f"'{checkpoint.path}' has another noise schedule than the config (alphas_cumprod)")
        config = checkpoint.metadata.get("config")
        node = config.get("model") if isinstance(config, dict) else None
        params = node.get("params") if isinstance(node, dict) else None
        if checkpoint.format == "diffusers":  # its scheduler's config
            params = checkpoint.metadata
        for name in ("parameterization", "scale_factor") if isinstance(params, dict) else ():
            theirs, ours = params.get(name), getattr(self, name)
            if theirs is not None and theirs != ours:
                raise UserError(
                    f"'{checkpoint.path}' was trained with {name} {theirs!r}, the config says {ours!r}; set "
                    f"model.params.{name}={theirs}"
                )

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
        self,
        z: torch.Tensor,
        conditioning: Conditioning,
        t: torch.Tensor,
        noise: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of each sample, ``(b,)``, at time indices ``t`` (integers) with the given noise.

        z, noise: ``b c h w``, z scaled; weight: ``b 1 h w`` on the positions, None for equal ones.
        Ho et al. 2020, eq. 14, for eps; the same error of the other targets. While training with
        dream_detail_preservation the noise is ``rectified_noise`` of what is given.
        """
        alpha, sigma = self.schedule.alpha_sigma(t, z)
        objective = self.objective
        if self.training and objective.dream_detail_preservation is not None:
            with torch.no_grad():
                z_t = self.schedule.add_noise(z, noise, t)
                predicted = self.apply_model(z_t, t, conditioning).float()
                predicted = to_eps(self.parameterization, predicted, z_t, alpha, sigma)
            noise = objective.rectified(noise, predicted, sigma)
        prediction = self.apply_model(self.schedule.add_noise(z, noise, t), t, conditioning)
        wanted = target(self.parameterization, z, noise, alpha, sigma)
        return objective.sample_losses(prediction, wanted, weight, self.schedule, t, self.parameterization)

    def latents(self, batch: dict[str, Any], draw: BatchNoise) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scaled latent of ``edited`` and the unscaled one of ``input`` (None without), without gradient.

        batch: pictures (``edited``, ``input``) or what ``LatentCache`` made of them; draw: gives the posterior's noise.
        """
        with torch.no_grad():
            if "edited_mean" in batch:
                mean, std, c_concat = batch["edited_mean"], batch["edited_std"], batch.get("c_concat")
            else:
                posterior = self.encode_first_stage(batch["edited"])
                mean, std = posterior.mean, (0.5 * posterior.logvar).exp()
                c_concat = self.picture_condition(batch["input"]) if "input" in batch else None
            z = mean + std * draw.randn(mean.shape).to(mean)
        return z.float() * self.scale_factor, None if c_concat is None else c_concat.float()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        """Return the loss of a batch; its halves are logged as train/instance and train/reg.

        batch: what ``latents`` takes, ``text`` (b strings), and optionally ``is_reg`` (b booleans) and ``seed`` (b
        integers). All random numbers come from the run's seed and the step, or each sample's seed.
        """
        draw = BatchNoise(step_generator(self, batch_index), getattr(self, "run_seed", 0), batch.get("seed"))
        z, c_concat = self.latents(batch, draw)
        objective, device = self.objective, z.device
        t = objective.times(draw.rand(len(z)), len(self.schedule)).to(device)
        noise = objective.noise(tuple(z.shape), draw.randn, device)
        conditioning, u = Conditioning(self._states_for_training(batch["text"]), c_concat), None
        if objective.drops:
            null, u = self._states_for_training([""]), draw.rand(len(z))
            conditioning = objective.drop(conditioning, null, u)
        source = None if c_concat is None else c_concat * self.scale_factor
        losses = self.p_losses(z, conditioning, t, noise, objective.position_weights(z, source))
        is_reg = batch.get("is_reg", torch.zeros(len(z), dtype=torch.bool, device=device))
        loss, parts = objective.join(losses, is_reg, u)
        self.log("train/loss", loss.detach())
        self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()}, prog_bar=True)
        return loss

    def _states_for_training(self, texts: list[str]) -> torch.Tensor:
        with torch.set_grad_enabled(self.cond_stage_trainable and torch.is_grad_enabled()):
            return self.get_learned_conditioning(texts)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the averages: before any hook that saves, so that what is saved belongs together."""
        super().optimizer_step(*args, **kwargs)
        if self.model_ema is not None:
            self.model_ema.update(self.model)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser of all that is to learn."""
        return make_optimizer(self.named_parameters(), self.learning_rate, self.optimizer_config, self.scheduler_config)

    def export_state(self) -> dict[str, torch.Tensor]:
        """Return the weights to ship by their published names, averaged if there is an average: in fp16, on the CPU."""
        with self.ema_scope():
            return exported(self)

    @contextmanager
    def ema_scope(self):
        """Use the averaged weights inside the ``with`` block; without EMA, do nothing."""
        if self.model_ema is None:
            yield
            return
        with self.model_ema.swapped_into(self.model):
            yield
