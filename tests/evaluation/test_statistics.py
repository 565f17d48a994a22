"""Means and their bootstrap intervals."""

import pytest
import torch

from ldm.evaluation.statistics import bootstrap


def test_bootstrap_covers_the_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 3
    interval = bootstrap(values)
    assert interval.low < 3.0 < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 400**0.5, rel=0.2)
    with pytest.raises(ValueError, match="no figures"):
        bootstrap(torch.empty(0))


def test_seeds_of_one_picture_are_one_draw_of_the_bootstrap():
    values = torch.randn(40, generator=torch.Generator().manual_seed(1))
    alone = bootstrap(values)
    copied = bootstrap(values.repeat(4), clusters=list(range(40)) * 4)
    assert (copied.mean, copied.low, copied.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert copied.n == 160
    uneven = bootstrap(torch.tensor([1.0, 1.0, 1.0, 5.0]), clusters=["a", "a", "a", "b"])
    assert (uneven.mean, uneven.low, uneven.high) == pytest.approx((2.0, 1.0, 5.0))


def test_the_interval_of_comparisons_in_pairs_covers_the_truth():
    # |a - b| of independent standard normal a, b has the mean 2 / sqrt(pi)
    generator, covered, tries, n = torch.Generator().manual_seed(2), 0, 300, 60
    for _ in range(tries):
        x = torch.randn(n, generator=generator)
        rows = (x[:, None] - x).abs().sum(1) / (n - 1)
        interval = bootstrap(rows, draws=400, pairs=True)
        covered += interval.low < 2 / torch.pi**0.5 < interval.high
    assert 0.9 < covered / tries < 0.99
