"""A vector-quantised first stage, with the quantiser of taming-transformers (optional)."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ldm.errors import MissingPackageError
from ldm.models.autoencoder import load_first_stage, split_ddconfig
from ldm.modules.distributions import Codes
from ldm.modules.vae_blocks import Decoder, Encoder


def _quantizer(n_embed: int, embed_dim: int) -> nn.Module:
    try:
        from taming.modules.vqvae.quantize import VectorQuantizer2
    except ImportError as error:
        raise MissingPackageError(
            "VQModel needs taming-transformers: pip install --no-deps taming-transformers-rom1504 "
            f"(without --no-deps it brings torchvision, which is not needed). [{error}]"
        ) from error
    return VectorQuantizer2(n_embed, embed_dim, beta=0.25, remap=None, sane_index_shape=False)


class VQModel(pl.LightningModule):
    """An autoencoder whose latents are entries of a codebook (Esser et al. 2021); quantised when decoding, as the
    first stages of latent diffusion are (upstream ``VQModelInterface``)."""

    def __init__(self, ddconfig: dict[str, Any], n_embed: int, embed_dim: int, ckpt_path: str | None = None):
        """ddconfig: as for AutoencoderKL, with double_z false; n_embed: codebook entries of ``embed_dim`` values.

        Raises ImportError, naming what to install, if taming is not there.
        """
        super().__init__()
        encoder, decoder = split_ddconfig(ddconfig)
        encoder["double_z"] = False
        self.embed_dim = embed_dim
        self.downsampling = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.encoder = Encoder(**encoder)
        self.decoder = Decoder(**decoder)
        self.quantize = _quantizer(n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        if ckpt_path is not None:
            load_first_stage(self, ckpt_path)

    def encode(self, x: torch.Tensor) -> Codes:
        """Return the latent before quantisation, ``b embed_dim h w``, as a distribution without variance."""
        return Codes(self.quant_conv(self.encoder(x.to(next(self.encoder.norm_out.parameters()).dtype))))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return pictures ``b 3 H W`` from latents, each position moved to its nearest codebook entry first."""
        quantised, _, _ = self.quantize(z.to(next(self.decoder.norm_out.parameters()).dtype))
        return self.decoder(self.post_quant_conv(quantised))
