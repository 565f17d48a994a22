"""The noise schedule against diffusers' schedulers, k-diffusion's formulas and float64 re-derivations."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from ldm.diffusion.schedule import Schedule, karras_sigmas, make_betas, make_sigmas, uniform_sigmas

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def schedule():
    return Schedule(make_betas())


@pytest.fixture(scope="module")
def abar():
    """alphas_cumprod as CompVis' ``make_beta_schedule`` and ``register_schedule`` compute it, in numpy float64."""
    return np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2)


def close(ours: torch.Tensor, theirs, rtol: float) -> None:
    np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), rtol=rtol, atol=0)


def k_diffusion_sigma(abar: np.ndarray, t: np.ndarray) -> np.ndarray:
    """``DiscreteSchedule.t_to_sigma``: linear in log sigma between whole indices."""
    return np.exp(np.interp(t, np.arange(len(abar)), np.log(((1 - abar) / abar) ** 0.5)))


def test_betas_and_alphas_cumprod_equal_diffusers(schedule):
    theirs = DDPMScheduler(**STABLE_DIFFUSION)
    close(schedule.betas, theirs.betas, 1e-6)
    close(schedule.alphas_cumprod, theirs.alphas_cumprod, 1e-5)  # theirs is a float32 product of 1000 factors


def test_alphas_cumprod_equal_a_float64_product(schedule, abar):
    close(schedule.alphas_cumprod, abar, 2e-7)
    close(schedule.sigmas, ((1 - abar) / abar) ** 0.5, 2e-7)
    assert len(schedule) == 1000
    # the ends as the literature states them for Stable Diffusion
    assert schedule.sigma_min == pytest.approx(0.0292, abs=5e-5)
    assert schedule.sigma_max == pytest.approx(14.6146, abs=5e-5)


@pytest.mark.parametrize(("kind", "theirs"), [("sqrt_linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_other_beta_schedules_equal_diffusers(kind, theirs):
    expected = DDPMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule=theirs).betas
    close(make_betas(1000, 0.0015, 0.0195, kind).float(), expected, 1e-4)


def test_other_lengths():
    expected = DDPMScheduler(num_train_timesteps=50, **STABLE_DIFFUSION)
    ours = Schedule(make_betas(50))
    close(ours.alphas_cumprod, expected.alphas_cumprod, 1e-5)
    assert len(ours) == 50


def test_sigma_at_whole_and_fractional_times(schedule, abar):
    whole = torch.arange(1000)
    close(schedule.sigma(whole), ((1 - abar) / abar) ** 0.5, 3e-6)
    t = torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) * 999
    close(schedule.sigma(t), k_diffusion_sigma(abar, t.double().numpy()), 3e-6)
    assert schedule.sigma(t).shape == t.shape


def test_sigma_and_t_are_inverse(schedule):
    t = torch.cat([torch.arange(1000.0), torch.rand(3000, generator=torch.Generator().manual_seed(1)) * 999])
    assert (schedule.t(schedule.sigma(t)) - t).abs().max() < 2e-3
    sigma = torch.exp(torch.linspace(np.log(schedule.sigma_min), np.log(schedule.sigma_max), 500))
    close(schedule.sigma(schedule.t(sigma)), sigma, 1e-5)


def test_t_is_k_diffusions_fractional_index(schedule, abar):
    """Also against diffusers' ``_sigma_to_t``; and levels beyond the schedule are clamped."""
    log_sigmas = np.log(((1 - abar) / abar) ** 0.5)
    sigma = torch.exp(torch.linspace(np.log(0.03), np.log(14.6), 301)).view(7, 43)
    expected = np.interp(np.log(sigma.double().numpy()), log_sigmas, np.arange(1000))
    assert np.abs(schedule.t(sigma).numpy() - expected).max() < 2e-3
    theirs = EulerDiscreteScheduler(**STABLE_DIFFUSION)
    values = [theirs._sigma_to_t(s, log_sigmas) for s in sigma.double().flatten().numpy()]
    assert np.abs(schedule.t(sigma).flatten().numpy() - np.array(values)).max() < 2e-3
    fractions = schedule.t(sigma) % 1
    assert ((fractions > 0.1) & (fractions < 0.9)).float().mean() > 0.5  # an index rounded to a whole one goes red
    assert schedule.t(torch.tensor([0.0, 1e-3, 20.0, 1e6])).tolist() == [0, 0, 999, 999]


@pytest.mark.parametrize("steps", [1, 2, 6, 20, 100, 1000])
def test_uniform_sigmas_are_k_diffusions(schedule, abar, steps):
    t = np.linspace(999, 0, steps, dtype=np.float64)
    sigmas = uniform_sigmas(schedule, steps)
    close(sigmas, np.append(k_diffusion_sigma(abar, t), 0.0), 1e-5)
    assert sigmas.dtype == torch.float32
    assert (sigmas.diff() < 0).all()
    assert torch.equal(sigmas, make_sigmas(schedule, steps, "uniform"))
    assert torch.equal(sigmas, make_sigmas(schedule, steps))


def test_uniform_sigmas_against_diffusers_at_whole_times(schedule):
    """diffusers interpolates sigma linearly and k-diffusion log-linearly; they agree where t is whole (999 / 37)."""
    theirs = EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace", final_sigmas_type="zero")
    theirs.set_timesteps(28)
    close(uniform_sigmas(schedule, 28), theirs.sigmas, 5e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 50])
