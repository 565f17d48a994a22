"""Faster inference on a CPU: convolution and linear weights laid out once, as the CPU library wants them.

PyTorch reorders such weights at every call; for the full-size UNet at a small batch that is a large share of the time
(``scripts/benchmark.py edit`` measures it). Packed modules hold no parameters any more: they cannot be trained, saved
or moved.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from ldm.cpu.winograd import ROWS, WinogradConv2d, more_memory, suits_winograd
from ldm.modules.attention import GEGLU, CrossAttention, multi_head

WINOGRAD_FROM = 256  # channels; with fewer the sums cost what the products save
WINOGRAD_MEMORY = 5 << 27  # bytes that a network's transformed filters may take beyond the filters: 0.625 GiB


@lru_cache
def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether PyTorch has the operators that packed modules call (any x86 build since 2.0), and for this type.

    In half precision they want a CPU with AVX-512 or its like; PyTorch's own layers do without.
    """
    names = ("_convolution_pointwise", "_reorder_convolution_weight", "_linear_pointwise", "_reorder_linear_weight")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported())


class PackedConv2d(nn.Module):
    """A convolution with its weight in the library's own layout for the shape of its latest input.

    A layout that another shape was given is up to 50 times slower (the library's reference loops), so a new shape lays
    the weight out anew, which takes about as long as one call of the plain convolution.
    """

    def __init__(self, conv: nn.Conv2d):
        """conv: ungrouped, zero-padded, on the CPU. Its weight is laid out at the first call."""
        super().__init__()
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self._laid_out: tuple[torch.Size | None, torch.Tensor] = None, conv.weight.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` as the convolution does."""
        shape, weight = self._laid_out
        if x.shape != shape:
            plain = weight.to_dense() if weight.is_mkldnn else weight
            weight = torch.ops.mkldnn._reorder_convolution_weight(plain, *self.geometry, list(x.shape))
            self._laid_out = x.shape, weight
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.geometry, "none", [], "")


class PackedLinear(nn.Module):
    """A linear layer with its weight in the library's own layout."""

    def __init__(self, linear: nn.Linear):
        """linear: on the CPU."""
        super().__init__()
        self.bias = None if linear.bias is None else linear.bias.detach()
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``... in`` to ``... out``."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class PackedPointwise(nn.Module):
    """A 1x1 convolution as a linear layer over channels (its own packed form is slow on small maps)."""

    def __init__(self, conv: nn.Conv2d):
        """conv: 1x1, stride 1, no padding."""
        super().__init__()
        linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta")
        linear.weight = nn.Parameter(conv.weight.detach().flatten(1).contiguous(), requires_grad=False)
        linear.bias = conv.bias
        self.linear = PackedLinear(linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` as the convolution does."""
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PackedGEGLU(nn.Module):
    """A gated linear layer as two: the gate with its GELU, and the value multiplied by it, each in one pass."""

    def __init__(self, layer: GEGLU):
        """layer: on the CPU."""
        super().__init__()
        values, gates = layer.proj.weight.detach().chunk(2)
        self.value_bias, self.gate_bias = (part.clone() for part in layer.proj.bias.detach().chunk(2))
        self.values = torch.ops.mkldnn._reorder_linear_weight(values.contiguous(), ROWS)
        self.gates = torch.ops.mkldnn._reorder_linear_weight(gates.contiguous(), ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``... in`` to ``... out`` as the layer does."""
        gate = torch.ops.mkldnn._linear_pointwise(x, self.gates, self.gate_bias, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise.binary(x, gate, self.values, self.value_bias, "mul")


def _joined(*layers: nn.Linear) -> PackedLinear:
    """Several linear layers of one input, without biases, as one: their outputs side by side."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    return PackedLinear(joined)


class PackedSelfAttention(nn.Module):
    """Attention of positions to each other: queries, keys and values by one product."""

    def __init__(self, attention: CrossAttention):
        """attention: on the CPU, to itself."""
        super().__init__()
        self.heads = attention.heads
        self.to_qkv = _joined(attention.to_q, attention.to_k, attention.to_v)
        self.to_out = PackedLinear(attention.to_out[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b n d`` as the attention does."""
        return self.to_out(multi_head(*self.to_qkv(x).chunk(3, -1), self.heads))


class PackedTextAttention(nn.Module):
    """Attention to the text, which keeps the text's keys and values: all steps of an edit ask with the same text."""

    def __init__(self, attention: CrossAttention):
        """attention: on the CPU, to a context."""
        super().__init__()
        self.heads = attention.heads
        self.to_q = PackedLinear(attention.to_q)
        self.to_kv = _joined(attention.to_k, attention.to_v)
        self.to_out = PackedLinear(attention.to_out[0])
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map ``b n d`` as the attention does; context: ``b m context_dim``."""
        kept = self._kept  # once: another thread may edit by another text meanwhile
        if kept is None or not torch.equal(kept[0], context):
            kept = self._kept = context.clone(), self.to_kv(context)
        return self.to_out(multi_head(self.to_q(x), *kept[1].chunk(2, -1), self.heads))


class CentredGroupNorm(nn.Module):
    """Group normalisation that takes each group's mean off first.

    Packed convolutions give channels-last maps, where PyTorch's own loses digits if a mean is large beside its spread.
    """

    def __init__(self, norm: nn.GroupNorm):
        """norm: the layer to replace."""
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``b c h w`` as the layer does."""
        groups = x.unflatten(1, (self.norm.num_groups, -1))
        return self.norm((groups - groups.mean((2, 3, 4), keepdim=True)).flatten(1, 2))


def _packed(layer: nn.Module) -> nn.Module | None:
    """Return the packed form of a layer, None if it has none."""
    if type(layer) is nn.Linear:
        return PackedLinear(layer)
    if type(layer) is CrossAttention:
        return PackedSelfAttention(layer) if layer.to_itself else PackedTextAttention(layer)
    if type(layer) is GEGLU:
        return PackedGEGLU(layer)
    if type(layer) is nn.GroupNorm and layer.weight.dtype == torch.float32:
        return CentredGroupNorm(layer)
    if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
        pointwise = layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0)
        return PackedPointwise(layer) if pointwise else PackedConv2d(layer)
    return None


