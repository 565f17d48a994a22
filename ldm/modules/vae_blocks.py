"""Encoder and decoder of the first stage. Attribute names are those of the published checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalised convolutions and a skip."""

    def __init__(self, channels: int, out_channels: int, dropout: float = 0.0, groups: int = 32):
        super().__init__()
        self.norm1 = _norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b channels h w`` to ``b out_channels h w``."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + hidden


class AttnBlock(nn.Module):
    """Single-head self-attention over positions."""

    def __init__(self, channels: int, groups: int = 32):
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` to ``b c h w``."""
        height = x.shape[2]
        hidden = self.norm(x)
        # laid out position by position: else the CPU falls back to a matrix of all positions by all positions
        q, k, v = (rearrange(f(hidden), "b c h w -> b 1 (h w) c").contiguous() for f in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=height))


class Downsample(nn.Module):
    """Halve the resolution; one column and row of zeros on the right and below, as published."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` to ``b c h/2 w/2``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution by nearest neighbours and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` to ``b c 2h 2w``."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """The lowest resolution: a block, attention, a block."""

    def __init__(self, channels: int, dropout: float, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, dropout, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` to ``b c h w``."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """One resolution: blocks, attention after each where asked, and a change of resolution (``downsample`` or
    ``upsample``) unless it is the last."""

    def __init__(self, blocks: list[ResnetBlock], attention: bool, **resample: nn.Module):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        width = blocks[-1].conv2.out_channels
        groups = blocks[-1].norm2.num_groups
        self.attn = nn.ModuleList(AttnBlock(width, groups) for _ in blocks if attention)
        self._resample = next(iter(resample), None)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` to this level's width and the next level's resolution."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return getattr(self, self._resample)(x) if self._resample else x


class Encoder(nn.Module):
    """From a picture to the parameters of the latent's distribution."""

    def __init__(
        self,
        ch: int,
        ch_mult: list[int],
        num_res_blocks: int,
        z_channels: int,
        resolution: int,
        in_channels: int = 3,
        attn_resolutions: list[int] = (),
        dropout: float = 0.0,
        double_z: bool = True,
        num_groups: int = 32,
    ):
        """double_z: give mean and log-variance (2 z_channels); attention at the sizes in attn_resolutions, counted
        from ``resolution``. num_groups: of the group norms; published files have 32, narrow networks need fewer
        (one channel a group loses the picture's colours)."""
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = ch
        for i, mult in enumerate(ch_mult):
            widths = [width] + [ch * mult] * num_res_blocks
            width = ch * mult
            blocks = [ResnetBlock(w, width, dropout, num_groups) for w in widths[:-1]]
            resample = {"downsample": Downsample(width)} if i < len(ch_mult) - 1 else {}
            self.down.append(Level(blocks, resolution // 2**i in attn_resolutions, **resample))
        self.mid = Middle(width, dropout, num_groups)
        self.norm_out = _norm(width, num_groups)
        self.conv_out = nn.Conv2d(width, z_channels * (2 if double_z else 1), 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b in_channels H W`` to ``b (2) z_channels h w``."""
        hidden = self.conv_in(x)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class Decoder(nn.Module):
    """From a latent to a picture."""

    def __init__(
        self,
        ch: int,
        ch_mult: list[int],
        num_res_blocks: int,
        z_channels: int,
        resolution: int,
        out_ch: int = 3,
        attn_resolutions: list[int] = (),
        dropout: float = 0.0,
        num_groups: int = 32,
    ):
        """Mirror of ``Encoder``, with one block more per level."""
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = Middle(width, dropout, num_groups)
        levels = []
        for i, mult in reversed(list(enumerate(ch_mult))):
            widths = [width] + [ch * mult] * (num_res_blocks + 1)
            width = ch * mult
            blocks = [ResnetBlock(w, width, dropout, num_groups) for w in widths[:-1]]
            resample = {"upsample": Upsample(width)} if i else {}
            levels.insert(0, Level(blocks, resolution // 2**i in attn_resolutions, **resample))
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(width, num_groups)
        self.conv_out = nn.Conv2d(width, out_ch, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map ``b z_channels h w`` to ``b out_ch H W``."""
        hidden = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))
