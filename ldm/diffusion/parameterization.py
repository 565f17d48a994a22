"""What the network predicts (eps, v or x0): training targets, and the way from a prediction to the clean latent."""

from __future__ import annotations

import torch

from ldm.errors import UserError

PARAMETERIZATIONS = ("eps", "v", "x0")


def check_parameterization(name: str) -> str:
    """Return the name if it is known; raise UserError otherwise."""
    if name not in PARAMETERIZATIONS:
        raise UserError(f"unknown parameterization '{name}'; known: {', '.join(PARAMETERIZATIONS)}")
    return name


def target(name: str, z: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return what the network should predict at ``z_t = alpha z + sigma noise``, with ``alpha^2 + sigma^2 = 1``.

    z, noise: ``b c h w``; alpha, sigma: ``b 1 1 1``. "v" is Salimans & Ho 2022, appendix D.
    """
    if check_parameterization(name) == "eps":
        return noise
    return alpha * noise - sigma * z if name == "v" else z


def to_x0(
    name: str, prediction: torch.Tensor, z_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return the clean latent that a prediction at ``z_t`` stands for.

    prediction, z_t: ``b c h w``; alpha, sigma: ``b 1 1 1`` with ``alpha^2 + sigma^2 = 1``.
    """
    if check_parameterization(name) == "eps":
        return (z_t - sigma * prediction) / alpha
    return alpha * z_t - sigma * prediction if name == "v" else prediction


def to_eps(
    name: str, prediction: torch.Tensor, z_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return the noise that a prediction at ``z_t`` stands for; shapes as in ``to_x0``."""
    if check_parameterization(name) == "eps":
        return prediction
    return sigma * z_t + alpha * prediction if name == "v" else (z_t - alpha * prediction) / sigma
