"""Noise schedules: betas, alphas_cumprod, and the map between a time index t and a noise level sigma."""

from __future__ import annotations

import torch

from ldm.errors import UserError


def make_betas(
    timesteps: int = 1000, linear_start: float = 0.00085, linear_end: float = 0.0120, kind: str = "linear"
) -> torch.Tensor:
    """Return the variances of the forward process.

    kind "linear" is linear in sqrt(beta), as Stable Diffusion uses it (CompVis ``make_beta_schedule``);
    "sqrt_linear" is linear in beta; "cosine" is Nichol & Dhariwal 2021, eq. 17 (the two ends are not used).

    Returns: float64 ``(timesteps,)``. Raises UserError for an unknown kind or fewer than two steps.
    """
    if timesteps < 2:
        raise UserError(f"timesteps is {timesteps}; a schedule needs at least 2")
    f64 = {"dtype": torch.float64, "device": "cpu"}
    if kind == "linear":
        return torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, **f64) ** 2
    if kind == "sqrt_linear":
        return torch.linspace(linear_start, linear_end, timesteps, **f64)
    if kind == "cosine":
        u = torch.linspace(0, timesteps, timesteps + 1, **f64) / timesteps
        alphas_cumprod = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
    raise UserError(f"unknown beta_schedule '{kind}'; known: linear, sqrt_linear, cosine")


class Schedule:
    """A discrete variance-preserving noise schedule, seen both by time index and by noise level.

    ``sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod)``: the noise level of ``z_t / sqrt(alphas_cumprod)``
    (Karras et al. 2022, section 4). For Stable Diffusion's betas sigma runs from 0.029 to 14.6.
    """

    def __init__(self, betas: torch.Tensor):
        """betas: ``(T,)``, each in (0, 1)."""
        alphas_cumprod = torch.cumprod(1.0 - betas.double().cpu(), dim=0)
        self.betas = betas.float().cpu()
        self._abar = alphas_cumprod  # float64: near t = 0, 1 - abar of a float32 loses digits
        self.alphas_cumprod = alphas_cumprod.float()
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float()
        self.log_sigmas = self.sigmas.log()

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def sigma_min(self) -> float:
        """The lowest noise level, at t = 0."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """The highest noise level, at t = T - 1."""
        return self.sigmas[-1].item()

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Return the noise level at (possibly fractional) time indices, log-linear between integers.

        t: any shape, in [0, T - 1]; the result has the same shape, fp32, on t's device.
        """
        t = t.float()
        low = t.floor().long().clamp(0, len(self) - 1)
        high = t.ceil().long().clamp(0, len(self) - 1)
        log_sigmas = self.log_sigmas.to(t.device)
        weight = t - t.floor()
        return ((1 - weight) * log_sigmas[low] + weight * log_sigmas[high]).exp()

    def t(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return the fractional time index of noise levels: the inverse of ``sigma``.

        sigma: any shape; levels outside the schedule are clamped to its ends. Returns fp32 of the same shape.
        """
        log_sigmas = self.log_sigmas.to(sigma.device)
        log_sigma = sigma.float().clamp(min=1e-10).log()
        low = (torch.searchsorted(log_sigmas, log_sigma.contiguous(), right=True) - 1).clamp(0, len(self) - 2)
        weight = (log_sigma - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
        return low + weight.clamp(0, 1)

    def add_noise(self, z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return ``z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise`` (Ho et al. 2020, eq. 4).

        z, noise: ``b c h w``; t: ``(b,)`` integers.
        """
        alpha, sigma = self.alpha_sigma(t, z)
        return alpha * z + sigma * noise

    def alpha_sigma(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``sqrt(abar_t)`` and ``sqrt(1 - abar_t)`` as ``b 1 1 1`` tensors on ``like``'s device, fp32."""
        abar = self._abar[t.cpu()].view(-1, *[1] * (like.ndim - 1))
        return abar.sqrt().float().to(like.device), (1 - abar).sqrt().float().to(like.device)


def uniform_sigmas(schedule: Schedule, steps: int) -> torch.Tensor:
    """Return noise levels at equally spaced time indices from T - 1 to 0, then 0 (k-diffusion ``get_sigmas``).

    Returns: ``(steps + 1,)`` fp32, falling. Raises UserError for fewer than one step.
    """
    _check_steps(steps)
    t = torch.linspace(len(schedule) - 1, 0, steps)
    return torch.cat([schedule.sigma(t), torch.zeros(1)])


def karras_sigmas(schedule: Schedule, steps: int, rho: float = 7.0) -> torch.Tensor:
    """Return noise levels spaced as in Karras et al. 2022, eq. 5, between the schedule's ends, then 0.

    Returns: ``(steps + 1,)`` fp32, falling. Raises UserError for fewer than one step.
    """
    _check_steps(steps)
    ramp = torch.linspace(0, 1, steps)
    low, high = schedule.sigma_min ** (1 / rho), schedule.sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1)])


SPACINGS = {"uniform": uniform_sigmas, "karras": karras_sigmas}


def make_sigmas(schedule: Schedule, steps: int, spacing: str = "uniform") -> torch.Tensor:
    """Return the sampling noise levels by the spacing's name; see ``SPACINGS``. Raises UserError for another name."""
    if spacing not in SPACINGS:
        raise UserError(f"unknown spacing '{spacing}'; known: {', '.join(SPACINGS)}")
    return SPACINGS[spacing](schedule, steps)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise UserError(f"steps is {steps}; sampling needs at least 1")
