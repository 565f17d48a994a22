"""The training loss: per sample, weighted, and the sum of an instance half and a prior-preservation half."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError


def sample_losses(
    prediction: torch.Tensor, target: torch.Tensor, loss_type: str = "l2", weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean error of each sample, ``(b,)`` fp32.

    prediction, target: ``b c h w``; weight: ``b 1 h w`` on the positions, or None. loss_type: "l2" or "l1";
    UserError otherwise.
    """
    if loss_type not in ("l2", "l1"):
        raise UserError(f"unknown loss_type '{loss_type}'; known: l2, l1")
    error = (F.mse_loss if loss_type == "l2" else F.l1_loss)(prediction.float(), target.float(), reduction="none")
    return (error if weight is None else error * weight).flatten(1).mean(1)


def change_weights(z: torch.Tensor, source: torch.Tensor, strength: float) -> torch.Tensor:
    """Return position weights ``b 1 h w`` of mean 1 that are ``1 + strength`` times higher where a pair differs most.

    z, source: ``b c h w`` latents of the pair's two pictures in one scale.
    """
    change = (z - source).abs().mean(1, keepdim=True)
    weight = 1 + strength * change / change.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return weight / weight.mean(dim=(1, 2, 3), keepdim=True)


def min_snr_weights(
    schedule: Schedule, t: torch.Tensor, parameterization: str, gamma: float, offset: float = 0.0
) -> torch.Tensor:
    """Return min-SNR loss weights ``(b,)`` (Hang et al. 2023, section 3.4), gamma about 5, for each prediction type.

    The weight of the x0-error is ``min(SNR + offset, gamma)``; expressed for the network's own target that is divided
    by SNR (eps), by SNR + 1 (v) or by 1 (x0). offset: 0 is the paper's; with 1 noisy times, where a picture is decided,
    keep a weight (v's own, cut off at gamma).
    """
    snr = 1 / schedule.sigmas.to(t.device)[t] ** 2
    divisor = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[parameterization]
    return (snr + offset).clamp(max=gamma) / divisor


def rectified_noise(
    noise: torch.Tensor, predicted: torch.Tensor, sigma: torch.Tensor, power: float = 1.0
) -> torch.Tensor:
    """Return the noise with which training sees what sampling sees: a latent that carries the model's own error.

    DREAM (Zhou et al. 2024, arXiv 2312.00210): ``noise + lambda (noise - predicted)``, ``lambda = sigma ** power``. The
    clean latent stays the target; the noised one is then built around ``lambda`` of the model's own estimate of it, so
    that a later step learns to mend what an earlier one has guessed. noise, predicted (the model's, without gradient):
    ``b c h w``; sigma: ``b 1 1 1``, of ``alpha^2 + sigma^2 = 1``; power: 0 takes the estimate whole, more keeps more
    of the true latent at low noise.
    """
    return noise + sigma**power * (noise - predicted)


def prior_preservation(
    losses: torch.Tensor, is_regularization: torch.Tensor, reg_weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return ``mean(instance) + reg_weight * mean(regularization)`` and the two halves (DreamBooth, eq. 2).

    losses: ``(b,)``; is_regularization: ``(b,)`` bool. Each half is averaged by itself; a half without samples
    counts as zero and is not reported.
    """
    total, parts = losses.new_zeros(()), {}
    for name, chosen, weight in (("instance", ~is_regularization, 1.0), ("reg", is_regularization, reg_weight)):
        if chosen.any():
            parts[name] = losses[chosen].mean()
            total = total + weight * parts[name]
    return total, parts
