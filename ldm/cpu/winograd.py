"""3x3 convolutions by fewer products, for inference: Winograd's minimal filtering F(2x2, 3x3).

Every 2 x 2 block of the output takes 16 products a channel pair instead of 36; the rest are sums. Exact in real
numbers; in fp32 the result differs from the direct one by about 1e-6 of its norm, in bf16 by about twice what bf16
itself costs. Source: Lavin and Gray 2015 (arXiv 1509.09308), section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ldm.errors import UserError

FILTER = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # the paper's G
ROWS = 3 * 16 * 16  # of a product, that a layout is chosen for; others are as quick
VALUES_AT_ONCE = 1 << 21  # of transformed input: a strip's stay in the cache, and memory stays bounded


def suits_winograd(conv: nn.Conv2d) -> bool:
    """Return whether ``WinogradConv2d`` computes what the convolution does: 3x3, stride 1, one pixel of zeros."""
    plain = conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == (1, 1)
    return plain and conv.groups == 1 and conv.padding_mode == "zeros"


def more_memory(conv: nn.Conv2d) -> int:
    """Return the bytes that the transformed filters take beyond the filters: 16 values for 9."""
    return conv.weight.numel() * conv.weight.element_size() * 7 // 9


class WinogradConv2d(nn.Module):
    """A 3x3 convolution with its filters transformed once; it holds no parameters any more."""

    def __init__(self, conv: nn.Conv2d, packed: bool = False):
        """conv: one that ``suits_winograd``; raises UserError for any other. packed: lay the filters out as the CPU
        library wants them, which saves it from doing so at every call (``packed.can_pack`` tells where that
        works)."""
        super().__init__()
        if not suits_winograd(conv):
            raise UserError(f"{conv} is no 3x3 convolution of stride 1 with one pixel of zero padding")
        weight = conv.weight.detach()
        self.channels, self.packed = weight.shape[0], packed
        self.filters = [_filter(weight, k) for k in range(16)] if not packed else []
        for k in range(16 if packed else 0):  # one by one: no second copy
            self.filters.append(torch.ops.mkldnn._reorder_linear_weight(_filter(weight, k), ROWS))
        self.bias = None if conv.bias is None else conv.bias.detach()

    def _product(self, x: torch.Tensor, k: int) -> torch.Tensor:
        """Map one of the 16 transformed inputs, ``n in``, to ``n out``."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.filters[k], None, "none", [], "")
        return x @ self.filters[k].T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b in h w`` to ``b out h w``, in the same memory layout, as the convolution does."""
        batch, channels, height, width = x.shape
        rows, columns = -(-height // 2), -(-width // 2)  # of 2 x 2 blocks; what sticks out is cut off at the end
        padded = x.new_zeros(batch, 2 * rows + 2, 2 * columns + 2, channels)
        padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
        out = x.new_empty(batch, 2 * rows, 2 * columns, self.channels)
        strip = max(1, VALUES_AT_ONCE // (16 * batch * columns * channels))
        for first in range(0, rows, strip):
            last = min(first + strip, rows)
            blocks = _transform_input(padded[:, 2 * first : 2 * last + 2])
            shape = (*blocks.shape[1:4], self.channels)
            products = [self._product(blocks[k].flatten(0, 2), k).view(shape) for k in range(16)]
            _transform_output(products, self.bias, out[:, 2 * first : 2 * last])
        out = out[:, :height, :width].permute(0, 3, 1, 2)
        return out.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


def _filter(weight: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k-th of the 16 transformed filters, ``out in``, of a convolution's ``out in 3 3``."""
    factors = torch.outer(FILTER[k // 4], FILTER[k % 4])
    return sum(factors[i, j] * weight[:, :, i, j].float() for i, j in factors.nonzero()).to(weight.dtype)


def _quads(x: torch.Tensor, dim: int, out: torch.Tensor) -> None:
    """Write the four sums of every 4 neighbours in steps of 2 along ``dim`` (the paper's B^T) to ``out[0]`` to [3]."""
    steps = x.shape[dim] // 2 - 1
    a, b, c, d = (x.narrow(dim, k, 2 * steps - 1).unfold(dim, 1, 2).squeeze(-1) for k in range(4))
    torch.sub(a, c, out=out[0])
    torch.add(b, c, out=out[1])
    torch.sub(c, b, out=out[2])
    torch.sub(b, d, out=out[3])


def _transform_input(x: torch.Tensor) -> torch.Tensor:
    """Map ``b 2r+2 2c+2 channels`` to ``16 b r c channels``."""
    batch, height, width, channels = x.shape
    rows, columns = height // 2 - 1, width // 2 - 1
    half = x.new_empty(4, batch, rows, width, channels)
    _quads(x, 1, half)
    whole = x.new_empty(4, 4, batch, rows, columns, channels)
    _quads(half, 3, whole.transpose(0, 1))
    return whole.flatten(0, 1)


def _pair(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two sums (the paper's A^T) of four."""
    return (b + c).add_(a), (b - c).sub_(d)


def _transform_output(products: Sequence[torch.Tensor], bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write 16 of ``b r c channels``, row by row of a block, to ``out``, ``b 2r 2c channels``, with the bias."""
    halves = zip(*(_pair(*products[column::4]) for column in range(4)), strict=True)
    for row, half in enumerate(halves):
        for column, block in enumerate(_pair(*half)):
            target = out[:, row::2, column::2]
            target.copy_(block) if bias is None else torch.add(block, bias, out=target)
