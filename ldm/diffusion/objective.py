"""What a diffusion model learns and how it is weighed: the one place of the loss' options.

objective_config: {reg_weight: 0.5, dropout_text: 0.05}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from ldm.diffusion.conditioning import Conditioning, drop_conditioning, dropped
from ldm.diffusion.loss import change_weights, min_snr_weights, prior_preservation, rectified_noise, sample_losses
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

LOSS_TYPES = ("l2", "l1")
Random = Callable[[tuple[int, ...]], torch.Tensor]  # random numbers of a shape, the batch first


@dataclass(frozen=True)
class Objective:
    """The loss of a batch: which times and noise it is taken at, what is dropped, and what each part of it counts.

    loss_type: "l2" or "l1". reg_weight: of the regularization half of a batch (DreamBooth, eq. 2). dropout_text,
    dropout_image, dropout_both: probabilities of dropping the text, the picture, or both (InstructPix2Pix, section
    3.2.1). dropped_weight: what such a sample counts: what it is to become cannot be known, so its error is several
    times the others'. min_snr_gamma: None for the plain loss, and snr_offset: see ``min_snr_weights``. offset_noise:
    strength of noise that is the same at every position of a channel (about 0.1), beside the plain one. t_power: time
    indices are ``T u^(1/t_power)``: 1 is uniform, more draws noisier ones. change_weight: how much more a position of
    the latent counts where the pair's two pictures differ. dream_detail_preservation: None, or the power of
    ``rectified_noise`` (1 is its paper's; one more evaluation a step, without gradient).

    Raises UserError for what makes no sense.
    """

    loss_type: str = "l2"
    reg_weight: float = 1.0
    dropout_text: float = 0.0
    dropout_image: float = 0.0
    dropout_both: float = 0.0
    dropped_weight: float = 1.0
    min_snr_gamma: float | None = None
    snr_offset: float = 0.0
    offset_noise: float = 0.0
    t_power: float = 1.0
    change_weight: float = 0.0
    dream_detail_preservation: float | None = None

    def __post_init__(self) -> None:
        where = "model.params.objective_config"
        if self.loss_type not in LOSS_TYPES:
            raise UserError(f"unknown {where}.loss_type '{self.loss_type}'; known: {', '.join(LOSS_TYPES)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "loss_type" and value is not None and not value >= 0:
                raise UserError(f"{where}.{field.name} is {value!r}; a number from 0 is expected")
        if self.t_power == 0:
            raise UserError(f"{where}.t_power is 0; a number above 0 is expected (1: all times alike)")
        if sum(self.dropout.values()) > 1:
            raise UserError(f"{where}: dropout_text, dropout_image and dropout_both add up to more than 1")
        if self.snr_offset and self.min_snr_gamma is None:
            raise UserError(
                f"{where}.snr_offset is {self.snr_offset}, but min_snr_gamma is null: the loss has no such weights"
            )
        if self.dropped_weight != 1 and not any(self.dropout.values()):
            raise UserError(
                f"{where}.dropped_weight is {self.dropped_weight}, but nothing is dropped: every dropout_* is 0"
            )

    @property
    def dropout(self) -> dict[str, float]:
        """The probabilities of dropping the text, the picture, or both."""
        return {"text": self.dropout_text, "image": self.dropout_image, "both": self.dropout_both}

    @property
    def drops(self) -> bool:
        """Whether conditioning is dropped at all."""
        return any(self.dropout.values())

    def times(self, u: torch.Tensor, timesteps: int) -> torch.Tensor:
        """Return time indices ``(b,)``. u: ``(b,)`` uniform in [0, 1); timesteps: of the schedule."""
        return (timesteps * u ** (1 / self.t_power)).long().clamp(max=timesteps - 1)

    def noise(self, shape: tuple[int, ...], randn: Random, device: torch.device) -> torch.Tensor:
        """Return the noise of a batch of latents. shape: ``b c h w``; randn: gives standard normal numbers."""
        noise = randn(shape).to(device)
        if self.offset_noise:
            noise = noise + self.offset_noise * randn((*shape[:2], 1, 1)).to(device)
        return noise

    def drop(self, conditioning: Conditioning, null_text: torch.Tensor, u: torch.Tensor) -> Conditioning:
        """Return the conditioning with what ``u`` drops replaced by its null value. u: ``(b,)`` in [0, 1)."""
        return drop_conditioning(conditioning, null_text, u=u, **self.dropout)

    def position_weights(self, z: torch.Tensor, source: torch.Tensor | None) -> torch.Tensor | None:
        """Return weights ``b 1 h w`` of the latent's positions, None where all count alike.

        z, source: ``b c h w``, the pair's two pictures as latents of one scale; source: None without an input picture.
        """
        return change_weights(z, source, self.change_weight) if self.change_weight and source is not None else None

    def rectified(self, noise: torch.Tensor, predicted: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the noise that carries the model's own error (DREAM), see ``rectified_noise``."""
        return rectified_noise(noise, predicted, sigma, self.dream_detail_preservation or 0.0)

    def sample_losses(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        schedule: Schedule,
        t: torch.Tensor,
        parameterization: str,
    ) -> torch.Tensor:
        """Return the loss of each sample ``(b,)``, weighted by its time.

        prediction, target: ``b c h w``; weight: ``b 1 h w`` or None; t: ``(b,)`` integers of the schedule;
        parameterization: what is predicted, "eps", "v" or "x0".
        """
        losses = sample_losses(prediction, target, self.loss_type, weight)
        if self.min_snr_gamma is not None:
            losses = losses * min_snr_weights(schedule, t, parameterization, self.min_snr_gamma, self.snr_offset)
        return losses

    def join(
        self, losses: torch.Tensor, is_regularization: torch.Tensor, u: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the batch and its halves, "instance" and "reg".

        losses: ``(b,)``; is_regularization: ``(b,)`` bool; u: what ``drop`` was given, None where nothing is dropped.
        """
        if u is not None and self.dropped_weight != 1:
            lost = dropped(u, **self.dropout).to(losses.device)
            losses = torch.where(lost, self.dropped_weight, 1.0) * losses
        return prior_preservation(losses, is_regularization, self.reg_weight)
