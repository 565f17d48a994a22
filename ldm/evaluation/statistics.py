"""Means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

ENOUGH = 5  # independent inputs: with fewer a bootstrap interval says nothing (of one it has no width)


@dataclass(frozen=True)
class Interval:
    """A mean with the 95 % bootstrap interval around it, over ``n`` pictures of ``draws`` independent inputs (None for
    as many as pictures)."""

    mean: float
    low: float
    high: float
    n: int
    draws: int | None = None

    @property
    def known(self) -> bool:
        """Whether there are independent inputs enough for the interval to say anything (``ENOUGH``)."""
        return (self.n if self.draws is None else self.draws) >= ENOUGH

    def __str__(self) -> str:
        return f"{self.mean:.3g}" + (f" [{self.low:.3g}, {self.high:.3g}]" if self.known else "")


def bootstrap(
    values: torch.Tensor,
    draws: int = 1000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
    pairs: bool = False,
) -> Interval:
    """Return the mean of ``(n,)`` figures and its 95 % percentile interval. Raises ValueError for none.

    clusters: what each figure belongs to (several seeds of one picture); whole clusters are drawn, since their figures
    are not independent. pairs: each figure is the mean of a picture's comparisons with all the others; every picture
    then moves the mean twice, so the interval is twice as wide (Hoeffding 1948: the variance of a U-statistic of order
    two is 4 times that of its first projection).
    """
    values = values.double().flatten()
    if not len(values):
        raise ValueError("no figures to average")
    number: dict[Hashable, int] = {}
    ids = [number.setdefault(name, len(number)) for name in (range(len(values)) if clusters is None else clusters)]
    index, k = torch.tensor(ids), len(number)
    sums = torch.zeros(k, dtype=values.dtype).index_add_(0, index, values)
    sizes = torch.zeros(k, dtype=values.dtype).index_add_(0, index, torch.ones_like(values))
    picks = torch.randint(k, (draws, k), generator=torch.Generator().manual_seed(seed))
    mean = values.mean()
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    if pairs:
        means = mean + 2 * (means - mean)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval(mean.item(), low, high, len(values), k)
