"""What a first stage is trained on."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ldm.errors import UserError
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


class PatchDiscriminator(nn.Module):
    """Convolutions that judge each patch by itself (Isola et al. 2017). Spectral normalisation (Miyato et al. 2018)
    bounds how fast its judgements change with the picture; without it, it runs ahead of the decoder."""

    def __init__(self, width: int = 32, levels: int = 3):
        """width: channels of the first level, doubled at each of ``levels`` halvings of the resolution. Raises
        UserError for either below 1."""
        super().__init__()
        if width < 1 or levels < 1:
            raise UserError(f"width {width} and levels {levels} must be at least 1")
        widths = [3, *(width * 2**i for i in range(levels))]
        layers = [nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths)]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.Conv2d(widths[-1], 1, 1)]
        self.layers = nn.ModuleList(spectral_norm(layer) for layer in layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return a judgement of each patch, ``b 1 h w`` (above 0: true), and what the layers before saw in it.

        x: ``b 3 H W`` in [-1, 1], sides multiples of ``2 ** levels``.
        """
        seen = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
            seen.append(x)
        return self.layers[-1](x), seen


class AdversarialReconstructionLoss(ReconstructionLoss):
    """Reconstruction's errors, and those of a discriminator that learns beside: its hinge loss, its judgement of the
    reconstruction (as in Esser et al. 2021), and how far what its layers see is from what they see in the true picture
    (feature matching, Wang et al. 2018).

    Squared and absolute errors alone want the mean or median of what a latent may stand for, which is soft; a soft
    picture is easily told. One optimiser moves both networks: each term's gradient reaches one of them only.
    """

    def __init__(
        self,
        adversarial: float = 1.0,
        features: float = 1.0,
        disc_start: int = 0,
        disc_width: int = 32,
        disc_levels: int = 3,
        l1: float = 1.0,
        l2: float = 1.0,
        edges: float = 1.0,
        kl: float = 1e-6,
        whiten: float = 0.0,
    ):
        """adversarial, features: the size of each one's gradient at the picture, over that of the reconstruction's
        errors. disc_start: how many batches the discriminator learns from before anything else hears of it. disc_width,
        disc_levels: see ``PatchDiscriminator``. The rest is ``ReconstructionLoss``'. Raises UserError for a number
        below 0, or both weights 0.
        """
        super().__init__(l1, l2, edges, kl, whiten)
        for name, value in (("adversarial", adversarial), ("features", features), ("disc_start", disc_start)):
            if isinstance(value, bool) or not value >= 0 or (name == "disc_start" and not isinstance(value, int)):
                kind = "whole number" if name == "disc_start" else "number"
                raise UserError(f"lossconfig.params.{name} is {value!r}; a {kind} from 0 is expected")
        if not adversarial + features:
            raise UserError("adversarial and features are both 0: take ldm.modules.first_stage_loss.ReconstructionLoss")
        self.adversarial, self.features, self.disc_start = adversarial, features, disc_start
        self.discriminator = PatchDiscriminator(disc_width, disc_levels)
        self.register_buffer("seen", torch.tensor(0))  # batches, kept with the weights to resume from

    def forward(
        self,
        x: torch.Tensor,
        reconstruction: torch.Tensor,
        posterior: DiagonalGaussian | None,
        weight: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and its parts, as ``ReconstructionLoss`` does; ``reconstruction`` has a gradient."""
        loss, parts = super().forward(x, reconstruction, posterior, weight)
        real, truth = self.discriminator(x)
        self.discriminator.requires_grad_(False)
        judged, seen = self.discriminator(reconstruction)
        self.discriminator.requires_grad_(True)
        parts["adversarial"] = -judged.float().mean()
        parts["features"] = torch.stack(
            [
                (a - b.detach()).float().abs().mean() / (b.detach().float().abs().mean() + 1e-3)
                for a, b in zip(seen, truth, strict=True)
            ]
        ).mean()
        if self.seen >= self.disc_start:
            size = _gradient(loss, reconstruction)
            for name in ("adversarial", "features"):
                scale = size / (_gradient(parts[name], reconstruction) + 1e-8)
                loss = loss + getattr(self, name) * scale.clamp(max=1e4) * parts[name]
        self.seen += 1
        made = self.discriminator(reconstruction.detach())[0]
        parts["discriminator"] = F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean()
        return loss + parts["discriminator"], parts


def _gradient(loss: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return the norm of the gradient that a mean over a picture's values has there, itself without gradient; scaled by
    their number meanwhile, or half precision would round it to nothing."""
    return torch.autograd.grad(loss * at.numel(), at, retain_graph=True)[0].float().norm() / at.numel()
