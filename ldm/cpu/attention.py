"""Attention on a CPU: written out where small pictures train, in pieces that stay in the cache in bf16."""

from __future__ import annotations

import torch
import torch.nn.functional as F

WRITTEN_OUT = 1 << 17  # scores of a head: above it the fused product is as fast, and needs less memory
HEADS_AT_ONCE, SCORES_AT_ONCE = 8, 1 << 19  # of a piece of bf16 attention: its scores stay in the cache


def attend_on_cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return ``softmax(q k^T / sqrt(d)) v``; all are ``b h n d``.

    PyTorch's fused attention, except where small pictures train, for which its backward pass takes several times as
    long as the products written out, and in bf16 without gradients, where it is slower than the products in pieces.
    """
    if not torch.is_grad_enabled() and q.dtype == torch.bfloat16:
        return _attend_in_pieces(q, k, v)
    trains_here = torch.is_grad_enabled() and q.requires_grad
    if not trains_here or q.shape[-2] * k.shape[-2] > WRITTEN_OUT:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.float().softmax(-1).to(v.dtype) @ v


def _attend_in_pieces(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend a few heads and rows at a time, so that the scores of a piece never leave the cache."""
    batch, heads, n, _ = q.shape
    q, k, v = (q * q.shape[-1] ** -0.5).flatten(0, 1), k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)
    out = torch.empty_like(q)
    together = max(HEADS_AT_ONCE, SCORES_AT_ONCE // (n * k.shape[-1]))  # small pictures: many, or the calls cost more
    rows = max(1, SCORES_AT_ONCE // (together * k.shape[-1]))
    for first in range(0, len(q), together):
        some = slice(first, first + together)
        for row in range(0, n, rows):
            scores = torch.bmm(q[some, row : row + rows], k[some])
            out[some, row : row + rows] = torch.bmm(torch.softmax(scores, -1, out=scores), v[some])
    return out.unflatten(0, (batch, heads))
