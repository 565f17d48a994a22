"""Conditioning: the text states and the picture latent that go into the network beside the noised latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm.errors import UserError


@dataclass(frozen=True)
class Conditioning:
    """What the network is told: text states by cross-attention, and for editing the input picture's latent.

    c_crossattn: ``b n d`` text states (n = 77 tokens).
    c_concat: ``b c h w`` latent of the input picture (posterior mode, not scaled), or None for text to image.
    """

    c_crossattn: torch.Tensor
    c_concat: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.c_crossattn.shape[0]

    def __getitem__(self, index) -> Conditioning:
        """Return the conditioning of some batch entries; index: a slice or an index tensor."""
        concat = None if self.c_concat is None else self.c_concat[index]
        return Conditioning(self.c_crossattn[index], concat)

    def to(self, *args, **kwargs) -> Conditioning:
        """Return a copy moved or cast as ``torch.Tensor.to`` does."""
        concat = None if self.c_concat is None else self.c_concat.to(*args, **kwargs)
        return Conditioning(self.c_crossattn.to(*args, **kwargs), concat)

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Return several conditionings as one batch. Raises ValueError if only some of them carry a picture."""
        pictures = [p.c_concat for p in parts]
        if len({p is None for p in pictures}) > 1:
            raise ValueError("cannot batch conditionings with a picture (c_concat) and without one")
        concat = None if pictures[0] is None else torch.cat(pictures)
        return Conditioning(torch.cat([p.c_crossattn for p in parts]), concat)


def null_picture(conditioning: Conditioning) -> Conditioning:
    """Return the same text with an all-zero picture (upstream's "unconditional" c_concat)."""
    concat = None if conditioning.c_concat is None else torch.zeros_like(conditioning.c_concat)
    return Conditioning(conditioning.c_crossattn, concat)


def dropped(u: torch.Tensor, text: float = 0.05, image: float = 0.05, both: float = 0.05) -> torch.Tensor:
    """Return ``(b,)`` booleans: of which samples ``drop_conditioning`` takes the text, the picture or both by ``u``."""
    return u < text + image + both


def drop_conditioning(
    conditioning: Conditioning,
    null_text: torch.Tensor,
    generator: torch.Generator | None = None,
    text: float = 0.05,
    image: float = 0.05,
    both: float = 0.05,
    u: torch.Tensor | None = None,
) -> Conditioning:
    """Replace, per sample, the text alone, the picture alone, or both by their null values (for training).

    The three events exclude each other, each with its own probability, as in InstructPix2Pix, section 3.2.1
    (5 % each). null_text: ``1 n d``, the states of "". The random draw takes one number per sample: ``u``, ``(b,)`` in
    [0, 1), or else from ``generator`` (CPU). Raises UserError if the probabilities do not fit in [0, 1].
    """
    if min(text, image, both) < 0 or text + image + both > 1:
        raise UserError(f"dropout probabilities text={text}, image={image}, both={both} must be >= 0, sum <= 1")
    u = torch.rand(len(conditioning), generator=generator) if u is None else u
    u = u.to(conditioning.c_crossattn.device)
    lost = dropped(u, text, image, both)
    drop_image, drop_text = lost & (u >= text), lost & ((u < text) | (u >= text + image))
    crossattn = torch.where(drop_text[:, None, None], null_text.to(conditioning.c_crossattn), conditioning.c_crossattn)
    concat = conditioning.c_concat
    if concat is not None:
        concat = torch.where(drop_image[:, None, None, None], torch.zeros_like(concat), concat)
    return Conditioning(crossattn, concat)
