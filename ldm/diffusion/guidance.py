"""Classifier-free guidance with a text scale and, for editing, an image scale."""

from __future__ import annotations

import torch

from ldm.diffusion.conditioning import Conditioning, null_picture
from ldm.diffusion.denoiser import Denoiser
from ldm.errors import UserError


def check_interval(interval: tuple[float, float] | None) -> None:
    """Raise UserError unless an interval of noise levels is None or 0 <= low < high."""
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise UserError(f"guidance interval {interval[0]},{interval[1]}: needs 0 <= low < high (noise levels)")


class GuidedDenoiser:
    """D(z, sigma) under guidance: up to three branches in one batch, those with a zero coefficient left out.

    Editing (InstructPix2Pix, eq. 3), with e(picture, text):
    ``e(0,0) + image_scale (e(I,0) - e(0,0)) + text_scale (e(I,T) - e(I,0))``, that is the branches
    ``e(I,T), e(I,0), e(0,0)`` with the coefficients ``text_scale, image_scale - text_scale, 1 - image_scale``.
    Without a picture: ``e(T), e(0)`` with ``text_scale, 1 - text_scale``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioning: Conditioning,
        null_text: torch.Tensor,
        text_scale: float = 7.5,
        image_scale: float = 1.5,
        interval: tuple[float, float] | None = None,
    ):
        """Prepare the branches.

        conditioning: a batch of b; null_text: ``1 n d`` (states of "" or of a negative prompt).
        interval: noise levels (low, high] inside which guidance acts; outside it only ``e(I,T)`` runs
        (Kynkaanniemi et al. 2024). None: everywhere. Raises UserError for an empty or negative interval.
        """
        check_interval(interval)
        self.denoiser = denoiser
        self.interval = interval
        null = Conditioning(null_text.to(conditioning.c_crossattn).expand_as(conditioning.c_crossattn), None)
        if conditioning.c_concat is None:
            branches = [(text_scale, conditioning), (1 - text_scale, null)]
        else:
            picture = Conditioning(null.c_crossattn, conditioning.c_concat)
            branches = [
                (text_scale, conditioning),
                (image_scale - text_scale, picture),
                (1 - image_scale, null_picture(picture)),
            ]
        self._guided = _batch([b for b in branches if abs(b[0]) > 1e-9])
        self._plain = _batch([(1.0, conditioning)])

    def __call__(self, z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the guided denoised latent. z: ``b c h w``; sigma: a scalar tensor > 0."""
        inside = self.interval is None or self.interval[0] < float(sigma) <= self.interval[1]
        coefficients, conditioning = self._guided if inside else self._plain
        n = len(coefficients)
        out = self.denoiser(z.repeat(n, 1, 1, 1), sigma.expand(n * len(z)), conditioning)
        return sum(c * part for c, part in zip(coefficients, out.chunk(n), strict=True))


def _batch(branches: list[tuple[float, Conditioning]]) -> tuple[list[float], Conditioning]:
    return [c for c, _ in branches], Conditioning.cat([conditioning for _, conditioning in branches])
