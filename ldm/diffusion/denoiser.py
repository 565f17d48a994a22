"""A trained network as D(z, sigma): the clean latent expected behind a noisy one (Karras et al. 2022, eq. 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.parameterization import check_parameterization, to_x0
from ldm.diffusion.schedule import Schedule

ApplyModel = Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]


class Denoiser:
    """D(z, sigma, conditioning) for a network trained on a discrete schedule.

    ``z = z_clean + sigma * noise`` (variance exploding); the network itself sees ``z / sqrt(1 + sigma^2)`` and the
    fractional time index of sigma, as k-diffusion's ``CompVisDenoiser`` does.
    """

    def __init__(self, apply_model: ApplyModel, schedule: Schedule, parameterization: str = "eps"):
        """apply_model: ``(z_t: b c h w, t: (b,) float, Conditioning) -> b c h w``."""
        self.apply_model = apply_model
        self.schedule = schedule
        self.parameterization = check_parameterization(parameterization)

    def __call__(self, z: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the denoised latent ``b c h w`` (fp32). sigma: ``(b,)`` > 0."""
        z, sigma = z.float(), sigma.float()
        alpha = (1 + sigma**2).rsqrt().view(-1, 1, 1, 1)
        z_t = z * alpha
        prediction = self.apply_model(z_t, self.schedule.t(sigma), conditioning).float()
        return to_x0(self.parameterization, prediction, z_t, alpha, sigma.view(-1, 1, 1, 1) * alpha)
