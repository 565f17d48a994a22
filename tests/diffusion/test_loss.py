"""The training loss against closed forms."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_dream_and_update_latents, compute_snr

from ldm.diffusion.loss import min_snr_weights, prior_preservation, rectified_noise, sample_losses
from ldm.diffusion.parameterization import target, to_eps
from ldm.diffusion.schedule import Schedule, make_betas

T = torch.tensor([1, 20, 150, 350, 600, 999])  # SNR from 586 to 0.005, on both sides of gamma = 5


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def schedule():
    return Schedule(make_betas())


def test_sample_losses_are_means_over_each_sample():
    prediction, wanted = draw(3, 4, 2, 5, seed=0), draw(3, 4, 2, 5, seed=1)
    error = (prediction - wanted).double()
    l2 = [sum(e**2 for e in row) / 40 for row in error.flatten(1).tolist()]
    l1 = [sum(abs(e) for e in row) / 40 for row in error.flatten(1).tolist()]
    assert sample_losses(prediction, wanted).tolist() == pytest.approx(l2, rel=1e-5)
    assert sample_losses(prediction, wanted, "l1").tolist() == pytest.approx(l1, rel=1e-5)
    assert sample_losses(prediction, wanted).shape == (3,)


def test_sample_losses_are_fp32():
    prediction, wanted = draw(2, 4, 8, 8, seed=2).bfloat16(), draw(2, 4, 8, 8, seed=3).bfloat16()
    losses = sample_losses(prediction, wanted)
    assert losses.dtype == torch.float32
    exact = (prediction.double() - wanted.double()).square().flatten(1).mean(1)
    assert losses.tolist() == pytest.approx(exact.tolist(), rel=1e-5)


def test_unknown_loss_type_raises():
    with pytest.raises(ValueError, match=r"unknown loss_type 'huber'.*l2, l1"):
        sample_losses(torch.zeros(1, 1), torch.zeros(1, 1), "huber")


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_min_snr_weighs_every_target_alike(schedule, name, gamma, offset):
    """Weight times the error in the network's own target is min(SNR + offset, gamma) times that in the clean latent."""
    z, noise, wrong = (draw(6, 4, 3, 2, seed=s, dtype=torch.float64) for s in (4, 5, 6))
    abar = torch.cumprod(1 - make_betas(), 0)[T]
    alpha, sigma = (x.sqrt().view(6, 1, 1, 1) for x in (abar, 1 - abar))
    z_t = alpha * z + sigma * noise
    # a network that believes in the clean latent ``wrong``, and so in the noise that then made z_t
    believed = target(name, wrong, (z_t - alpha * wrong) / sigma, alpha, sigma)
    own = (believed - target(name, z, noise, alpha, sigma)).square().flatten(1).mean(1)
    in_x0 = (wrong - z).square().flatten(1).mean(1)
    snr = abar / (1 - abar)
    weights = min_snr_weights(schedule, T, name, gamma, offset)
    assert weights.shape == (6,)
    assert (weights * own).tolist() == pytest.approx(((snr + offset).clamp(max=gamma) * in_x0).tolist(), rel=1e-4)


def test_min_snr_equals_diffusers_recipe(schedule):
    """``compute_snr`` and the formulas of diffusers' train_text_to_image.py."""
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = compute_snr(theirs, T)
    assert snr.min() < 5 < snr.max()
    capped = torch.minimum(snr, torch.full_like(snr, 5.0))
    expected = {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}
    for name, values in expected.items():
        assert min_snr_weights(schedule, T, name, 5.0).tolist() == pytest.approx(values.tolist(), rel=1e-4)


def test_min_snr_leaves_noisy_eps_steps_alone(schedule):
    """Above gamma the weight falls as gamma / SNR; below it an eps-error keeps the weight 1."""
    weights = min_snr_weights(schedule, torch.arange(1000), "eps", 5.0)
    assert weights[-1] == 1
    assert weights.max() == 1
    assert (weights.diff() >= 0).all()
    assert weights[0].item() == pytest.approx(5.0 * schedule.sigma_min**2, rel=1e-5)


def test_prior_preservation_averages_each_half_by_itself():
    losses = torch.tensor([1.0, 10.0, 3.0, 20.0, 5.0, 7.0])
    regularization = torch.tensor([False, True, False, True, False, False])
    total, parts = prior_preservation(losses, regularization, 0.25)
    assert parts["instance"].item() == 4.0
    assert parts["reg"].item() == 15.0
    assert total.item() == 4.0 + 0.25 * 15.0
    assert set(parts) == {"instance", "reg"}


@pytest.mark.parametrize(("flag", "name", "expected"), [(False, "instance", 2.0), (True, "reg", 0.5 * 2.0)])
def test_prior_preservation_with_one_half_only(flag, name, expected):
    total, parts = prior_preservation(torch.tensor([1.0, 3.0]), torch.tensor([flag, flag]), 0.5)
    assert total.item() == expected
    assert {k: v.item() for k, v in parts.items()} == {name: 2.0}


def test_prior_preservation_has_the_gradients_of_two_passes():
    """d/d loss_i is 1 / n_instance or reg_weight / n_reg."""
    losses = torch.rand(5, requires_grad=True)
    total, _ = prior_preservation(losses, torch.tensor([True, False, False, False, True]), 0.8)
    total.backward()
    assert losses.grad.tolist() == pytest.approx([0.4, 1 / 3, 1 / 3, 1 / 3, 0.4])


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_rectified_noise_is_diffusers_dream(schedule, power):
    """The noised latents and the targets of ``compute_dream_and_update_latents`` for a network that predicts eps."""
    z, noise, predicted = (draw(6, 4, 3, 2, seed=s) for s in (7, 8, 9))
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def network(*_):
        return SimpleNamespace(sample=predicted)

    z_t = theirs.add_noise(z, noise, T)
    latents, wanted = compute_dream_and_update_latents(network, theirs, T, noise, z_t, noise, None, power)
    alpha, sigma = schedule.alpha_sigma(T, z)
    ours = rectified_noise(noise, predicted, sigma, power)
    torch.testing.assert_close(schedule.add_noise(z, ours, T), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target("eps", z, ours, alpha, sigma), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_rectified_noise_is_built_around_the_networks_own_estimate(schedule, name):
    """With the power 0 the noised latent is that of the estimate, and the true latent is the target all the same."""
    z, wrong, noise = (draw(6, 4, 3, 2, seed=s, dtype=torch.float64) for s in (10, 11, 12))
    alpha, sigma = schedule.alpha_sigma(T, z)
    z_t = alpha * z + sigma * noise
    believed = target(name, wrong, (z_t - alpha * wrong) / sigma, alpha, sigma)
    ours = rectified_noise(noise, to_eps(name, believed, z_t, alpha, sigma), sigma, power=0.0)
    torch.testing.assert_close(alpha * z + sigma * ours, alpha * wrong + sigma * noise)
    right = rectified_noise(noise, noise, sigma)  # a network that is right sees what it always saw
    assert torch.equal(right, noise)
