"""ImageEditor against InstructPix2Pix's edit_cli.py, its arithmetic written afresh over diffusers' networks.

The reference shares no line with ldm but the tokenizer: global random state, k-diffusion's sigmas, guidance and
ancestral Euler, upstream's sizes and rounding.
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

import ldm.inference.editor as editor_module
from ldm.checkpoint.diffusers_format import (
    FIRST_STAGE,
    UNET,
    from_diffusers_text,
    from_diffusers_unet,
    from_diffusers_vae,
)
from ldm.checkpoint.save import save_checkpoint
from ldm.data import images
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.modules.text import tokenize
from tests.conftest import build_tiny, randomize, tiny_config
from tests.models.reference import diffusers_unet, diffusers_vae, relative, transformers_text

GRID = 32  # of the tiny model; upstream's is 64
RESOLUTION, STEPS, TEXT_SCALE, IMAGE_SCALE = 128, 6, 3.0, 1.5
INSTRUCTION, SEED = "replace the wolf with a sks dog", 1234
SETTINGS = EditSettings(
    text_scale=TEXT_SCALE,
    image_scale=IMAGE_SCALE,
    steps=STEPS,
    sampler="euler_a",
    resolution=RESOLUTION,
    keep_size=False,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small gain nothing from a second thread, and lose much beside other work on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- upstream -----------------------------------------------------------------------------------------------------


class Upstream:
    """edit_cli.py of timothybrooks/instruct-pix2pix with k-diffusion's ``CompVisDenoiser``, in fp32 on the CPU."""

    def __init__(self, unet, vae, text):
        self.unet, self.vae, self.text = unet, vae, text
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
        abar = torch.tensor(np.cumprod(1.0 - betas), dtype=torch.float32)
        self.log_sigmas = (((1 - abar) / abar) ** 0.5).log()

    def t_to_sigma(self, t: torch.Tensor) -> torch.Tensor:
        low, high, w = t.floor().long(), t.ceil().long(), t.frac()
        return ((1 - w) * self.log_sigmas[low] + w * self.log_sigmas[high]).exp()

    def sigma_to_t(self, sigma: torch.Tensor) -> torch.Tensor:
        log_sigma = sigma.log()
        dists = log_sigma - self.log_sigmas[:, None]
        low_idx = dists.ge(0).cumsum(dim=0).argmax(dim=0).clamp(max=998)
        low, high = self.log_sigmas[low_idx], self.log_sigmas[low_idx + 1]
        w = ((low - log_sigma) / (low - high)).clamp(0, 1)
        return (1 - w) * low_idx + w * (low_idx + 1)

    def denoise(self, z, sigma, cond, uncond, picture):
        """``CFGDenoiser.forward`` around ``CompVisDenoiser.forward``."""
        z3, sigma3 = z.repeat(3, 1, 1, 1), sigma.repeat(3)
        c_concat = torch.cat([picture, picture, torch.zeros_like(picture)])
        c_crossattn = torch.cat([cond, uncond, uncond])
        c_in = 1 / (sigma3**2 + 1.0) ** 0.5
        scaled = torch.cat([z3 * c_in[:, None, None, None], c_concat], dim=1)
        eps = self.unet(scaled, self.sigma_to_t(sigma3), c_crossattn).sample
        out_cond, out_img_cond, out_uncond = (z3 - eps * sigma3[:, None, None, None]).chunk(3)
        return out_uncond + TEXT_SCALE * (out_cond - out_img_cond) + IMAGE_SCALE * (out_img_cond - out_uncond)

    def sample(self, z, sigmas, *cond):
        """``sample_euler_ancestral`` with eta 1."""
        for i in range(len(sigmas) - 1):
            denoised = self.denoise(z, sigmas[i : i + 1], *cond)
            sigma, following = sigmas[i], sigmas[i + 1]
            sigma_up = min(following, (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
            sigma_down = (following**2 - sigma_up**2) ** 0.5
            z = z + (z - denoised) / sigma * (sigma_down - sigma)
            if following > 0:
                z = z + torch.randn_like(z) * sigma_up
        return z

    def fitted(self, photo: Image.Image) -> Image.Image:
        width, height = photo.size
        factor = RESOLUTION / max(width, height)
        factor = math.ceil(min(width, height) * factor / GRID) * GRID / min(width, height)
        width = int((width * factor) // GRID) * GRID
        height = int((height * factor) // GRID) * GRID
        return ImageOps.fit(photo, (width, height), method=Image.Resampling.LANCZOS)

    @torch.no_grad()
    def edit(self, photo: Image.Image, instruction: str, seed: int) -> tuple[torch.Tensor, Image.Image]:
        """The decoded picture in about [-1, 1], and what upstream writes to the file."""
        x = 2 * torch.tensor(np.array(self.fitted(photo))).float() / 255 - 1
        x = x.permute(2, 0, 1)[None]
        cond = self.text(input_ids=tokenize([instruction])).last_hidden_state
        uncond = self.text(input_ids=tokenize([""])).last_hidden_state
        picture = self.vae.encode(x).latent_dist.mode()
        t = torch.linspace(999, 0, STEPS)
        sigmas = torch.cat([self.t_to_sigma(t), torch.zeros(1)])
        torch.manual_seed(seed)
        z = torch.randn_like(picture) * sigmas[0]
        z = self.sample(z, sigmas, cond, uncond, picture)
        decoded = self.vae.decode(1.0 / 0.18215 * z).sample
        out = 255.0 * torch.clamp((decoded + 1.0) / 2.0, min=0.0, max=1.0)[0].permute(1, 2, 0)
        return decoded, Image.fromarray(out.type(torch.uint8).numpy())


# --- the same weights on both sides -------------------------------------------------------------------------------


def random_photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Coloured blobs with some grain."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return Image.blend(blobs, grain.filter(ImageFilter.GaussianBlur(1)), 0.2)


@pytest.fixture(scope="module")
def upstream():
    unet, vae, text = randomize(diffusers_unet(8), 11), randomize(diffusers_vae(), 12), transformers_text()
    randomize(text, 13)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(0.5)  # pictures inside [-1, 1]
    state = torch.random.get_rng_state()
    yield Upstream(unet, vae, text)
    torch.random.set_rng_state(state)


@pytest.fixture(scope="module")
def model(upstream):
    ours = build_tiny()
    for part, prefix, state in (
        (ours.model.diffusion_model, UNET, from_diffusers_unet(upstream.unet.state_dict())),
        (ours.first_stage_model, FIRST_STAGE, from_diffusers_vae(upstream.vae.state_dict())),
    ):
        part.load_state_dict({k[len(prefix) :]: v for k, v in state.items()}, strict=True)
    text = {k[len("cond_stage_model.") :]: v for k, v in from_diffusers_text(upstream.text.state_dict()).items()}
    missing, unexpected = ours.cond_stage_model.load_state_dict(text, strict=False)
    assert not unexpected
    assert [m.rpartition(".")[2] for m in missing] == ["position_ids"]
    return ours.eval()


@pytest.fixture(scope="module")
def photo():
    return random_photo((150, 100), 1)


@pytest.fixture(scope="module")
def reference(upstream, photo):
    return upstream.edit(photo, INSTRUCTION, SEED)


def psnr(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return 10 * math.log10(255**2 / max(np.square(difference).mean(), 1e-12))


def edit(model, photo, settings=SETTINGS) -> Image.Image:
    [picture] = ImageEditor(model).edit(photo, INSTRUCTION, settings, seeds=[SEED])
    return picture


# --- equal --------------------------------------------------------------------------------------------------------


def test_the_reference_is_a_picture_worth_comparing(upstream, photo, reference):
    """Neither flat nor saturated, and not the photo: else a PSNR says nothing."""
    _, picture = reference
    assert picture.size == upstream.fitted(photo).size == (128, 96)
    values = np.asarray(picture).astype(float)
    assert values.std() > 20
    assert min(values[..., c].std() for c in range(3)) > 10
    assert ((values <= 1) | (values >= 254)).mean() < 0.05
    assert psnr(picture, upstream.fitted(photo)) < 20


def test_same_seed_and_flags_give_upstreams_picture(model, photo, reference):
    """At least 40 dB; 8-bit rounding (upstream cuts off, we round to the nearest) alone leaves about 51."""
    assert psnr(edit(model, photo), reference[1]) > 48


def test_before_rounding_the_pictures_are_equal(model, upstream, photo, reference):
    """The decoded tensor itself, and upstream's cut-off applied to it: at most a few values at the edge differ."""
    x = images.to_tensor(upstream.fitted(photo))
    decoded = ImageEditor(model).sample(x, [INSTRUCTION], SETTINGS, [SEED])
    assert relative(decoded, reference[0]) < 1e-4
    cut = (255 * ((decoded[0] + 1) / 2).clamp(0, 1)).to(torch.uint8).permute(1, 2, 0).numpy()
    assert psnr(Image.fromarray(cut), reference[1]) > 60


def test_from_a_checkpoint_file(model, photo, reference, tmp_path):
    """The way of edit_cli.py: a file, memory-mapped, its weights reordered for the CPU."""
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, model.state_dict(), {"config": tiny_config()})
    editor = ImageEditor.from_checkpoint(path, device="cpu", precision="fp32")
    [picture] = editor.edit(photo, INSTRUCTION, SETTINGS, seeds=[SEED])
    assert psnr(picture, reference[1]) > 48


def test_a_batch_gives_each_photo_its_upstream_picture(model, upstream, photo, reference):
    other = random_photo((150, 100), 2)
    instruction = "make it snow"
    pictures = ImageEditor(model).edit([other, photo], [instruction, INSTRUCTION], SETTINGS, seeds=[7, SEED])
    expected = [upstream.edit(other, instruction, 7)[1], reference[1]]
    for ours, theirs in zip(pictures, expected, strict=True):
        assert psnr(ours, theirs) > 48
    assert psnr(*expected) < 30


@pytest.mark.parametrize("size", [(150, 100), (100, 150), (90, 90), (333, 100), (128, 96), (64, 63), (61, 47)])
def test_upstreams_size_rule(upstream, size):
    assert images.upstream_size(size, RESOLUTION, GRID) == upstream.fitted(Image.new("RGB", size)).size


# --- able to fail -------------------------------------------------------------------------------------------------


def scaled_picture(monkeypatch, model):
    original = model.picture_condition
    monkeypatch.setattr(model, "picture_condition", lambda x: 0.18215 * original(x))


def sampled_picture(monkeypatch, model):
    monkeypatch.setattr(
        model, "picture_condition", lambda x: model.encode_first_stage(x).sample(torch.Generator().manual_seed(0))
    )


def swapped_scales(monkeypatch, model):
    original = editor_module.GuidedDenoiser

    def swapped(denoiser, conditioning, null_text, text_scale, image_scale, interval):
        return original(denoiser, conditioning, null_text, image_scale, text_scale, interval)

    monkeypatch.setattr(editor_module, "GuidedDenoiser", swapped)


def extra_draw(monkeypatch, model):
    """One number too many before the start: each later draw is another."""
    original = editor_module.noise_source

    def wasteful(like, generators):
        noise = original(like, generators)
        noise()
        return noise

    monkeypatch.setattr(editor_module, "noise_source", wasteful)


def extra_draw_after_the_start(monkeypatch, model):
    original = editor_module.noise_source

    def wasteful(like, generators):
        noise, drawn = original(like, generators), []

        def draw():
            if len(drawn) == 1:
                noise()
            drawn.append(1)
            return noise()

        return draw

    monkeypatch.setattr(editor_module, "noise_source", wasteful)


def karras_levels(monkeypatch, model):
    original = editor_module.make_sigmas
    monkeypatch.setattr(editor_module, "make_sigmas", lambda schedule, steps, _: original(schedule, steps, "karras"))


def unscaled_decoding(monkeypatch, model):
    monkeypatch.setattr(model, "scale_factor", 1.0)


def shifted_time(monkeypatch, model):
    original = model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda z, t, c: original(z, t + 1, c))


def picture_in_every_branch(monkeypatch, model):
    monkeypatch.setattr("ldm.diffusion.guidance.null_picture", lambda conditioning: conditioning)


@pytest.mark.parametrize(
    "fault",
    [scaled_picture, sampled_picture, swapped_scales, extra_draw, extra_draw_after_the_start, picture_in_every_branch],
)
def test_a_gross_fault_leaves_less_than_40_db(monkeypatch, model, photo, reference, fault):
    fault(monkeypatch, model)
    assert psnr(edit(model, photo), reference[1]) < 40


@pytest.mark.parametrize("fault", [karras_levels, unscaled_decoding, shifted_time])
def test_a_slight_fault_is_seen_before_rounding(monkeypatch, model, upstream, photo, reference, fault):
    """About 40 dB, but a hundred times the tolerance of the comparison before rounding."""
    fault(monkeypatch, model)
    decoded = ImageEditor(model).sample(images.to_tensor(upstream.fitted(photo)), [INSTRUCTION], SETTINGS, [SEED])
    assert relative(decoded, reference[0]) > 1e-2


def test_another_seed_is_seen(model, photo, reference):
    [picture] = ImageEditor(model).edit(photo, INSTRUCTION, SETTINGS, seeds=[SEED + 1])
    assert psnr(picture, reference[1]) < 40
