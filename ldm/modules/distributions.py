"""The latent's distribution."""

from __future__ import annotations

import torch


class DiagonalGaussian:
    """A normal distribution for each latent value, from the encoder's moments."""

    def __init__(self, moments: torch.Tensor):
        """moments: ``b 2c h w``, mean then log-variance (clamped to [-30, 20])."""
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> torch.Tensor:
        """Return the mean, ``b c h w``."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return a random draw, ``b c h w``; from ``generator`` (on its own device) or the global state."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device).to(self.mean)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> torch.Tensor:
        """Return the divergence from a standard normal, ``(b,)``, in nats."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


class Codes:
    """A point in place of a distribution: the first stage without variance (vector-quantised)."""

    def __init__(self, z: torch.Tensor):
        """z: ``b c h w``."""
        self.mean = z
        self.logvar = torch.full_like(z, -30.0)

    def mode(self) -> torch.Tensor:
        """Return the point."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return the point."""
        return self.mean
