"""The denoising UNet of Stable Diffusion 1.x and InstructPix2Pix (4 or 8 input channels).

Attribute names, and so parameter names, are those of the published checkpoints (CompVis ``openaimodel``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ldm.errors import UserError
from ldm.modules.attention import SpatialTransformer, recompute, zero_init


def timestep_embedding(t: torch.Tensor, dim: int, max_period: float = 10000.0) -> torch.Tensor:
    """Return sinusoids of (possibly fractional) time indices: cosines first, then sines.

    t: ``(b,)``; returns fp32 ``b dim``. Source: Vaswani et al. 2017 in CompVis' order.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between them, and a skip."""

    def __init__(self, channels: int, temb_channels: int, out_channels: int, dropout: float, use_checkpoint: bool):
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(temb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Map ``b channels h w`` to ``b out_channels h w``; temb: ``b temb_channels``."""
        return recompute(self._forward, x, temb, enabled=self.use_checkpoint)

    def _forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        hidden = self.in_layers(x) + self.emb_layers(temb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` to ``b c h/2 w/2``."""
        return self.op(x)


class Upsample(nn.Module):
    """Double the resolution by nearest neighbours and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` to ``b c 2h 2w``."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Sequential):
    """Layers in a row; each gets what it needs of the time embedding and the text."""

    def forward(self, x: torch.Tensor, temb: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Pass ``b c h w`` through every layer."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, temb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


@dataclass(frozen=True)
class _Builder:
    """Makes a UNet's stages in the published order."""

    temb_channels: int
    attention_at: frozenset[int]  # downsampling factors
    heads: Callable[[int], int]  # of a width
    transformer: dict[str, int]
    common: dict[str, Any]

    def res_block(self, ch_in: int, ch_out: int) -> ResBlock:
        return ResBlock(ch_in, self.temb_channels, ch_out, **self.common)

    def transformer_of(self, ch: int) -> SpatialTransformer:
        heads = self.heads(ch)
        return SpatialTransformer(ch, heads, ch // heads, **self.transformer, **self.common)

    def layers(self, ch_in: int, ch_out: int, level: int) -> list[nn.Module]:
        """A residual block and, where this level has attention, a transformer."""
        layers: list[nn.Module] = [self.res_block(ch_in, ch_out)]
        return [*layers, self.transformer_of(ch_out)] if 2**level in self.attention_at else layers

    def down(self, ch: int, widths: list[int], num_res_blocks: int) -> tuple[list[Stage], list[int]]:
        """The stages after the first convolution, and the widths that all stages leave for the way up."""
        stages, skips = [], [ch]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                stages.append(Stage(*self.layers(ch, width, level)))
                ch = width
                skips.append(ch)
            if level != len(widths) - 1:
                stages.append(Stage(Downsample(ch)))
                skips.append(ch)
        return stages, skips

    def up(self, widths: list[int], num_res_blocks: int, skips: list[int]) -> Iterator[Stage]:
        ch, skips = widths[-1], list(skips)
        for level, width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = self.layers(ch + skips.pop(), width, level)
                if level and i == num_res_blocks:
                    layers.append(Upsample(width))
                yield Stage(*layers)
                ch = width


class UNetModel(nn.Module):
    """Predict eps, v or x0 from a noised latent, a time index and text states."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        attention_resolutions: list[int],
        num_res_blocks: int,
        channel_mult: list[int],
        context_dim: int,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_spatial_transformer: bool = True,
        transformer_depth: int = 1,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
    ):
        """Build the network.

        in_channels: 4 (text to image) or 8 (editing: the input picture's latent beside the noised one).
        attention_resolutions: downsampling factors with attention; channel_mult: width of each level over
        model_channels, a multiple of 32. Give num_heads or num_head_channels. use_checkpoint: recompute activations
        in the backward pass (less memory, about a third more time). Raises ValueError for what it cannot build.
        """
        super().__init__()
        if not use_spatial_transformer:
            raise UserError("use_spatial_transformer: false is not supported; every published editing UNet uses it")
        if (num_heads == -1) == (num_head_channels == -1):
            raise UserError("give exactly one of num_heads and num_head_channels")
        if max(num_heads, num_head_channels) < 1:
            raise UserError(f"num_heads {num_heads} and num_head_channels {num_head_channels}: 1 or more is expected")
        widths = [model_channels * m for m in channel_mult]
        if any(w % 32 for w in widths):
            raise UserError(f"channel widths {widths} must be multiples of 32 (group normalisation)")
        self.in_channels, self.out_channels, self.model_channels = in_channels, out_channels, model_channels
        self.context_dim = context_dim
        temb_channels = model_channels * 4
        build = _Builder(
            temb_channels,
            attention_at=frozenset(attention_resolutions),
            heads=lambda ch: num_heads if num_heads != -1 else ch // num_head_channels,
            transformer={"depth": transformer_depth, "context_dim": context_dim},
            common={"dropout": dropout, "use_checkpoint": use_checkpoint},
        )
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, temb_channels), nn.SiLU(), nn.Linear(temb_channels, temb_channels)
        )
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels, model_channels, 3, padding=1))])
        stages, skips = build.down(model_channels, widths, num_res_blocks)
        self.input_blocks.extend(stages)
        ch = widths[-1]
        self.middle_block = Stage(build.res_block(ch, ch), build.transformer_of(ch), build.res_block(ch, ch))
        self.output_blocks = nn.ModuleList(build.up(widths, num_res_blocks, skips))
        ch = widths[0]
        self.out = nn.Sequential(nn.GroupNorm(32, ch), nn.SiLU(), zero_init(nn.Conv2d(ch, out_channels, 3, padding=1)))

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return the prediction ``b out_channels h w``.

        x: ``b in_channels h w``, h and w multiples of ``2 ** (levels - 1)``; timesteps: ``(b,)``, may be fractional;
        context: ``b n context_dim``. Input is cast to the weights' type. Raises ValueError for other shapes.
        """
        if x.shape[1] != self.in_channels:
            raise ValueError(f"the UNet takes {self.in_channels} channels, got {x.shape[1]}")
        dtype = next(self.out.parameters()).dtype
        temb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(dtype))
        hidden, context, skips = x.to(dtype), context.to(dtype), []
        for stage in self.input_blocks:
            hidden = stage(hidden, temb, context)
            skips.append(hidden)
        hidden = self.middle_block(hidden, temb, context)
        for stage in self.output_blocks:
            hidden = stage(torch.cat([hidden, skips.pop()], dim=1), temb, context)
        return self.out(hidden)
