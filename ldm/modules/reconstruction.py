"""What a first stage is trained on."""

from __future__ import annotations

import torch
from torch import nn

from ldm.modules.distributions import DiagonalGaussian


class ReconstructionLoss(nn.Module):
    """Absolute, squared and edge errors of the picture, and a small pull of the latent towards a standard normal."""

    def __init__(self, l1: float = 1.0, l2: float = 1.0, edges: float = 1.0, kl: float = 1e-6):
        """Weights of the mean absolute error, the mean squared error, the mean absolute error of the differences
        between neighbours, and the divergence in nats per latent value."""
        super().__init__()
        self.l1, self.l2, self.edges, self.kl = l1, l2, edges, kl

    def forward(
        self, x: torch.Tensor, reconstruction: torch.Tensor, posterior: DiagonalGaussian, weight: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and its parts. x, reconstruction: ``b 3 h w``; weight: ``b 1 h w`` or None."""
        weight = torch.ones_like(x[:, :1]) if weight is None else weight
        weight = weight / weight.mean()
        error = (reconstruction - x).float()
        across = (error[..., 1:] - error[..., :-1]).abs() * weight[..., 1:]
        down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
        parts = {
            "l1": (error.abs() * weight).mean(),
            "l2": (error.square() * weight).mean(),
            "edges": (across.mean() + down.mean()) / 2,
            "kl": posterior.kl().mean() / posterior.mean[0].numel(),
        }
        return sum(getattr(self, name) * part for name, part in parts.items()), parts
