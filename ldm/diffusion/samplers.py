"""Samplers: each one a plain function from noise to a clean latent over a denoiser D(z, sigma).

All share one signature: ``sampler(denoise, z, sigmas, noise=None, callback=None, **own) -> z_clean``

- denoise: ``(z: b c h w, sigma: scalar tensor) -> b c h w``, e.g. a ``GuidedDenoiser``;
- z: the start, ``sigmas[0] * standard normal``;
- sigmas: ``(steps + 1,)`` falling noise levels, the last one usually 0 (``schedule.make_sigmas``);
- noise: ``() -> tensor like z`` of standard normal numbers (``noise_source``); required by stochastic samplers;
- callback: called as ``callback(step, sigma, denoised)`` after each network evaluation of a step's start.

Sampling happens in the variance-exploding picture, where the probability-flow ODE is
``dz/dsigma = (z - D(z, sigma)) / sigma`` (Karras et al. 2022, eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from ldm.errors import UserError

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Noise = Callable[[], torch.Tensor]
Callback = Callable[[int, torch.Tensor, torch.Tensor], None]


def noise_source(like: torch.Tensor, generators: list[torch.Generator]) -> Noise:
    """Return a function that draws noise shaped like ``like``, entry i of the batch from generator i.

    So a picture depends on its own seed alone, not on the batch it was sampled in. Raises ValueError unless there
    is one generator per batch entry.
    """
    if len(generators) != len(like):
        raise ValueError(f"{len(generators)} generators for a batch of {len(like)}; one each is needed")

    def draw() -> torch.Tensor:
        shape, device = (1, *like.shape[1:]), like.device
        parts = [torch.randn(shape, generator=g, device=g.device).to(device) for g in generators]
        return torch.cat(parts)

    return draw


def _need(noise: Noise | None, sampler: str) -> Noise:
    if noise is None:
        raise ValueError(f"sampler '{sampler}' is stochastic: give it a noise source (a seeded torch.Generator)")
    return noise


def _report(callback: Callback | None, step: int, sigma: torch.Tensor, denoised: torch.Tensor) -> None:
    if callback is not None:
        callback(step, sigma, denoised)


def euler(
    denoise: Denoise,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Sample with Euler steps of the probability-flow ODE (Karras et al. 2022, algorithm 1 without churn)."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(z, sigma)
        _report(callback, i, sigma, denoised)
        z = z + (z - denoised) / sigma * (following - sigma)
    return z


def euler_a(
    denoise: Denoise,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> torch.Tensor:
    """Sample with ancestral Euler steps: down to sigma_down, then fresh noise up to the next level.

    This is what InstructPix2Pix uses, draw for draw: one noise tensor for every step that does not end at zero.
    """
    draw = _need(noise, "euler_a")
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(z, sigma)
        _report(callback, i, sigma, denoised)
        down, up = _ancestral(sigma, following, eta)
        z = z + (z - denoised) / sigma * (down - sigma)
        if following > 0:
            z = z + draw() * up
    return z


def _ancestral(sigma: torch.Tensor, following: torch.Tensor, eta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a step into a deterministic level and the noise that leads up from it to ``following``."""
    up = torch.minimum(following, eta * (following**2 * (sigma**2 - following**2) / sigma**2).clamp(min=0).sqrt())
    return (following**2 - up**2).sqrt(), up


