"""The first stage's loss: what keeps the latent's channels apart."""

import pytest
import torch

from ldm.modules.distributions import DiagonalGaussian
from ldm.modules.first_stage_loss import ReconstructionLoss, correlation


def white(channels: int, seed: int = 0) -> torch.Tensor:
    """Latents whose channels have exactly zero mean, unit variance and no correlation."""
    values = torch.randn(4 * 8 * 8, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, _ = torch.linalg.qr(values - values.mean(0))
    return (q * len(q) ** 0.5).float().view(4, 8, 8, channels).movedim(-1, 1)


def test_white_channels_cost_nothing():
    assert correlation(white(6)) < 1e-9


@pytest.mark.parametrize(
    ("change", "cost"),
    [
        (lambda z: z[:, [0, 0]], 1.0),  # the same twice: each row of the covariance has one excess of 1
        (lambda z: z * 2, 9.0),  # variance 4
        (lambda z: z * 0, 1.0),  # nothing carried
        (lambda z: z + 3, 9.0),  # a mean of 3
    ],
)
def test_what_is_not_white_costs_its_distance(change, cost):
    assert correlation(change(white(2))).item() == pytest.approx(cost, rel=1e-4)


def test_half_precision_does_not_overflow():
    z = 5 * torch.randn(16, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.float16):
        assert correlation(z).item() == pytest.approx(correlation(z.double()).item(), rel=1e-3)


def test_the_loss_spreads_what_few_directions_carry():
    """Plain descent on the whitening alone turns one carried direction of three into three."""
    z = white(3)[:, :1] * torch.tensor([1.0, 0.9, 0.8]).view(1, 3, 1, 1) + 0.2 * white(3, seed=2)
    mix = torch.eye(3, requires_grad=True)
    loss = ReconstructionLoss(0, 0, 0, 0, whiten=1.0)
    picture = torch.zeros(4, 3, 8, 8)
    begun = torch.linalg.eigvalsh(torch.cov(z.movedim(1, 0).flatten(1)))
    assert begun[0] / begun[-1] < 0.05
    optimizer = torch.optim.Adam([mix], lr=0.1)
    for _ in range(600):
        mixed = torch.einsum("bchw,cd->bdhw", z, mix)
        total, parts = loss(picture, picture, DiagonalGaussian(torch.cat([mixed, mixed], 1)), None)
        assert total == parts["whiten"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    ended = torch.linalg.eigvalsh(torch.cov(mixed.detach().movedim(1, 0).flatten(1)))
    assert ended[0] / ended[-1] > 0.9


def test_without_a_weight_it_is_left_out():
    z, picture = white(2), torch.zeros(4, 3, 8, 8)
    _, parts = ReconstructionLoss()(picture, picture, DiagonalGaussian(torch.cat([z, z], 1)), None)
    assert "whiten" not in parts
