"""Guidance against InstructPix2Pix's formula written out, and the conditioning: null, batching, dropout."""

import pytest
import torch

from ldm.diffusion.conditioning import Conditioning, drop_conditioning, null_picture
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import GuidedDenoiser
from ldm.diffusion.schedule import Schedule, make_betas
from tests.models.reference import relative

B, C, H, W, TOKENS, D = 2, 4, 6, 5, 7, 8


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Network:
    """A random eps-network that mixes channels, time, text and picture nonlinearly; it keeps what it was shown."""

    def __init__(self):
        self.mix, self.look = draw(C, C, seed=1) / 2, draw(C, C, seed=2) / 2
        self.read = draw(C, TOKENS, D, seed=3) / 4
        self.batches: list[int] = []
        self.seen: list[Conditioning] = []

    def __call__(self, z_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        assert len(z_t) == len(t) == len(conditioning)
        self.batches.append(len(z_t))
        self.seen.append(conditioning)
        text = torch.einsum("bnd,cnd->bc", conditioning.c_crossattn, self.read)[:, :, None, None]
        out = torch.einsum("bchw,ec->behw", z_t, self.mix) + text + (t / 500).view(-1, 1, 1, 1)
        if conditioning.c_concat is not None:
            out = out + torch.einsum("bchw,ec->behw", conditioning.c_concat, self.look) * (1 + 0.5 * text.tanh())
        return out.sin() + 0.3 * out


@pytest.fixture
def network():
    return Network()


@pytest.fixture(scope="module")
def schedule():
    return Schedule(make_betas())


Z, TEXT, NULL = draw(B, C, H, W, seed=4), draw(B, TOKENS, D, seed=5), draw(1, TOKENS, D, seed=6)
PICTURE = draw(B, C, H, W, seed=7)
SIGMA = torch.tensor(2.5)


def by_hand(schedule: Schedule, text_scale: float, image_scale: float | None, sigma: torch.Tensor = SIGMA):
    """InstructPix2Pix, eq. 3 (``CFGDenoiser`` of its edit_cli.py) on the noise, by a call for each branch and sample.

    image_scale None: text to image, Ho & Salimans.
    """
    network, rows = Network(), []
    for i in range(B):
        z, t = Z[i : i + 1], schedule.t(sigma.view(1))

        def e(picture, text, z=z, t=t):
            return network(z / (1 + sigma**2).sqrt(), t, Conditioning(text, picture))

        if image_scale is None:
            eps = e(None, NULL) + text_scale * (e(None, TEXT[i : i + 1]) - e(None, NULL))
        else:
            picture = PICTURE[i : i + 1]
            out_cond, out_img_cond = e(picture, TEXT[i : i + 1]), e(picture, NULL)
            out_uncond = e(torch.zeros_like(picture), NULL)
            eps = out_uncond + text_scale * (out_cond - out_img_cond) + image_scale * (out_img_cond - out_uncond)
        rows.append(z - sigma * eps)
    return torch.cat(rows)


def guided(network, schedule, text_scale, image_scale=1.5, concat=PICTURE, **kwargs):
    return GuidedDenoiser(
        Denoiser(network, schedule), Conditioning(TEXT, concat), NULL, text_scale, image_scale, **kwargs
    )


@pytest.mark.parametrize(
    ("text_scale", "image_scale", "branches"),
    [
        (7.5, 1.5, 3),
        (3.0, 0.5, 3),
        (0.5, 1.7, 3),
        (7.5, 1.0, 2),  # the empty branch has the coefficient 1 - image_scale
        (1.5, 1.5, 2),  # the branch with the picture alone has image_scale - text_scale
        (0.0, 1.5, 2),
        (1.0, 1.0, 1),
        (0.0, 1.0, 1),
        (0.0, 0.0, 1),
    ],
)
def test_editing_equals_three_separate_calls(network, schedule, text_scale, image_scale, branches):
    found = guided(network, schedule, text_scale, image_scale)(Z, SIGMA)
    assert relative(found, by_hand(schedule, text_scale, image_scale)) < 1e-5
    assert network.batches == [branches * B]  # one call, and no branch with a zero coefficient in it


def test_the_two_scales_are_not_interchangeable(network, schedule):
    found = guided(network, schedule, 7.5, 1.5)(Z, SIGMA)
    assert relative(found, by_hand(schedule, 1.5, 7.5)) > 0.1
    assert relative(guided(network, schedule, 1.5, 7.5)(Z, SIGMA), by_hand(schedule, 7.5, 1.5)) > 0.1


@pytest.mark.parametrize(("text_scale", "branches"), [(7.5, 2), (0.4, 2), (1.0, 1), (0.0, 1)])
def test_text_to_image_equals_two_separate_calls(network, schedule, text_scale, branches):
    """A model of 4 channels: no picture, and the image scale means nothing."""
    for image_scale in (1.0, 1.5, 99.0):
        found = guided(network, schedule, text_scale, image_scale, None)(Z, SIGMA)
        assert relative(found, by_hand(schedule, text_scale, None)) < 1e-5
    assert network.batches == [branches * B] * 3
    assert all(c.c_concat is None for c in network.seen)


def test_what_each_branch_sees(network, schedule):
    guided(network, schedule, 7.5, 1.5)(Z, SIGMA)
    [seen] = network.seen
    texts, pictures = seen.c_crossattn.chunk(3), seen.c_concat.chunk(3)
    null = NULL.expand_as(TEXT)
    sees = {(i, name) for i in range(3) for name, text in (("T", TEXT), ("0", null)) if torch.equal(texts[i], text)}
    assert len(sees) == 3
    whole = [(name, torch.equal(p, PICTURE), not p.any()) for p, (_, name) in zip(pictures, sorted(sees), strict=True)]
    # exactly (picture, text), (picture, null), (zeros, null), in whatever order
    assert sorted(whole) == sorted([("T", True, False), ("0", True, False), ("0", False, True)])


def test_interval_guides_inside_only(network, schedule):
    denoise = guided(network, schedule, 7.5, 1.5, interval=(0.5, 2.5))
    for level, inside in [(14.0, False), (2.6, False), (2.5, True), (1.0, True), (0.5, False), (0.03, False)]:
        network.batches.clear()
        sigma = torch.tensor(level)
        scales = (7.5, 1.5) if inside else (1.0, 1.0)
        assert relative(denoise(Z, sigma), by_hand(schedule, *scales, sigma)) < 1e-5, level
        assert network.batches == [(3 if inside else 1) * B], level
    for bad in [(2.0, 2.0), (3.0, 1.0), (-1.0, 1.0)]:
        with pytest.raises(ValueError, match="guidance interval"):
            guided(network, schedule, 7.5, interval=bad)


def test_interval_of_a_text_to_image_model(network, schedule):
    denoise = guided(network, schedule, 7.5, concat=None, interval=(0.0, 1.0))
    assert relative(denoise(Z, SIGMA), by_hand(schedule, 1.0, None)) < 1e-5
    low = torch.tensor(0.7)
    assert relative(denoise(Z, low), by_hand(schedule, 7.5, None, low)) < 1e-5


def test_a_negative_prompt_takes_the_place_of_the_empty_text(network, schedule):
    negative = draw(1, TOKENS, D, seed=8)
    denoiser = Denoiser(network, schedule)
    found = GuidedDenoiser(denoiser, Conditioning(TEXT, PICTURE), negative, 7.5, 1.5)(Z, SIGMA)
    assert relative(found, by_hand(schedule, 7.5, 1.5)) > 0.1
    assert torch.equal(network.seen[-1].c_crossattn[-1], negative[0])


def test_null_picture_is_zeros_beside_the_same_text():
    null = null_picture(Conditioning(TEXT, PICTURE))
    assert torch.equal(null.c_crossattn, TEXT)
    assert torch.equal(null.c_concat, torch.zeros(B, C, H, W))
    assert null_picture(Conditioning(TEXT)).c_concat is None


def test_batching_and_indexing():
    whole = Conditioning.cat([Conditioning(TEXT, PICTURE), Conditioning(2 * TEXT[:1], 3 * PICTURE[:1])])
    assert len(whole) == B + 1
    assert torch.equal(whole.c_crossattn, torch.cat([TEXT, 2 * TEXT[:1]]))
    assert torch.equal(whole.c_concat, torch.cat([PICTURE, 3 * PICTURE[:1]]))
    assert torch.equal(whole[B:].c_concat, 3 * PICTURE[:1])
    assert torch.equal(whole[torch.tensor([1, 0])].c_crossattn, TEXT.flip(0))
    assert whole[:1].to(torch.float64).c_concat.dtype == torch.float64
    text_only = Conditioning.cat([Conditioning(TEXT), Conditioning(TEXT)])
    assert text_only.c_concat is None
    assert len(text_only) == 2 * B
    assert text_only[:1].to("cpu").c_concat is None


def test_batching_with_and_without_a_picture_raises():
    for parts in [(PICTURE, None), (None, PICTURE)]:
        with pytest.raises(ValueError, match="c_concat"):
            Conditioning.cat([Conditioning(TEXT, p) for p in parts])
    with pytest.raises(RuntimeError):
        Conditioning.cat([Conditioning(TEXT), Conditioning(TEXT[..., :-1])])


N = 20_000


def dropped(seed: int = 0, **probabilities) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of N samples lost their text and which their picture; everything else must be untouched."""
    text = torch.arange(1.0, N + 1).view(N, 1, 1).expand(N, 2, 3)
    picture = -torch.arange(1.0, N + 1).view(N, 1, 1, 1).expand(N, 4, 1, 2)
    null = torch.full((1, 2, 3), 0.5)
    generator = torch.Generator().manual_seed(seed)
    out = drop_conditioning(Conditioning(text, picture), null, generator, **probabilities)
    no_text = (out.c_crossattn == 0.5).flatten(1).all(1)
    no_picture = (out.c_concat == 0).flatten(1).all(1)
    assert torch.equal(out.c_crossattn[~no_text], text[~no_text])
    assert torch.equal(out.c_concat[~no_picture], picture[~no_picture])
    return no_text, no_picture


@pytest.mark.parametrize(("text", "image", "both"), [(0.05, 0.05, 0.05), (0.1, 0.2, 0.4), (0.0, 0.3, 0.0)])
def test_dropout_proportions(text, image, both):
    """Three exclusive events and the rest whole, each within five standard deviations."""
    no_text, no_picture = dropped(text=text, image=image, both=both)
    found = {
        "text": (no_text & ~no_picture, text),
        "image": (~no_text & no_picture, image),
        "both": (no_text & no_picture, both),
        "none": (~no_text & ~no_picture, 1 - text - image - both),
    }
    for name, (events, p) in found.items():
        assert abs(events.float().mean().item() - p) <= 5 * (p * (1 - p) / N) ** 0.5, name


def test_dropout_defaults_to_instruct_pix2pix():
    assert all(torch.equal(a, b) for a, b in zip(dropped(), dropped(text=0.05, image=0.05, both=0.05), strict=True))


def test_dropout_extremes():
    for name, (text, picture) in {"text": (1, 0), "image": (0, 1), "both": (1, 1)}.items():
        chosen = {"text": 0.0, "image": 0.0, "both": 0.0, name: 1.0}
        no_text, no_picture = dropped(**chosen)
        assert no_text.float().mean() == text
        assert no_picture.float().mean() == picture
    assert not any(x.any() for x in dropped(text=0.0, image=0.0, both=0.0))


def test_dropout_follows_its_generator():
    assert torch.equal(dropped(3)[0], dropped(3)[0])
    assert not torch.equal(dropped(3)[0], dropped(4)[0])
    state = torch.random.get_rng_state()
    dropped(5)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global state is left alone
    generator = torch.Generator().manual_seed(6)
    drop_conditioning(Conditioning(TEXT, PICTURE), NULL, generator)
    expected = torch.Generator().manual_seed(6)
    torch.rand(B, generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())  # one number a sample


def test_dropout_without_a_picture():
    out = drop_conditioning(Conditioning(TEXT), NULL, torch.Generator(), text=0.5, image=0.0, both=0.5)
    assert out.c_concat is None
    assert torch.equal(out.c_crossattn, NULL.expand_as(TEXT))


@pytest.mark.parametrize("bad", [{"text": 0.6, "image": 0.3, "both": 0.2}, {"image": -0.1}, {"both": 1.01}])
def test_dropout_refuses_what_is_no_probability(bad):
    with pytest.raises(ValueError, match="dropout probabilities"):
        drop_conditioning(Conditioning(TEXT, PICTURE), NULL, **bad)
