"""Muon: its updates are orthogonal where they should be, and AdamW's own elsewhere."""

import copy

import pytest
import torch
from torch import nn

from ldm.models.optimizer import make_optimizer
from ldm.spriteworld.weights.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12), (64, 576)])
def test_the_update_keeps_the_singular_vectors_and_levels_the_values(shape):
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=g, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalised(matrix) @ vt.T
    assert inner.diagonal().min() > 0.5
    assert inner.diagonal().max() < 1.3
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24)])
def test_a_matrix_of_low_rank_stays_so_in_single_precision(shape):
    """Rows that are alike, as a fresh gradient has them: what is nothing must not be blown up by rounding."""
    matrix = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(0))[torch.arange(shape[0]) % 2]
    values = torch.linalg.svdvals(orthogonalised(matrix).double())
    assert values[1] > 0.5
    assert values[0] < 1.3
    assert values[2] < 0.01


def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"conv_in": nn.Conv2d(3, 8, 3), "hidden": nn.Conv2d(8, 8, 3), "norm": nn.GroupNorm(2, 8)})


def step(model, optimizer, seed):
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model["norm"](model["hidden"](model["conv_in"](x))).square().sum(dim=1).cos().mean().backward()
    optimizer.step()


def test_what_is_not_a_hidden_matrix_takes_adamw():
    ours, theirs = network(), network()
    names = ["conv_in.weight", "conv_in.bias", "norm.weight", "norm.bias", "hidden.bias"]
    a = Muon(ours.named_parameters(), lr=1e-2, muon_lr=1e-9, weight_decay=0.1)
    rest = [p for n, p in theirs.named_parameters() if n in names]
    b = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for seed in range(5):
        step(ours, a, seed)
        theirs.zero_grad()
        step(theirs, b, seed)
    for name in names:
        assert torch.allclose(ours.get_parameter(name), theirs.get_parameter(name), atol=1e-6), name


def test_a_hidden_convolution_moves_by_the_rate_times_an_orthogonal_matrix():
    model = network()
    before = model["hidden"].weight.detach().clone()
    optimizer = Muon(model.named_parameters(), lr=1e-9, muon_lr=0.01)
    step(model, optimizer, 0)
    moved = (model["hidden"].weight.detach() - before).flatten(1) / 0.01
    assert torch.linalg.svdvals(moved).min() > 0.5
    assert torch.linalg.svdvals(moved).max() < 1.3


def test_it_goes_on_from_its_state():
    a, b = network(), network()
    first, second = Muon(a.named_parameters()), Muon(b.named_parameters())
    for seed in range(4):
        step(a, first, seed)
    for seed in range(2):
        step(b, second, seed)
    again, resumed = network(), None
    again.load_state_dict(b.state_dict())
    resumed = Muon(again.named_parameters())
    resumed.load_state_dict(copy.deepcopy(second.state_dict()))
    for seed in range(2, 4):
        step(again, resumed, seed)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), again.parameters(), strict=True))


def test_the_config_names_it_and_others_get_plain_parameters():
    config = {"target": "ldm.spriteworld.weights.muon.Muon", "params": {"muon_lr": 0.03}}
    found = make_optimizer(network().named_parameters(), 1e-3, config)["optimizer"]
    assert sorted(group["lr"] for group in found.param_groups) == [1e-3, 0.03]
    plain = make_optimizer(network().named_parameters(), 1e-3, {"target": "torch.optim.SGD"})["optimizer"]
    assert len(plain.param_groups[0]["params"]) == 6


@pytest.mark.parametrize("bad", [{"lr": 0}, {"muon_lr": -1}, {"momentum": 1.0}])
def test_rates_that_make_no_sense(bad):
    with pytest.raises(ValueError, match="must be above 0"):
        Muon(network().named_parameters(), **bad)
    with pytest.raises(ValueError, match="named"):
        Muon(network().parameters())
