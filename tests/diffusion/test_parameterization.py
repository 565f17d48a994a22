"""Predictions (eps, v, x0) against their definitions and diffusers, and the network as D(z, sigma)."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.parameterization import PARAMETERIZATIONS, check_parameterization, target, to_eps, to_x0
from ldm.diffusion.schedule import Schedule, make_betas
from tests.models.reference import relative

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DIFFUSERS_NAME = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def schedule():
    return Schedule(make_betas())


@pytest.fixture
def noised():
    """A clean latent, noise, alpha, sigma and their z_t at angles between hardly any and nearly all noise, float64."""
    z, noise = draw(5, 4, 3, 2, seed=0, dtype=torch.float64), draw(5, 4, 3, 2, seed=1, dtype=torch.float64)
    angle = torch.tensor([0.03, 0.4, 0.8, 1.2, 1.5], dtype=torch.float64).view(5, 1, 1, 1)
    return z, noise, angle.cos(), angle.sin(), angle.cos() * z + angle.sin() * noise


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_target_and_its_inverses(name, noised):
    z, noise, alpha, sigma, z_t = noised
    wanted = target(name, z, noise, alpha, sigma)
    assert relative(to_x0(name, wanted, z_t, alpha, sigma), z) < 1e-12
    assert relative(to_eps(name, wanted, z_t, alpha, sigma), noise) < 1e-12


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_any_prediction_splits_z_t_into_its_two_parts(name, noised):
    """Not only the true one: x0 and eps of the same prediction always make up z_t, and lead back to it."""
    *_, alpha, sigma, z_t = noised
    prediction = draw(5, 4, 3, 2, seed=2, dtype=torch.float64)
    x0, eps = to_x0(name, prediction, z_t, alpha, sigma), to_eps(name, prediction, z_t, alpha, sigma)
    assert relative(alpha * x0 + sigma * eps, z_t) < 1e-12
    assert relative(target(name, x0, eps, alpha, sigma), prediction) < 1e-12


def test_v_target_equals_diffusers(schedule):
    z, noise, t = draw(6, 4, 3, 2, seed=3), draw(6, 4, 3, 2, seed=4), torch.tensor([0, 3, 200, 500, 900, 999])
    alpha, sigma = schedule.alpha_sigma(t, z)
    expected = DDPMScheduler(**STABLE_DIFFUSION).get_velocity(z, noise, t)
    assert relative(target("v", z, noise, alpha, sigma), expected) < 1e-5
    assert torch.equal(target("eps", z, noise, alpha, sigma), noise)
    assert torch.equal(target("x0", z, noise, alpha, sigma), z)


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
@pytest.mark.parametrize("t", [5, 300, 800])
def test_to_x0_equals_diffusers(schedule, name, t):
    """The clean latent that diffusers' DDIM scheduler reads from the same prediction."""
    theirs = DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, prediction_type=DIFFUSERS_NAME[name])
    theirs.set_timesteps(10)
    z_t, prediction = draw(2, 4, 3, 2, seed=5), draw(2, 4, 3, 2, seed=6)
    alpha, sigma = schedule.alpha_sigma(torch.tensor([t, t]), z_t)
    expected = theirs.step(prediction, t, z_t).pred_original_sample
    assert relative(to_x0(name, prediction, z_t, alpha, sigma), expected) < 1e-5


def test_unknown_names_raise_and_list_the_known(noised):
    z, noise, alpha, sigma, z_t = noised
    calls = [
        lambda: check_parameterization("score"),
        lambda: target("score", z, noise, alpha, sigma),
        lambda: to_x0("score", noise, z_t, alpha, sigma),
        lambda: to_eps("score", noise, z_t, alpha, sigma),
        lambda: Denoiser(lambda *_: None, Schedule(make_betas(10)), "score"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"unknown parameterization 'score'.*eps, v, x0"):
            call()
    assert [check_parameterization(name) for name in PARAMETERIZATIONS] == ["eps", "v", "x0"]


SIGMAS = [0.03, 0.3, 1.0, 4.0, 14.0]


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_denoiser_finds_the_clean_latent_of_a_perfect_network(schedule, name):
    clean, noise = draw(5, 4, 3, 2, seed=7), draw(5, 4, 3, 2, seed=8)
    sigma = torch.tensor(SIGMAS)
    wide = sigma.view(5, 1, 1, 1)

    def perfect(z_t, t, conditioning):
        # v = cos * eps - sin * x0 by Salimans & Ho 2022, with tan(angle) = sigma
        angle = torch.atan(wide)
        return {"eps": noise, "x0": clean, "v": angle.cos() * noise - angle.sin() * clean}[name]

    found = Denoiser(perfect, schedule, name)(clean + wide * noise, sigma, None)
    for row, level in enumerate(SIGMAS):
        assert relative(found[row], clean[row]) < 1e-6 * (1 + 10 * level), level


def test_denoiser_scales_its_input_and_passes_the_fractional_time(schedule):
    seen = []
    conditioning = Conditioning(draw(5, 77, 8, seed=9), draw(5, 4, 3, 2, seed=10))

    def network(z_t, t, given):
        seen.append((z_t, t, given))
        return torch.zeros_like(z_t)

    z, sigma = draw(5, 4, 3, 2, seed=11), torch.tensor(SIGMAS)
    Denoiser(network, schedule)(z, sigma, conditioning)
    [(z_t, t, given)] = seen
    assert given is conditioning
    assert relative(z_t, z / (1 + sigma.view(5, 1, 1, 1) ** 2) ** 0.5) < 1e-6
    abar = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    expected = np.interp(np.log(SIGMAS), 0.5 * np.log((1 - abar) / abar), np.arange(1000))
    assert t.shape == (5,)
    assert np.abs(t.numpy() - expected).max() < 2e-3
    assert (np.abs(expected - expected.round()) > 0.05).sum() >= 3  # a time rounded to a whole one would be seen


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_denoiser_equals_k_diffusions_wrappers(schedule, name):
    """c_skip and c_out of ``CompVisDenoiser`` and ``CompVisVDenoiser``; x0 is the prediction itself."""
    z, prediction, sigma = draw(5, 4, 3, 2, seed=12), draw(5, 4, 3, 2, seed=13), torch.tensor(SIGMAS)
    s = sigma.view(5, 1, 1, 1)
    expected = {"eps": z - s * prediction, "v": z / (s**2 + 1) - prediction * s / (s**2 + 1) ** 0.5, "x0": prediction}
    found = Denoiser(lambda z_t, t, c: prediction, schedule, name)(z, sigma, None)
    assert relative(found, expected[name]) < 1e-6


def test_denoiser_answers_in_fp32_whatever_the_network_does(schedule):
    def half(z_t, t, conditioning):
        assert z_t.dtype == t.dtype == torch.float32
        return z_t.bfloat16()

    z = draw(2, 4, 3, 2, seed=14)
    out = Denoiser(half, schedule)(z.double(), torch.tensor([1.0, 2.0], dtype=torch.float64), None)
    assert out.dtype == torch.float32