def test_karras_sigmas_equal_diffusers(schedule, abar, steps):
    theirs = EulerDiscreteScheduler(
        **STABLE_DIFFUSION, use_karras_sigmas=True, timestep_spacing="linspace", final_sigmas_type="zero"
    )
    sigmas = karras_sigmas(schedule, steps)
    ends = (((1 - abar) / abar) ** 0.5)[::-1]
    close(sigmas, np.append(theirs._convert_to_karras(ends, steps), 0.0), 3e-6)
    theirs.set_timesteps(max(steps, 2))  # diffusers takes both ends from the interpolated levels, so it needs two
    if steps > 1:
        close(sigmas, theirs.sigmas, 5e-5)  # diffusers' lowest level comes from a float32 1 - alphas_cumprod
    assert sigmas.dtype == torch.float32
    assert (sigmas.diff() < 0).all()
    assert torch.equal(sigmas, make_sigmas(schedule, steps, "karras"))


def test_karras_rho(schedule):
    """rho 1 is linear in sigma."""
    sigmas = karras_sigmas(schedule, 11, rho=1.0)
    close(sigmas[:-1], np.linspace(schedule.sigma_max, schedule.sigma_min, 11), 1e-4)


def test_alpha_and_sigma_equal_a_float64_derivation(schedule, abar):
    t = torch.arange(1000)
    alpha, sigma = schedule.alpha_sigma(t, torch.zeros(1000, 4, 2, 3))
    assert alpha.shape == sigma.shape == (1000, 1, 1, 1)
    close(alpha.flatten(), np.sqrt(abar), 1e-6)
    close(sigma.flatten(), np.sqrt(1 - abar), 1e-6)


def test_add_noise_equals_diffusers(schedule):
    g = torch.Generator().manual_seed(2)
    z, noise = torch.randn(6, 4, 5, 3, generator=g), torch.randn(6, 4, 5, 3, generator=g)
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    expected = DDPMScheduler(**STABLE_DIFFUSION).add_noise(z, noise, t)
    assert torch.allclose(schedule.add_noise(z, noise, t), expected, atol=1e-5)
    assert not torch.allclose(schedule.add_noise(noise, z, t), expected, atol=1e-1)


def test_errors_say_what_was_found():
    schedule = Schedule(make_betas(10))
    with pytest.raises(ValueError, match=r"unknown beta_schedule 'quadratic'.*linear, sqrt_linear, cosine"):
        make_betas(kind="quadratic")
    for timesteps in (1, 0, -5):
        with pytest.raises(ValueError, match=f"timesteps is {timesteps}"):
            make_betas(timesteps)
    for steps in (0, -1):
        for make in (uniform_sigmas, karras_sigmas, make_sigmas):
            with pytest.raises(ValueError, match=f"steps is {steps}"):
                make(schedule, steps)
    with pytest.raises(ValueError, match=r"unknown spacing 'exponential'.*uniform, karras"):
        make_sigmas(schedule, 10, "exponential")
