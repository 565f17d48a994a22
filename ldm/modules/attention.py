"""Attention over picture positions and text states. Attribute names are those of the published checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.cpu.attention import attend_on_cpu


def zero_init(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero and return it (the last layer of a residual branch starts silent)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def recompute(function, *inputs: torch.Tensor, enabled: bool) -> torch.Tensor:
    """Call ``function``; with ``enabled`` and gradients on, keep no activations and recompute them in backward."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


class CrossAttention(nn.Module):
    """Multi-head attention from ``x`` to ``context`` (to ``x`` itself when there is none)."""

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64):
        super().__init__()
        inner_dim = heads * dim_head
        self.to_itself = context_dim is None
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Identity())

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Attend. x: ``b n query_dim``; context: ``b m context_dim``; returns ``b n query_dim``."""
        context = x if context is None else context
        return self.to_out(multi_head(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


def multi_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Attend with the channels split into heads; all are ``b n (heads d)``."""
    parts = (rearrange(part, "b n (h d) -> b h n d", h=heads) for part in (q, k, v))
    return rearrange(attend(*parts), "b h n d -> b n (h d)")


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return ``softmax(q k^T / sqrt(d)) v``; all are ``b h n d``. PyTorch's fused attention, except on a CPU."""
    if q.device.type == "cpu":
        return attend_on_cpu(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``... dim_in`` to ``... dim_out``."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The transformer's two-layer network, four times as wide inside."""

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Dropout(dropout), nn.Linear(dim * 4, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``... dim`` to ``... dim``."""
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each one normalised before and added to its input."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int, dropout: float, use_checkpoint: bool):
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.attn1 = CrossAttention(dim, heads=heads, dim_head=dim_head)
        self.ff = FeedForward(dim, dropout)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map ``b n dim`` to ``b n dim``; context: ``b m context_dim``."""
        return recompute(self._forward, x, context, enabled=self.use_checkpoint)

    def _forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, told about the text."""

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int,
        context_dim: int,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        inner_dim = heads * dim_head
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, inner_dim, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner_dim, heads, dim_head, context_dim, dropout, use_checkpoint)
            for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Conv2d(inner_dim, channels, 1))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map ``b channels h w`` to the same shape; context: ``b m context_dim``."""
        height = x.shape[2]
        hidden = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        hidden = rearrange(hidden, "b (h w) c -> b c h w", h=height)
        # The view above is channels-last. Keep the caller's layout: group norm is less exact in the other one.
        hidden = hidden.contiguous() if x.is_contiguous() else hidden
        return self.proj_out(hidden) + x
