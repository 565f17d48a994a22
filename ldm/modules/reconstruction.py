"""What a first stage is trained on."""

from __future__ import annotations

import torch
from torch import nn

from ldm.modules.distributions import DiagonalGaussian


class ReconstructionLoss(nn.Module):
    """Absolute, squared and edge errors of the picture, a small pull of the latent towards a standard normal, and one
    that keeps the latent's channels apart."""

    def __init__(self, l1: float = 1.0, l2: float = 1.0, edges: float = 1.0, kl: float = 1e-6, whiten: float = 0.0):
        """Weights of the mean absolute error, the mean squared error, the mean absolute error of the differences
        between neighbours, the divergence in nats per latent value, and ``correlation`` of the latent's channels."""
        super().__init__()
        self.l1, self.l2, self.edges, self.kl, self.whiten = l1, l2, edges, kl, whiten

    def forward(
        self,
        x: torch.Tensor,
        reconstruction: torch.Tensor,
        posterior: DiagonalGaussian | None,
        weight: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and its parts. x, reconstruction: ``b 3 h w``; posterior: None if the encoder does not learn
        (``kl`` and ``whiten`` are left out then); weight: ``b 1 h w`` or None."""
        weight = torch.ones_like(x[:, :1]) if weight is None else weight
        weight = weight / weight.mean()
        error = (reconstruction - x).float()
        across = (error[..., 1:] - error[..., :-1]).abs() * weight[..., 1:]
        down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
        parts = {
            "l1": (error.abs() * weight).mean(),
            "l2": (error.square() * weight).mean(),
            "edges": (across.mean() + down.mean()) / 2,
        }
        if posterior is not None:
            parts["kl"] = posterior.kl().mean() / posterior.mean[0].numel()
            if self.whiten:
                parts["whiten"] = correlation(posterior.mean)
        return sum(getattr(self, name) * part for name, part in parts.items()), parts


def correlation(z: torch.Tensor) -> torch.Tensor:
    """Return how far the channels of ``b c h w`` are from zero mean, unit variance and no correlation.

    The mean over channels of the squared rows of ``covariance - identity``, plus the mean squared channel mean; 0 for
    white channels. Without it few directions may carry nearly everything, and an error that a squared loss on latents
    does not see (or noise that buries them) takes the details.
    """
    with torch.autocast(z.device.type, enabled=False):  # fp16 would overflow
        values = z.float().movedim(1, -1).flatten(0, -2)
        mean = values.mean(0)
        centred = values - mean
        covariance = centred.T @ centred / len(values)
        excess = covariance - torch.eye(len(covariance), device=z.device)
        return excess.square().sum(1).mean() + mean.square().mean()
