"""Measures on hand-made cases, and backbones against transformers' own classes."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from ldm.checkpoint.save import weights_hash
from ldm.evaluation import measures
from ldm.evaluation.sources import Inputs
from ldm.models.backbones import Clip, Dino, Lpips, backbones, prepare
from ldm.modules.text import tokenize


def picture(seed, size=(40, 40)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    path = tmp_path_factory.mktemp("dino")
    ViTModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 49408, **ends},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    path = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    g = torch.Generator().manual_seed(0)
    trunk, linear = {}, {}
    for key, i, (a, b, k, _, _) in zip(Lpips.KEYS, range(5), Lpips.LAYERS, strict=True):
        trunk[f"features.{key}.weight"] = torch.randn(b, a, k, k, generator=g) / (a * k * k) ** 0.5
        trunk[f"features.{key}.bias"] = torch.randn(b, generator=g) * 0.1
        linear[f"lin{i}.model.1.weight"] = torch.rand(1, b, 1, 1, generator=g)
    folder = tmp_path_factory.mktemp("lpips")
    save_file(trunk, folder / "alexnet.safetensors")
    save_file(linear, folder / "linear.safetensors")
    return folder / "alexnet.safetensors", folder / "linear.safetensors"


def test_similarity_of_known_directions():
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    photos = torch.stack([east, east, north])
    assert measures.similarity(torch.stack([east, north]), photos).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert measures.leave_one_out(photos).tolist() == pytest.approx([0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match="no others"):
        measures.leave_one_out(photos[:1])


def test_direction_is_one_along_the_wish_minus_one_against_it_and_zero_for_a_copy():
    before, wish = torch.zeros(3, 4), torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    after = torch.cat([3 * wish, -wish, torch.zeros(1, 4)])
    found = measures.direction(after, before, wish, torch.zeros(1, 4))
    assert found.tolist() == pytest.approx([1.0, -1.0, 0.0], abs=1e-6)


def test_background_counts_only_outside_the_region():
    source = torch.zeros(2, 3, 8, 8)
    region = torch.zeros(2, 1, 8, 8)
    region[..., :4] = 1
    x = source.clone()
    x[0, :, :, :4] = 1.0  # inside only
    x[1, :, :, 4:] = 0.2  # outside: a tenth of the range
    found = measures.background(x, source, region)
    assert found["background kept (dB)"].tolist() == pytest.approx([60.0, 20.0], abs=1e-4)
    assert found["background L1"].tolist() == pytest.approx([0.0, 0.1], abs=1e-6)
    with pytest.raises(ValueError, match="whole picture"):
        measures.background(x, source, torch.ones_like(region))


def test_pictures_are_prepared_as_stated():
    wide = Image.new("RGB", (80, 40), (255, 0, 0))
    wide.paste((0, 0, 255), (30, 0, 50, 40))
    x = prepare([wide], 40, 20, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    assert x.shape == (1, 3, 20, 20)
    assert torch.equal(x[0, :, 10, 10], torch.tensor([-1.0, -1.0, 1.0]))  # the middle, blue
    assert prepare([wide], 40, 40, ((0.0,) * 3, (1.0,) * 3))[0, 0, 0, 0] == 1  # red at the crop's corner


def test_dino_is_transformers_class_token(dino):
    ours = Dino(str(dino))
    assert (ours.crop, ours.resize) == (32, 37)
    images = [picture(1), picture(2)]
    theirs = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    x = prepare(images, 37, 32, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        wanted = F.normalize(theirs(pixel_values=x).last_hidden_state[:, 0], dim=1)
    assert torch.allclose(ours.images(images), wanted, atol=1e-6)


def test_clip_is_transformers_clip(clip):
    ours, images, texts = Clip(str(clip)), [picture(1), picture(2)], ["a dog", "a sks dog on the beach"]
    theirs = CLIPModel.from_pretrained(clip).eval()
    x = prepare(images, 32, 32, ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    with torch.no_grad():
        wanted = theirs(input_ids=tokenize(texts), pixel_values=x)
    assert torch.allclose(ours.images(images), wanted.image_embeds, atol=1e-5)
    assert torch.allclose(ours.texts(texts), wanted.text_embeds, atol=1e-5)


def test_lpips_is_zero_for_equal_pictures_symmetric_and_grows_with_the_difference(lpips):
    model = Lpips(*lpips)
    g = torch.Generator().manual_seed(1)
    x, noise = torch.rand(2, 3, 64, 64, generator=g) * 2 - 1, torch.randn(2, 3, 64, 64, generator=g)
    assert model(x, x).abs().max() == 0
    assert torch.allclose(model(x, x + 0.1 * noise), model(x + 0.1 * noise, x))
    assert bool((model(x, x + 0.3 * noise) > model(x, x + 0.05 * noise)).all())


def test_lpips_of_one_layer_by_hand(lpips):
    """With all linear weights at zero but the first layer's, LPIPS is that layer's distance, written out."""
    model = Lpips(*lpips)
    with torch.no_grad():
        for weight in list(model.weights)[1:]:
            weight.zero_()
    g = torch.Generator().manual_seed(2)
    x, y = torch.rand(1, 3, 35, 35, generator=g), torch.rand(1, 3, 35, 35, generator=g)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    first = model.convolutions[0]
    states = []
    for v in (x, y):
        v = (v - shift[:, None, None]) / scale[:, None, None]
        v = F.conv2d(v, first.weight, first.bias, stride=4, padding=2).clamp(min=0)[0]
        states.append(v / (v.norm(dim=0) + 1e-10))
    total = 0.0
    difference = (states[0] - states[1]) ** 2
    for channel in range(64):
        total += float(model.weights[0][0, channel, 0, 0] * difference[channel].mean())
    assert float(model(x, y)) == pytest.approx(total, rel=1e-4)


def test_lpips_between_pictures_does_not_depend_on_their_size(lpips):
    lpips = Lpips(*lpips)
    small = [Image.effect_noise((64, 64), 90 + i).convert("RGB") for i in range(3)]
    large = [picture.resize(measures.LPIPS_SIZE, Image.Resampling.LANCZOS) for picture in small]
    assert torch.allclose(measures.pair_distances(lpips, small), measures.pair_distances(lpips, large))
    region = torch.zeros(1, 1, 64, 64)
    region[..., 16:40, 8:56] = 1
    wide = torch.nn.functional.interpolate(region, measures.LPIPS_SIZE)
    changed = [picture.copy() for picture in small]
    for picture in changed:
        picture.paste("red", (12, 20, 50, 36))
    inside = measures.background_distance(lpips, changed, small, region)
    big = [picture.resize(measures.LPIPS_SIZE, Image.Resampling.LANCZOS) for picture in changed]
    assert torch.allclose(inside, measures.background_distance(lpips, big, large, wide))
    assert (inside < 0.1 * measures.background_distance(lpips, changed, small, torch.zeros_like(region))).all()


def test_weights_are_told_apart_by_their_values(lpips):
    lpips = Lpips(*lpips)
    before = weights_hash(lpips)
    assert len(before) == 16
    bias = lpips.convolutions[0].bias
    with torch.no_grad():
        bias[0] += 1
        assert weights_hash(lpips) != before
        bias[0] -= 1
    assert weights_hash(type("Backbone", (), {"model": lpips})()) == weights_hash(lpips)
    assert weights_hash(object()) == ""


def test_backbones_that_are_absent_say_so_and_named_ones_must_be_there(tmp_path, dino, monkeypatch):
    found, absent = backbones(str(dino), None, None)
    assert set(found) == {"dino"}
    assert "--clip" in absent["clip"]
    assert set(absent) == {"clip", "lpips"}
    with pytest.raises(ValueError, match=r"--clip .* cannot be loaded"):
        backbones(None, str(tmp_path), None)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"features\.0\.weight"):
        backbones(None, None, (tmp_path / "a.safetensors", tmp_path / "a.safetensors"))


def test_a_backbone_with_missing_or_misshapen_weights_is_refused(tmp_path, dino, clip):
    """transformers fills such weights with random values and goes on; figures of them would mean nothing."""
    for flag, whole, kind in (("dino", dino, "ViTModel"), ("clip", clip, "CLIPModel")):
        given = {"dino": None, "clip": None}
        weights = load_file(whole / "model.safetensors")
        name = next(
            key
            for key in sorted(weights)
            if key.endswith("layernorm_before.weight" if flag == "dino" else "layer_norm1.weight")
        )
        for change, says in (({}, "it lacks 1 weights of"), ({name: torch.ones(7)}, "its weights do not fit")):
            folder = tmp_path / f"{flag}-{len(change)}"
            shutil.copytree(whole, folder)
            save_file(
                {k: v for k, v in weights.items() if k != name} | change, folder / "model.safetensors", {"format": "pt"}
            )
            given[flag] = str(folder)
            with pytest.raises(ValueError, match=rf"--{flag} .* cannot be loaded: {says} {kind}"):
                backbones(given["dino"], given["clip"], None)


def test_half_a_download_of_a_backbone_is_one_line(tmp_path, dino):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    for name, broken in (("pointer", pointer), ("half", (dino / "model.safetensors").read_bytes()[:2000])):
        folder = tmp_path / name
        shutil.copytree(dino, folder)
        (folder / "model.safetensors").write_bytes(broken)
        with pytest.raises(ValueError, match="cannot be loaded") as error:
            backbones(str(folder), None, None)
        assert "\n" not in str(error.value)


def test_all_measures_of_a_real_picture_case(dino, clip, lpips):
    models, _ = backbones(str(dino), str(clip), lpips)
    same = [picture(1, (80, 80))] * 2
    found = measures.field_measures(models, same, same[:1], same, ("a dog", "a red dog"))
    assert found["DINO"].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found["CLIP-I"].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found["CLIP direction"].tolist() == [0, 0]  # a copy has no direction
    prior = measures.field_measures(models, same, same[:1], same, prior=True)
    assert set(prior) == {"PRES", "DIV"}
    assert prior["DIV"].abs().max() < 1e-5
    assert set(prior) | set(found) <= set(measures.MEASURES)


def test_pictures_from_text_alone_have_no_background_to_keep():
    region = torch.zeros(1, 1, 16, 16)
    region[..., 4:12, 4:12] = 1
    inputs = Inputs([Image.new("RGB", (16, 16), "red")], region=region)
    answers = [Image.new("RGB", (16, 16), "blue")]
    assert "background kept (dB)" in inputs.measure(answers, [], edited=True)
    assert inputs.measure(answers, [], edited=False) == {}
