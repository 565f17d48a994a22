"""The average against one computed by hand, and its published names."""

import pytest
import torch
from torch import nn

from ldm.modules.ema import LitEma


def test_average_equals_a_hand_computed_one():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema, expected = LitEma(model, decay=0.9), 0.0
    for n, value in enumerate((1.0, 2.0, -1.0, 4.0, 4.0, 4.0, 0.5, 0.5, 0.5, 0.5, 8.0, 8.0) * 10, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.weight.item() == pytest.approx(expected, rel=1e-5)


def test_names_are_the_published_ones():
    model = nn.ModuleDict({"diffusion_model": nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))})
    names = set(dict(LitEma(model).named_buffers()))
    expected = {"decay", "num_updates"}
    expected |= {f"diffusion_model{i}{kind}" for i in ("0", "10") for kind in ("weight", "bias")}
    assert names == expected


def test_swapping_restores_the_models_own_weights_also_after_an_error():
    model = nn.Linear(2, 2)
    ema, averaged = LitEma(model), model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    own = model.weight.detach().clone()
    seen = []

    def fail_inside():
        with ema.swapped_into(model):
            seen.append(model.weight.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(seen[0], averaged)
    assert torch.equal(model.weight, own)


def test_frozen_parameters_have_no_average():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert "bias" not in dict(LitEma(model).named_buffers())


def test_bad_decay_and_colliding_names_are_refused():
    with pytest.raises(ValueError, match="decay"):
        LitEma(nn.Linear(1, 1), decay=1.5)
    colliding = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1)}), "ab": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="dots"):
        LitEma(colliding)


def test_the_first_updates_follow_quickly_and_are_counted():
    """CompVis' warm-up: the first decay is 2 / 11, whatever the final one."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = LitEma(model, decay=0.9999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema.update(model)
    assert ema.weight.item() == pytest.approx(9 / 11, rel=1e-6)
    ema.update(model)
    assert ema.weight.item() == pytest.approx(9 / 11 * 3 / 12 + 9 / 12, rel=1e-6)
    assert ema.num_updates.item() == 2


def test_an_average_is_saved_and_goes_on_where_it_was():
    model = nn.Linear(3, 2)
    one, other = LitEma(model, 0.9), LitEma(nn.Linear(3, 2), 0.5)
    for step in range(3):
        with torch.no_grad():
            model.weight.add_(step)
        one.update(model)
    other.load_state_dict(one.state_dict())
    for ema in (one, other):
        ema.update(model)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_averages_are_no_parameters_and_swap_into_any_precision():
    model = nn.Linear(4, 4).to(torch.bfloat16)
    ema = LitEma(model)
    ema.update(model)
    with ema.swapped_into(model):
        assert model.weight.dtype == torch.bfloat16
    assert not any(b.requires_grad for b in ema.buffers())
    assert list(ema.parameters()) == []
