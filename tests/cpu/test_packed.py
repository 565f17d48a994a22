"""Packed layers against the plain ones they replace."""

import copy
import time
import weakref

import pytest
import torch
from torch import nn

from ldm.cpu import packed as cpu_inference
from ldm.cpu.packed import PackedConv2d, PackedLinear, PackedPointwise, can_pack, pack
from ldm.models.devices import bf16_is_faster
from ldm.modules.attention import GEGLU, CrossAttention, attend
from tests.conftest import build_tiny
from tests.models.reference import relative

pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no packing operators")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
half = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no packed layers in bf16")
TYPES = (torch.float32, pytest.param(torch.bfloat16, marks=half))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (lambda: nn.Conv2d(8, 32, 3, padding=1), [(1, 8, 16, 16), (3, 8, 7, 13), (2, 8, 64, 5)]),
        (lambda: nn.Conv2d(32, 32, 3, stride=2, padding=1), [(1, 32, 16, 16), (2, 32, 9, 6)]),
        (lambda: nn.Conv2d(16, 4, 3, stride=2), [(2, 16, 17, 9)]),
        (lambda: nn.Conv2d(32, 16, 1), [(1, 32, 4, 4), (3, 32, 5, 11)]),
        (lambda: nn.Conv2d(32, 16, 1, bias=False), [(2, 32, 3, 3)]),
        (lambda: nn.Linear(24, 40), [(5, 24), (2, 77, 24), (1, 24)]),
        (lambda: nn.Linear(24, 40, bias=False), [(3, 9, 24)]),
    ],
)
def test_a_packed_layer_equals_the_plain_one(layer, shapes, dtype):
    torch.manual_seed(0)
    plain = layer()
    packed = pack(nn.Sequential(copy.deepcopy(plain).to(dtype)))
    assert isinstance(packed[0], (PackedConv2d, PackedLinear, PackedPointwise))
    for shape in shapes:
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = plain(x)
            for given in (x, x.to(memory_format=torch.channels_last) if x.ndim == 4 else x):
                out = packed(given.to(dtype)).float()
                assert out.shape == expected.shape
                assert relative(out, expected) < TOLERANCE[dtype]


def test_a_whole_packed_unet_equals_the_plain_one():
    model = build_tiny()
    z, t, context = torch.randn(3, 8, 8, 16), torch.tensor([1.0, 500.5, 999.0]), torch.randn(3, 77, 32)
    with torch.inference_mode():
        expected = model.model.diffusion_model(z, t, context)
        packed = pack(model.model.to(memory_format=torch.channels_last)).diffusion_model
        assert not any(type(m) in (nn.Conv2d, nn.Linear) for m in packed.modules())
        assert relative(packed(z, t, context), expected) < 1e-3  # random weights amplify rounding, see test_parity


def test_packing_leaves_no_second_copy_of_the_weights():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(4, 4), nn.Conv2d(8, 8, 1))
    pack(model)
    assert not [name for name, p in model.named_parameters() if p.ndim > 1]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("layer", "shape", "packs"),
    [
        (lambda: nn.Conv2d(16, 16, 3, padding=2, dilation=2), (2, 16, 11, 7), True),
        (lambda: nn.Conv2d(16, 24, 1, stride=2), (2, 16, 9, 9), True),
        (lambda: nn.Conv2d(16, 24, 1, padding=1), (2, 16, 5, 4), True),
        (lambda: nn.Conv2d(3, 5, (1, 3), padding=(0, 1)), (1, 3, 6, 33), True),
        (lambda: nn.Conv2d(4, 8, 3, padding=1), (1, 4, 1, 1), True),
        (lambda: nn.Conv2d(16, 16, 3, padding=1, groups=4), (2, 16, 8, 8), False),
        (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), (2, 8, 8, 8), False),
        (lambda: nn.Linear(7, 3), (1, 1, 7), True),
        (lambda: nn.Linear(7, 3), (2, 3, 5, 7), True),
    ],
)
def test_unusual_layers_are_packed_rightly_or_left_alone(layer, shape, packs, dtype):
    torch.manual_seed(1)
    plain = layer()
    packed = pack(nn.Sequential(copy.deepcopy(plain).to(dtype)))
    assert (type(packed[0]) is not type(plain)) == packs
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = plain(x)
        assert relative(packed(x.to(dtype)).float(), expected) < TOLERANCE[dtype]
        skipped = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]  # not contiguous
        assert relative(packed(skipped.to(dtype)).float(), plain(skipped)) < TOLERANCE[dtype]


def test_a_convolution_is_laid_out_anew_for_every_new_shape(monkeypatch):
    conv = nn.Conv2d(64, 32, 3, padding=1)
    packed, pack_for_cpu, asked = PackedConv2d(copy.deepcopy(conv)), torch.ops.mkldnn._reorder_convolution_weight, []

    def noted(weight, padding, stride, dilation, groups, shape):
        asked.append(tuple(shape))
        return pack_for_cpu(weight, padding, stride, dilation, groups, shape)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", noted)
    shapes = [(3, 64, 4, 4), (3, 64, 64, 64), (3, 64, 64, 64), (1, 64, 9, 5)]
    with torch.inference_mode():
        for shape in shapes:
            x = torch.randn(shape)
            assert relative(packed(x), conv(x)) < 1e-5
            assert torch.equal(packed._laid_out[1].to_dense(), conv.weight)
    assert asked == [shapes[0], shapes[1], shapes[3]]


