"""Text to image: an independent loop as reference, settings, files, class pictures that are gone on with."""

import json
from itertools import pairwise

import pytest
import torch
from PIL import Image

from ldm.checkpoint.save import save_checkpoint
from ldm.data.images import to_tensor
from ldm.dataset_generation.class_images import make_class_images
from ldm.diffusion.schedule import make_sigmas
from ldm.inference.generator import ImageGenerator
from ldm.inference.recipe import KEY, Provenance
from ldm.inference.settings import TextSettings
from ldm.inference.text_job import TextRequest, make_pictures
from ldm.models.build import ModelSource
from tests.conftest import build_tiny, tiny_config


@pytest.fixture(scope="module")
def model():
    return build_tiny(4)


@pytest.fixture(scope="module")
def ckpt(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("t2i") / "model.safetensors"
    save_checkpoint(path, model.state_dict(), {"config": tiny_config(4), "text_defaults": {"steps": 2, "width": 32}})
    return path


SETTINGS = TextSettings(scale=3.0, steps=3, sampler="ddim", width=64, height=32)


@torch.no_grad()
def test_ddim_with_guidance_is_eulers_rule_in_noise_levels(model):
    (ours,) = ImageGenerator(model).generate(["a dog"], SETTINGS, seeds=[7])
    z = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(7))
    states = model.get_learned_conditioning(["a dog"])
    null = model.get_learned_conditioning([""])
    sigmas = make_sigmas(model.schedule, 3, "uniform")
    x = z * sigmas[0]  # the variance-exploding form of the same start
    for a, b in pairwise(sigmas):
        t = model.schedule.t(a[None])
        scaled = x / (a**2 + 1).sqrt()
        with_text, without = (model.model.diffusion_model(scaled, t, c) for c in (states, null))
        eps = without + 3.0 * (with_text - without)
        x = x + (b - a) * eps
    theirs = model.decode_first_stage(x)
    difference = (to_tensor(ours) - theirs.clamp(-1, 1)).abs().max()
    assert difference < 2 / 255


def test_a_picture_depends_on_its_own_text_and_seed_alone(model):
    generator = ImageGenerator(model)
    both = generator.generate(["a dog", "a cat"], SETTINGS, seeds=[5, 9])
    (alone,) = generator.generate(["a cat"], SETTINGS, seeds=[9])
    assert (to_tensor(both[1]) - to_tensor(alone)).abs().max() <= 2.1 / 255
    assert both[0].size == (64, 32)
    assert both[0].tobytes() != both[1].tobytes()


def test_the_scale_and_the_negative_text_have_an_effect(model):
    generator = ImageGenerator(model)
    base, more, away = (
        generator.generate(["a dog"], s, seeds=[1])[0].tobytes()
        for s in (
            SETTINGS,
            TextSettings(**{**SETTINGS.__dict__, "scale": 9.0}),
            TextSettings(**{**SETTINGS.__dict__, "negative": "a cat"}),
        )
    )
    assert len({base, more, away}) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 50}, "width is 50; a multiple of 32"),
        ({"steps": 0}, "steps is 0"),
        ({"scale": -1}, "scale is -1"),
        ({"sampler": "x"}, "unknown sampler"),
        ({"spacing": "x"}, "unknown spacing"),
    ],
)
def test_settings_that_make_no_sense(model, change, said):
    with pytest.raises(ValueError, match=said):
        ImageGenerator(model).generate(["a dog"], TextSettings(**{**SETTINGS.__dict__, **change}))


def test_texts_and_seeds_that_do_not_fit(model, tiny_model):
    with pytest.raises(ValueError, match="text is empty"):
        ImageGenerator(model).generate([" "], SETTINGS)
    with pytest.raises(ValueError, match="3 seeds for 2 texts"):
        ImageGenerator(model).generate(["a", "b"], SETTINGS, seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="edits pictures"):
        ImageGenerator(tiny_model)


def request(ckpt, output, **more):
    given = {
        "prompt": ("a dog", "a cat"),
        "output": str(output),
        "num_samples": 2,
        "batch_size": 3,
        "seed": 4,
        "settings": {"height": 32},
    }
    return TextRequest(source=ModelSource(ckpt, device="cpu", precision="fp32"), **{**given, **more})


def test_a_job_writes_pictures_with_their_recipes_and_a_sheet(ckpt, tmp_path):
    written = make_pictures(request(ckpt, tmp_path / "out"))
    assert [p.name for p in written] == ["0000-4.png", "0001-5.png", "0002-4.png", "0003-5.png", "sheet.png"]
    with Image.open(written[2]) as picture:
        recipe = json.loads(picture.text[KEY])
        assert picture.size == (32, 32)
    assert (recipe["text"], recipe["seed"], recipe["steps"]) == ("a cat", 4, 2)
    (single,) = make_pictures(request(ckpt, tmp_path / "one.png", prompt=("a dog",), num_samples=1))
    one, of_two = (to_tensor(Image.open(path)) for path in (single, written[0]))
    assert (one - of_two).abs().max() <= 2.1 / 255  # a batch of two rounds differently
    with pytest.raises(ValueError, match="do not fit into the one file"):
        make_pictures(request(ckpt, tmp_path / "one.png"))


@pytest.mark.parametrize(
    ("given", "said"),
    [({"prompt": ("a dog",), "num_samples": 2}, "--num-samples 2"), ({"num_samples": 1}, "2 prompts")],
)
def test_class_pictures_of_several_prompts_or_samples_are_refused(ckpt, tmp_path, given, said):
    with pytest.raises(ValueError, match=f"one --prompt.*{said} cannot be had"):
        make_pictures(request(ckpt, tmp_path / "out", class_images=2, **given))
    assert not (tmp_path / "out").exists()


def test_class_pictures_go_on_where_they_were_with_the_same_pictures(model, tmp_path):
    generator = ImageGenerator(model)
    settings = TextSettings(steps=2, width=32, height=32)
    whole = make_class_images(generator, "a dog", tmp_path / "a", 5, settings, seed=3, batch_size=2)
    make_class_images(generator, "a dog", tmp_path / "b", 2, settings, seed=3, batch_size=2)
    rest = make_class_images(generator, "a dog", tmp_path / "b", 5, settings, seed=3, batch_size=3)
    assert len(whole) == 5
    for a, b in zip(whole, rest, strict=True):
        assert (to_tensor(Image.open(a)) - to_tensor(Image.open(b))).abs().max() <= 2.1 / 255
    with pytest.raises(ValueError, match="another way"):
        make_class_images(generator, "a cat", tmp_path / "b", 5, settings, seed=3)


def test_blank_class_pictures_are_made_again_and_then_given_up(tmp_path):
    calls = []

    class Sometimes:
        provenance = Provenance("c", "h", "auto")

        def generate(self, texts, settings, seeds):
            calls.append(list(seeds))
            noise = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
            good = Image.fromarray((noise.numpy() * 255).astype("uint8")).convert("RGB")
            return [good if seed >= 10_000_000 or seed == 0 else Image.new("RGB", (8, 8)) for seed in seeds]

    made = make_class_images(Sometimes(), "a dog", tmp_path / "c", 3, TextSettings(), seed=0, batch_size=3)
    assert len(made) == 3
    assert calls == [[0, 1, 2], [10_000_001, 10_000_002]]

    class Never(Sometimes):
        def generate(self, texts, settings, seeds):
            return [Image.new("RGB", (8, 8)) for _ in seeds]

    with pytest.raises(ValueError, match="blank"):
        make_class_images(Never(), "a dog", tmp_path / "d", 1, TextSettings(), seed=0)