def ddim(
    denoise: Denoise,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> torch.Tensor:
    """Sample with DDIM (Song et al. 2021, eq. 12); eta 0 is deterministic, eta 1 is ancestral DDPM.

    In this picture DDIM with eta 0 is Euler's method; eta's noise is added in the variance-preserving scale.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(z, sigma)
        _report(callback, i, sigma, denoised)
        direction = (z - denoised) / sigma
        if eta > 0 and following > 0:
            down, up = _ancestral(sigma, following, eta)
            z = denoised + down * direction + up * _need(noise, "ddim with eta > 0")()
        else:
            z = denoised + following * direction
    return z


def heun(
    denoise: Denoise,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Sample with Heun's second-order steps (Karras et al. 2022, algorithm 1); two evaluations a step but the last."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(z, sigma)
        _report(callback, i, sigma, denoised)
        slope = (z - denoised) / sigma
        trial = z + slope * (following - sigma)
        if following > 0:
            slope = (slope + (trial - denoise(trial, following)) / following) / 2
            trial = z + slope * (following - sigma)
        z = trial
    return z


def dpmpp_2m(
    denoise: Denoise,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Sample with DPM-Solver++(2M), second-order multistep (Lu et al. 2022b, algorithm 2); Karras spacing serves it."""
    previous, previous_step = None, None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(z, sigma)
        _report(callback, i, sigma, denoised)
        step = _log_step(sigma, following)
        estimate = denoised
        if previous is not None and following > 0:
            ratio = previous_step / step
            estimate = (1 + 1 / (2 * ratio)) * denoised - previous / (2 * ratio)
        z = following / sigma * z - torch.expm1(-step) * estimate
        previous, previous_step = denoised, step
    return z


def dpmpp_2m_sde(
    denoise: Denoise,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> torch.Tensor:
    """Sample with the stochastic DPM-Solver++(2M), midpoint form (Lu et al. 2022b, section 5), one draw a step."""
    draw = _need(noise, "dpmpp_2m_sde")
    previous, previous_step = None, None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(z, sigma)
        _report(callback, i, sigma, denoised)
        if following == 0:
            return denoised
        step = _log_step(sigma, following)
        shrink = -torch.expm1(-step - eta * step)
        z_next = following / sigma * torch.exp(-eta * step) * z + shrink * denoised
        if previous is not None:
            z_next = z_next + 0.5 * shrink * step / previous_step * (denoised - previous)
        z = z_next + draw() * following * (-torch.expm1(-2 * eta * step)).sqrt()
        previous, previous_step = denoised, step
    return z


def unipc(
    denoise: Denoise,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    order: int = 2,
) -> torch.Tensor:
    """Sample with UniPC, data prediction, B2(h) (Zhao et al. 2023, algorithms 5 to 8), multistep of order 1 to 3.

    Each new evaluation first corrects the step that led to it (UniC), then predicts the next (UniP): one network
    evaluation a step. The first steps and the last two use the orders that the history and stability allow.
    """
    if order not in (1, 2, 3):
        raise UserError(f"unipc order is {order}; 1, 2 or 3 is expected")
    history: list[tuple[torch.Tensor, torch.Tensor]] = []  # (sigma, denoised), oldest first
    start, used = z, 0
    steps = len(sigmas) - 1
    for i in range(steps):
        sigma, following = sigmas[i], sigmas[i + 1]
        denoised = denoise(z, sigma)
        _report(callback, i, sigma, denoised)
        if history:
            z = _unipc_step(start, history, sigma, used, denoised)
        history = [*history, (sigma, denoised)][-order:]
        if following == 0:
            return denoised
        used = min(order, len(history), steps - i)
        start = z
        z = _unipc_step(start, history, following, used)
    return z


def _unipc_step(
    z: torch.Tensor,
    history: list[tuple[torch.Tensor, torch.Tensor]],
    sigma: torch.Tensor,
    order: int,
    at_sigma: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return z at ``sigma`` from z at the newest level of ``history``: a prediction, or with ``at_sigma`` (the
    denoised latent there) a correction."""
    level, newest = history[-1]
    h = _log_step(level, sigma)
    base = sigma / level * z - torch.expm1(-h) * newest
    ratios, differences = [], []
    for older_level, older in reversed(history[-order:-1]):
        ratio = -_log_step(older_level, level) / h
        ratios.append(ratio)
        differences.append((older - newest) / ratio)
    if at_sigma is not None:
        ratios.append(torch.ones_like(h))
        differences.append(at_sigma - newest)
    if not ratios:
        return base
    scale = torch.expm1(-h)  # B2(h) for data prediction
    weights = _unipc_weights(torch.stack(ratios).double(), -h.double()).to(z)
    return base - scale * sum(w * d for w, d in zip(weights, differences, strict=True))


def _unipc_weights(ratios: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Solve for the weights of the differences (UniPC, eq. 9); a single one is 1/2, as its authors take it."""
    n = len(ratios)
    if n == 1:
        return torch.full_like(ratios, 0.5)
    rows, right, phi, factorial = [], [], torch.expm1(h) / h - 1, 1
    for k in range(1, n + 1):
        rows.append(ratios ** (k - 1))
        right.append(phi * factorial / torch.expm1(h))
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    return torch.linalg.solve(torch.stack(rows), torch.stack(right))


def _log_step(sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Return the step in log-SNR units, log(sigma / following); infinite for a step to zero."""
    return sigma.log() - following.log()


SAMPLERS = {
    "euler_a": euler_a,
    "euler": euler,
    "heun": heun,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}
STOCHASTIC = ("euler_a", "dpmpp_2m_sde")


def get_sampler(name: str):
    """Return a sampler by name; raise UserError that lists the known ones."""
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler '{name}'; known: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