@pytest.mark.parametrize("supported", [True, False])
def test_half_precision_is_packed_only_where_the_cpu_can(monkeypatch, supported):
    can_pack.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(cpu_inference, "_packed", lambda layer: nn.Identity())
    try:
        for dtype, packs in ((torch.float32, True), (torch.bfloat16, supported)):
            assert isinstance(pack(nn.Sequential(nn.Linear(4, 4).to(dtype)))[0], nn.Identity) == packs
    finally:
        can_pack.cache_clear()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_packed_gated_layer_equals_the_plain_one(dtype):
    torch.manual_seed(3)
    plain = GEGLU(24, 40)
    packed = pack(nn.Sequential(copy.deepcopy(plain).to(dtype)))
    assert type(packed[0]) is not GEGLU
    for shape in ((5, 24), (2, 77, 24), (3, 1, 24)):
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = plain(x)
            assert relative(packed(x.to(dtype)).float(), expected) < TOLERANCE[dtype]
            assert relative(packed((100 * x).to(dtype)).float(), plain(100 * x)) < TOLERANCE[dtype]


def test_a_packed_layer_gives_each_picture_the_same_in_any_batch():
    torch.manual_seed(2)
    packed = pack(nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)))
    x = torch.randn(9, 16, 24, 20)
    with torch.inference_mode():
        together = packed(x)
        for i in (0, 4, 8):
            assert relative(packed(x[i : i + 1]), together[i : i + 1]) < 1e-5


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("context_dim", [None, 24])
def test_a_packed_attention_equals_the_plain_one(context_dim, dtype):
    torch.manual_seed(4)
    plain = CrossAttention(40, context_dim, heads=5, dim_head=8)
    packed = pack(nn.Sequential(copy.deepcopy(plain).to(dtype)))[0]
    assert type(packed) is not CrossAttention
    x = torch.randn(3, 50, 40)
    texts = [()] if context_dim is None else [(torch.randn(3, 7, 24),) for _ in range(2)]
    with torch.inference_mode():
        for text in (*texts, texts[0]):  # another text of the same shape, and the first again
            expected = plain(x, *text)
            out = packed(x.to(dtype), *(t.to(dtype) for t in text)).float()
            assert relative(out, expected) < TOLERANCE[dtype]


def test_a_text_changed_in_place_is_asked_again():
    torch.manual_seed(5)
    packed = pack(nn.Sequential(CrossAttention(16, 8, heads=2, dim_head=8)))[0]
    x, text = torch.randn(1, 4, 16), torch.randn(1, 3, 8)
    with torch.no_grad():
        before = packed(x, text)
        text.mul_(-1)
        assert relative(packed(x, text), before) > 0.1


@pytest.mark.parametrize(
    ("batch", "heads", "n", "m", "d"),
    [(3, 8, 1100, 1030, 40), (1, 5, 70, 77, 16), (2, 3, 1, 9, 8), (1, 1, 3, 70000, 8)],
)
def test_attention_in_pieces_is_the_attention(batch, heads, n, m, d):
    torch.manual_seed(6)
    q, k, v = (torch.randn(batch, length, heads * d).unflatten(-1, (heads, d)).transpose(1, 2) for length in (n, m, m))
    low = [part.bfloat16() for part in (q, k, v)]
    with torch.inference_mode():
        expected = torch.nn.functional.scaled_dot_product_attention(*(part.double() for part in low))
        out = attend(*low)
        assert out.shape == expected.shape
        assert relative(out.double(), expected) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(
    ("seconds", "has_it", "faster"), [(0.01, True, True), (0.04, True, False), (0.01, False, False)]
)
def test_bf16_is_taken_where_a_trial_is_clearly_faster(monkeypatch, seconds, has_it, faster):
    taken = {torch.float32: 0.02, torch.bfloat16: seconds}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_it})

    def busy(a, b):
        end = time.thread_time() + taken[a.dtype]
        while time.thread_time() < end:
            pass

    monkeypatch.setattr(torch, "mm", busy)
    threads = torch.get_num_threads()
    bf16_is_faster.cache_clear()
    try:
        assert bf16_is_faster() is faster
        assert torch.get_num_threads() == threads
    finally:
        bf16_is_faster.cache_clear()


def test_an_older_pytorch_that_cannot_tell_its_cpu_edits_in_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    bf16_is_faster.cache_clear()
    try:
        assert not bf16_is_faster()
    finally:
        bf16_is_faster.cache_clear()


class Meanwhile(nn.Module):
    """A layer during whose work another thread edits by another text."""

    def __init__(self, layer, edit):
        super().__init__()
        self.layer, self.edit = layer, edit

    def forward(self, x):
        self.edit()
        return self.layer(x)


def test_threads_with_other_texts_do_not_take_each_others():
    torch.manual_seed(0)
    plain = CrossAttention(16, 24, heads=2, dim_head=8)
    packed = pack(nn.Sequential(copy.deepcopy(plain)))[0]
    first, second, x = torch.randn(1, 5, 24), torch.randn(1, 5, 24), torch.randn(1, 7, 16)

    def another():
        packed._kept = second, packed.to_kv(second)

    packed.to_q = Meanwhile(packed.to_q, another)
    with torch.inference_mode():
        assert relative(packed(x, first), plain(x, first)) < 1e-5


def test_packing_lets_go_of_each_layer_before_the_next(monkeypatch):
    seen, alive = [], []
    packed = cpu_inference._packed

    def noted(layer):
        if isinstance(layer, nn.Linear):
            alive.append(sum(ref() is not None for ref in seen))
            seen.append(weakref.ref(layer))
        return packed(layer)

    monkeypatch.setattr(cpu_inference, "_packed", noted)
    pack(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4)))
    assert alive == [0, 0, 0, 0]
