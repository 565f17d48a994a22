"""The objective: ranges that make no sense, and its arithmetic against the formulas written out."""

import pytest
import torch

from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.objective import Objective
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.errors import UserError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss_type": "l3"}, "loss_type 'l3'; known: l2, l1"),
        ({"reg_weight": -1.0}, "reg_weight is -1.0; a number from 0"),
        ({"reg_weight": float("nan")}, "reg_weight is nan"),
        ({"t_power": 0.0}, "t_power is 0"),
        ({"dropout_text": 0.5, "dropout_image": 0.6}, "add up to more than 1"),
        ({"snr_offset": 1.0}, "min_snr_gamma is null"),
        ({"dropped_weight": 0.5}, "nothing is dropped"),
    ],
)
def test_what_makes_no_sense_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        Objective(**given)


def test_the_default_objective_is_the_plain_loss():
    objective, schedule = Objective(), Schedule(make_betas())
    prediction, target = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    losses = objective.sample_losses(prediction, target, None, schedule, t, "eps")
    torch.testing.assert_close(losses, (prediction - target).square().mean((1, 2, 3)))
    total, parts = objective.join(losses, torch.tensor([False, False, True]))
    torch.testing.assert_close(total, losses[:2].mean() + losses[2])
    assert set(parts) == {"instance", "reg"}
    assert not objective.drops
    assert objective.position_weights(prediction, target) is None


def test_halves_are_weighed_and_dropped_samples_count_less():
    objective = Objective(reg_weight=0.5, dropout_text=0.25, dropout_both=0.25, dropped_weight=0.1)
    losses, is_reg = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([False, False, True, True])
    u = torch.tensor([0.1, 0.9, 0.45, 0.6])  # text dropped, kept, both dropped, kept
    total, _ = objective.join(losses, is_reg, u)
    assert total.item() == pytest.approx((0.1 + 2.0) / 2 + 0.5 * (0.3 + 4.0) / 2)
    conditioning = Conditioning(torch.ones(4, 2, 3), torch.ones(4, 1, 2, 2))
    left = objective.drop(conditioning, torch.zeros(1, 2, 3), u)
    assert [bool(s.any()) for s in left.c_crossattn] == [False, True, False, True]
    assert [bool(s.any()) for s in left.c_concat] == [True, True, False, True]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_times_are_drawn_by_the_power_of_uniform_numbers(power):
    u = torch.linspace(0, 0.9999, 1001)
    t = Objective(t_power=power).times(u, 1000)
    assert (t.min().item(), t.max().item()) == (0, 999)
    torch.testing.assert_close(t.float(), (1000 * u ** (1 / power)).floor())


def test_offset_noise_is_one_number_for_all_positions_of_a_channel():
    def randn(shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))

    shape, device = (2, 4, 8, 8), torch.device("cpu")
    offset = Objective(offset_noise=0.1).noise(shape, randn, device) - Objective().noise(shape, randn, device)
    torch.testing.assert_close(offset, (0.1 * randn((2, 4, 1, 1))).expand(shape), atol=1e-6, rtol=0)


def test_min_snr_weighs_by_the_time():
    schedule, t = Schedule(make_betas()), torch.tensor([10, 900])
    snr = schedule.sigmas[t] ** -2
    prediction, target = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    losses = Objective(min_snr_gamma=5.0).sample_losses(prediction, target, None, schedule, t, "eps")
    torch.testing.assert_close(losses, snr.clamp(max=5) / snr)