def use_winograd(module: nn.Module) -> None:
    """Replace wide 3x3 convolutions inside, in place, while memory allows; a UNet's middle, where the maps are
    smallest, comes last. Nothing else is changed. The module is for inference only from then on."""
    suitable = [
        (parent, name)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Conv2d
        and suits_winograd(child)
        and min(child.in_channels, child.out_channels) >= WINOGRAD_FROM
    ]
    left = WINOGRAD_MEMORY
    for i in sorted(range(len(suitable)), key=lambda i: min(i, len(suitable) - 1 - i)):
        parent, name = suitable[i]
        conv = getattr(parent, name)
        left -= more_memory(conv)
        if left < 0:
            return
        setattr(parent, name, WinogradConv2d(conv, packed=can_pack(conv.weight.dtype)))


def _pack_inside(parent: nn.Module) -> None:
    """Replace what is inside a module by packed forms; nothing holds on to what was replaced, so memory is freed."""
    for name in [name for name, _ in parent.named_children()]:
        packed = _packed(getattr(parent, name))
        if packed is None:
            _pack_inside(getattr(parent, name))
        else:
            setattr(parent, name, packed)


def pack(module: nn.Module) -> nn.Module:
    """Replace the convolutions and linear layers inside ``module`` by packed ones, in place, and return it.

    Wide 3x3 convolutions take fewer products afterwards (``winograd.py``). Does nothing where ``can_pack`` is false of
    a parameter's type. The module must be on the CPU and is for inference only from then on.
    """
    if not all(can_pack(dtype) for dtype in {p.dtype for p in module.parameters()}):
        return module
    use_winograd(module)
    _pack_inside(module)
    return module
