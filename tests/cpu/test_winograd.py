"""Convolutions by Winograd's filtering against PyTorch's own."""

import pytest
import torch
from torch import nn

from ldm.cpu import packed as cpu_inference
from ldm.cpu import winograd
from ldm.cpu.packed import can_pack, pack
from ldm.cpu.winograd import WinogradConv2d, more_memory, suits_winograd
from tests.models.reference import relative


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", [(1, 24, 16, 16), (3, 24, 7, 12), (2, 24, 9, 5), (1, 24, 1, 1), (2, 24, 2, 31)])
def test_it_computes_the_convolution(shape, packed, bias, dtype, tolerance):
    if packed and not can_pack(dtype):
        pytest.skip("this machine has no such packing operators")
    torch.manual_seed(0)
    plain = nn.Conv2d(24, 40, 3, padding=1, bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = plain.double()(x.double())
        ours = WinogradConv2d(plain.to(dtype), packed)
        for given in (x, x.to(memory_format=torch.channels_last)):
            out = ours(given.to(dtype))
            assert out.shape == expected.shape
            assert out.dtype == dtype
            assert out.is_contiguous(memory_format=layout_of(given))
            assert relative(out.double(), expected) < tolerance


def test_strips_make_no_seams(monkeypatch):
    torch.manual_seed(1)
    plain = nn.Conv2d(8, 8, 3, padding=1)
    x = torch.randn(2, 8, 21, 10)
    with torch.inference_mode():
        for values in (1, 5000, 1 << 30):  # a row of blocks at a time, a few, all
            monkeypatch.setattr(winograd, "VALUES_AT_ONCE", values)
            assert relative(WinogradConv2d(plain)(x), plain(x)) < 1e-5


@pytest.mark.parametrize(
    "other",
    [
        {"stride": 2},
        {"padding": 0},
        {"padding": 2, "dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"kernel_size": 5, "padding": 1},
    ],
)
def test_other_convolutions_are_refused(other):
    conv = nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, **other})
    assert not suits_winograd(conv)
    with pytest.raises(ValueError, match="no 3x3 convolution"):
        WinogradConv2d(conv)


@pytest.mark.skipif(not can_pack(), reason="this PyTorch has no packing operators")
def test_packing_uses_it_for_wide_layers_from_the_ends_within_the_memory(monkeypatch):
    torch.manual_seed(2)
    net = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in ((32, 32), (32, 32), (32, 32), (32, 8))))
    monkeypatch.setattr(cpu_inference, "WINOGRAD_FROM", 32)
    x = torch.randn(2, 32, 12, 12)
    with torch.inference_mode():
        expected = net(x)
    one = more_memory(net[0])
    assert one == 32 * 32 * (16 - 9) * 4
    for memory, used in ((one - 1, []), (2 * one, [0, 2]), (3 * one, [0, 1, 2])):
        monkeypatch.setattr(cpu_inference, "WINOGRAD_MEMORY", memory)
        packed = pack(nn.Sequential(*(copy_of(layer) for layer in net)))
        found = [i for i, layer in enumerate(packed) if isinstance(layer, WinogradConv2d)]
        assert found == used
        assert all(packed[i].packed for i in found)
        with torch.inference_mode():
            assert relative(packed(x), expected) < 1e-5


def copy_of(layer):
    twin = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    twin.load_state_dict(layer.state_dict())
    return twin


def layout_of(x):
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last
