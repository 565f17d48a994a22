"""Samplers against the exact solution for normal data, and step by step against diffusers' schedulers."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ldm.diffusion.samplers import SAMPLERS, STOCHASTIC, ddim, dpmpp_2m_sde, euler_a, get_sampler, noise_source, unipc
from ldm.diffusion.schedule import Schedule, make_betas, make_sigmas
from tests.models.reference import relative

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
START = 14.6146
# one mean and variance for each channel, from nearly a point to wider than a latent
MEAN = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64).view(1, 4, 1, 1)
VARIANCE = torch.tensor([0.04, 0.25, 1.0, 4.0], dtype=torch.float64).view(1, 4, 1, 1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small gain nothing from a second thread, and lose much beside other work on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def schedule():
    return Schedule(make_betas())


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- (a) normal data, where everything is known -----------------------------------------------------------------


def normal_denoiser(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact D(z, sigma) of data N(MEAN, VARIANCE)."""
    return MEAN + VARIANCE / (VARIANCE + sigma**2) * (z - MEAN)


def exact(z: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """The probability-flow ODE's solution: z keeps its quantile while the deviation shrinks."""
    return MEAN + (z - MEAN) * ((VARIANCE + end**2) / (VARIANCE + start**2)) ** 0.5


def marginal(start: float, side: int = 8, seed: int = 0) -> torch.Tensor:
    """A draw of noised data at the level ``start``."""
    return MEAN + (VARIANCE + start**2) ** 0.5 * draw(2, 4, side, side, seed=seed, dtype=torch.float64)


def grid(steps: int, end: float) -> torch.Tensor:
    """Karras levels down to a positive one, in float64."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return (START ** (1 / 7) + ramp * (end ** (1 / 7) - START ** (1 / 7))) ** 7


def errors(name: str, end: float, **options) -> list[float]:
    """Relative errors with 40, 80, 160 and 320 steps."""
    z, found = marginal(START), []
    for steps in (40, 80, 160, 320):
        sample = get_sampler(name)(normal_denoiser, z, grid(steps, end), **options)
        assert sample.dtype == torch.float64
        found.append(relative(sample, exact(z, START, end)))
    return found


@pytest.mark.parametrize("end", [0.0292, 0.1, 0.3])
@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [("euler", 0.9, 1.1), ("ddim", 0.9, 1.1), ("heun", 1.9, 2.15), ("dpmpp_2m", 1.9, 2.15), ("unipc", 1.9, 3.2)],
)
def test_convergence_order_on_the_exact_score(name, lowest, highest, end):
    """Order 1 for euler and ddim, 2 for heun and dpmpp_2m, 2 or better for unipc (its corrector gains one)."""
    found = errors(name, end)
    orders = [math.log2(a / b) for a, b in pairwise(found)]
    assert all(lowest <= order <= highest for order in orders), (orders, found)
    assert found[-1] < (5e-3 if highest < 1.5 else 5e-5)


@pytest.mark.parametrize(("order", "at_most"), [(1, 1e-4), (2, 1e-6), (3, 1e-6)])
def test_unipc_orders(order, at_most):
    """Order 1 with its corrector already converges quadratically; higher orders are far more exact."""
    found = errors("unipc", 0.0292, order=order)
    assert found[-1] < at_most
    assert math.log2(found[0] / found[-1]) / 3 > 1.9
    with pytest.raises(ValueError, match="unipc order is 4"):
        unipc(normal_denoiser, marginal(START), grid(4, 0.1), order=4)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_karras_spacing_serves_the_multistep_samplers_at_20_steps(schedule, name):
    """Trap 10 of the design: below 1 % with Karras levels, several times more with uniform time indices."""
    z, found = marginal(schedule.sigma_max, 32), {}
    for spacing in ("karras", "uniform"):
        sample = get_sampler(name)(normal_denoiser, z, make_sigmas(schedule, 20, spacing).double())
        found[spacing] = relative(sample, exact(z, schedule.sigma_max, 0.0))
    assert found["karras"] < 0.01
    assert found["uniform"] > 2.5 * found["karras"]


@pytest.mark.parametrize(
    ("name", "options"), [("euler_a", {}), ("ddim", {"eta": 1.0}), ("dpmpp_2m_sde", {}), ("euler_a", {"eta": 0.5})]
)
def test_stochastic_samplers_reach_the_datas_distribution(schedule, name, options):
    """Mean and variance of 32,768 values for each channel; ten standard errors and the steps' own bias fit in 8 %."""
    z = marginal(schedule.sigma_max, 128, seed=1)
    noise = noise_source(z, [torch.Generator().manual_seed(s) for s in (2, 3)])
    sample = get_sampler(name)(normal_denoiser, z, make_sigmas(schedule, 150, "karras").double(), noise, **options)
    mean, variance = sample.mean((0, 2, 3)), sample.var((0, 2, 3))
    assert ((mean - MEAN.flatten()).abs() / VARIANCE.flatten().sqrt()).max() < 0.05
    assert (variance / VARIANCE.flatten() - 1).abs().max() < 0.08
    # and it is noise that made them: nothing is left of the deterministic solution
    assert relative(sample, exact(z, schedule.sigma_max, 0.0)) > 0.2


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_one_step_to_zero_is_the_denoised_latent(name):
    z, sigmas = marginal(START), torch.tensor([START, 0.0], dtype=torch.float64)
    sample = get_sampler(name)(normal_denoiser, z, sigmas, lambda: torch.ones_like(z))
    assert relative(sample, normal_denoiser(z, sigmas[0])) < 1e-12


def test_without_noise_the_stochastic_samplers_are_their_plain_kin():
    z, sigmas, noise = marginal(START), grid(12, 0.0292), lambda: torch.full((2, 4, 8, 8), 1e3)
    plain = SAMPLERS["euler"](normal_denoiser, z, sigmas)
    assert relative(euler_a(normal_denoiser, z, sigmas, noise, eta=0.0), plain) < 1e-12
    assert relative(ddim(normal_denoiser, z, sigmas), plain) < 1e-12
    sde = dpmpp_2m_sde(normal_denoiser, z, sigmas, noise, eta=0.0)
    assert relative(sde, SAMPLERS["dpmpp_2m"](normal_denoiser, z, sigmas)) < 1e-12


# --- (b) diffusers' schedulers, step by step --------------------------------------------------------------------


def mixture_denoiser(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact D(z, sigma) of two normal modes at +-m, m growing over the columns: smooth and nonlinear."""
    m, v = torch.linspace(0.2, 1.5, z.shape[-1], dtype=z.dtype), 0.09
    total = v + sigma**2
    return v / total * z + sigma**2 / total * m * torch.tanh(m * z / total)


class Recorder:
    """A denoiser that keeps what it was shown: the trajectory."""

    def __init__(self):
        self.seen: list[torch.Tensor] = []

    def __call__(self, z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.seen.append(z.clone())
        return mixture_denoiser(z, sigma)


def diffusers_trajectory(scheduler, z: torch.Tensor, scaled: bool, noises=None, **options) -> list[torch.Tensor]:
    """The samples that a diffusers scheduler hands to an eps-network, and its last one; all variance exploding.

    scaled: the scheduler works in the variance-preserving scale. noises: given to ``step`` one by one.
    """
    scheduler.set_begin_index(0)  # several schedulers round their time indices: find no step by them
    sigmas, seen = scheduler.sigmas, []
    sample = z / (1 + sigmas[0] ** 2) ** 0.5 if scaled else z
    for i, t in enumerate(scheduler.timesteps):
        sigma = sigmas[i]
        network_input = scheduler.scale_model_input(sample, t)
        exploding = network_input * (1 + sigma**2) ** 0.5
        seen.append(exploding)
        eps = (exploding - mixture_denoiser(exploding, sigma)) / sigma
        extra = dict(options) if noises is None else {"variance_noise": noises[i], **options}
        sample = scheduler.step(eps, t, sample, **extra).prev_sample
    return [*seen, sample]  # the last level is 0, where both scales are one


def check(ours: Recorder, final: torch.Tensor, theirs: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    assert len(ours.seen) == len(theirs) - 1
    wrong = [relative(a, b) for a, b in zip([*ours.seen, final], theirs, strict=True)]
    assert max(wrong) <= tolerance, wrong
    assert final.std().item() > 0.5  # two modes, not the zero between them
    moved = [relative(a, b) for a, b in pairwise(theirs)]
    assert min(moved) > 1e-4  # far above the tolerance: a step left out would be seen


def start(sigmas: torch.Tensor) -> torch.Tensor:
    return draw(2, 4, 6, 8, seed=4) * sigmas[0]


SPACINGS = pytest.mark.parametrize("karras", [False, True], ids=["uniform", "karras"])
STEPS = pytest.mark.parametrize("steps", [3, 10, 20])


@SPACINGS
@STEPS
def test_euler_equals_diffusers(steps, karras):
    theirs = EulerDiscreteScheduler(
        **STABLE_DIFFUSION, timestep_spacing="linspace", use_karras_sigmas=karras, final_sigmas_type="zero"
    )
    theirs.set_timesteps(steps)
    z, ours = start(theirs.sigmas), Recorder()
    final = SAMPLERS["euler"](ours, z, theirs.sigmas)
    check(ours, final, diffusers_trajectory(theirs, z, scaled=False))


@STEPS
def test_euler_a_equals_diffusers_with_the_same_noise(steps):
    theirs = EulerAncestralDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    z, ours = start(theirs.sigmas)[:1], Recorder()
    final = euler_a(ours, z, theirs.sigmas, noise_source(z, [torch.Generator().manual_seed(5)]))
    expected = diffusers_trajectory(theirs, z, scaled=False, generator=torch.Generator().manual_seed(5))
    check(ours, final, expected)


@SPACINGS
@STEPS
def test_heun_equals_diffusers(steps, karras):
    """Both evaluations of every step."""
    theirs = HeunDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace", use_karras_sigmas=karras)
    theirs.set_timesteps(steps)
    sigmas = torch.cat([theirs.sigmas[:1], theirs.sigmas[1::2]])  # theirs repeats the inner levels
    assert len(sigmas) == steps + 1
    z, ours = start(sigmas), Recorder()
    final = SAMPLERS["heun"](ours, z, sigmas)
    check(ours, final, diffusers_trajectory(theirs, z, scaled=False))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [4, 10, 20])  # divisors of 1000: diffusers steps by whole time indices
def test_ddim_equals_diffusers(eta, steps):
    theirs = DDIMScheduler(
        **STABLE_DIFFUSION, timestep_spacing="leading", clip_sample=False, set_alpha_to_one=True, steps_offset=0
    )
    theirs.set_timesteps(steps)
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()  # its differences lose half the digits of a float32
    abar = theirs.alphas_cumprod[theirs.timesteps]
    sigmas = torch.cat([((1 - abar) / abar) ** 0.5, torch.zeros(1)])
    z, ours = start(sigmas), Recorder()
    noises = [draw(*z.shape, seed=100 + i, dtype=torch.float64) for i in range(steps)]
    final = ddim(ours, z, sigmas, iter(noises).__next__, eta=eta)
    expected, sample = [], z * abar[0] ** 0.5
    for i, t in enumerate(theirs.timesteps):
        exploding = sample / abar[i] ** 0.5
        expected.append(exploding)
        eps = (exploding - mixture_denoiser(exploding, sigmas[i])) / sigmas[i]
        sample = theirs.step(eps, t, sample, eta=eta, variance_noise=noises[i]).prev_sample
    check(ours, final, [*expected, sample])


def dpm_solver(steps: int, karras: bool, algorithm: str) -> DPMSolverMultistepScheduler:
    scheduler = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        algorithm_type=algorithm,
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="linspace",
        use_karras_sigmas=karras,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    return scheduler


@SPACINGS
@STEPS
def test_dpmpp_2m_equals_diffusers(steps, karras):
    theirs = dpm_solver(steps, karras, "dpmsolver++")
    z, ours = start(theirs.sigmas), Recorder()
    final = SAMPLERS["dpmpp_2m"](ours, z, theirs.sigmas)
    check(ours, final, diffusers_trajectory(theirs, z, scaled=True))


@SPACINGS
@STEPS
def test_dpmpp_2m_sde_equals_diffusers_with_the_same_noise(steps, karras):
    theirs = dpm_solver(steps, karras, "sde-dpmsolver++")
    z, ours = start(theirs.sigmas), Recorder()
    noises = [draw(*z.shape, seed=200 + i) for i in range(steps)]
    final = dpmpp_2m_sde(ours, z, theirs.sigmas, iter(noises).__next__)
    check(ours, final, diffusers_trajectory(theirs, z, scaled=True, noises=noises))


@pytest.mark.parametrize("order", [1, 2, 3])
@SPACINGS
@STEPS
def test_unipc_equals_diffusers(steps, karras, order):
    theirs = UniPCMultistepScheduler(
        **STABLE_DIFFUSION,
        solver_order=order,
        solver_type="bh2",
        predict_x0=True,
        lower_order_final=True,
        timestep_spacing="linspace",
        use_karras_sigmas=karras,
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    z, ours = start(theirs.sigmas), Recorder()
    final = unipc(ours, z, theirs.sigmas, order=order)
    check(ours, final, diffusers_trajectory(theirs, z, scaled=True))


# --- (c) random numbers, names, callbacks -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_stochastic_samplers_need_a_noise_source_and_the_others_do_not(schedule, name):
    z, sigmas = draw(1, 4, 4, 4, seed=6) * START, make_sigmas(schedule, 5)
    if name in STOCHASTIC:
        with pytest.raises(ValueError, match=f"sampler '{name}' is stochastic.*noise source"):
            get_sampler(name)(mixture_denoiser, z, sigmas)
    else:
        assert torch.equal(
            get_sampler(name)(mixture_denoiser, z, sigmas),
            get_sampler(name)(mixture_denoiser, z, sigmas, lambda: torch.full_like(z, 1e3)),
        )


def test_ddim_with_eta_needs_a_noise_source(schedule):
    z = draw(1, 4, 4, 4, seed=6)
    with pytest.raises(ValueError, match="ddim with eta > 0"):
        ddim(mixture_denoiser, z, make_sigmas(schedule, 5), eta=0.5)


@pytest.mark.parametrize("name", ["euler_a", "ddim", "dpmpp_2m_sde"])
def test_a_picture_depends_on_its_own_generator_not_on_the_batch(schedule, name):
    sampler, options = get_sampler(name), {"eta": 1.0} if name == "ddim" else {}
    sigmas, like = make_sigmas(schedule, 8), torch.zeros(3, 4, 6, 8)

    def run(seeds):
        noise = noise_source(like[: len(seeds)], [torch.Generator().manual_seed(s) for s in seeds])
        return sampler(mixture_denoiser, noise() * sigmas[0], sigmas, noise, **options)

    together = run([11, 12, 13])
    for i, seed in enumerate((11, 12, 13)):
        assert torch.equal(together[i], run([seed])[0])
    assert torch.equal(run([13, 11])[1], together[0])
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_noise_source_draws_as_the_global_state_would():
    """Upstream's order: one ``randn_like`` after another after ``torch.manual_seed``."""
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(21)
        expected = [torch.randn_like(torch.zeros(1, 4, 6, 8)) for _ in range(3)]
    finally:
        torch.random.set_rng_state(state)
    noise = noise_source(torch.zeros(1, 4, 6, 8), [torch.Generator().manual_seed(21)])
    assert all(torch.equal(noise(), e) for e in expected)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_noise_source_wants_a_generator_for_each_entry(count):
    with pytest.raises(ValueError, match=f"{count} generators for a batch of 2"):
        noise_source(torch.zeros(2, 4, 6, 8), [torch.Generator() for _ in range(count)])


@pytest.mark.parametrize(("name", "draws"), [("euler_a", 5), ("dpmpp_2m_sde", 5), ("ddim", 5)])
def test_one_draw_for_every_step_that_does_not_end_at_zero(schedule, name, draws):
    z, count = draw(1, 4, 4, 4, seed=7), []
    options = {"eta": 1.0} if name == "ddim" else {}
    noise = lambda: count.append(1) or torch.zeros_like(z)  # noqa: E731
    get_sampler(name)(mixture_denoiser, z, make_sigmas(schedule, 6), noise, **options)
    assert len(count) == draws


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_callback_reports_each_step_once_and_evaluations_are_not_wasted(schedule, name):
    z, sigmas, told, ours = draw(1, 4, 4, 4, seed=8) * START, make_sigmas(schedule, 6), [], Recorder()
    noise = noise_source(z, [torch.Generator()])
    get_sampler(name)(ours, z, sigmas, noise, lambda i, sigma, denoised: told.append((i, sigma, denoised)))
    assert [i for i, *_ in told] == list(range(6))
    assert [s.item() for _, s, _ in told] == sigmas[:-1].tolist()
    first = mixture_denoiser(z, sigmas[0])
    assert torch.equal(told[0][2], first)
    assert len(ours.seen) == (11 if name == "heun" else 6)


def test_unknown_names_raise_and_list_the_known():
    with pytest.raises(ValueError, match="unknown sampler 'plms'") as error:
        get_sampler("plms")
    assert all(name in str(error.value) for name in SAMPLERS)
    assert set(SAMPLERS) == {"ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"}
    assert all(get_sampler(name) is function for name, function in SAMPLERS.items())
