"""Pairs as training sees them: words, views and visits; held-out photos; latents that are those of the pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.encoded import EncodedPairs, encode_pairs
from ldm.data.instructions import INSTANCE_TEMPLATES, check_templates, fill
from ldm.data.personalized_edit import PersonalizedEdit


def ramp(width: int, height: int, blue: int = 0) -> np.ndarray:
    """Red tells the place from left to right, green from top to bottom, blue which side it is."""
    values = np.zeros((height, width, 3))
    values[..., 0] = (np.arange(width) + 0.5) / width * 255
    values[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    values[..., 2] = blue
    return values.round().astype(np.uint8)


def write_pairs(
    root: Path, number: int, small: tuple[int, int] = (48, 36), large: tuple[int, int] = (160, 120), content=None
) -> str:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.fromarray(ramp(*small, blue=2 * i)).save(root / f"{i:02d}_0.png")
        Image.fromarray(ramp(*large, blue=255 - 2 * i)).save(root / f"{i:02d}_1.png")
    if content is not None:
        (root / "manifest.json").write_text(json.dumps(content))
    return str(root)


def dataset(root: str, **options) -> PersonalizedEdit:
    return PersonalizedEdit(root, **{"class_word": "dog", "source_word": "wolf", "size": 16, **options})


def same(a: dict, b: dict) -> bool:
    tensors = all(torch.equal(a[name], b[name]) for name in ("input", "edited", "is_reg"))
    return tensors and a["text"] == b["text"]


def mirrored(picture: torch.Tensor) -> bool:
    return bool(picture[0, :, 0].mean() > picture[0, :, -1].mean())


# Pictures


def test_an_item_is_the_pair_in_its_order_and_range(tmp_path):
    (tmp_path / "pairs").mkdir()
    rng = np.random.default_rng(0)
    sides = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2)]
    for side, values in enumerate(sides):
        Image.fromarray(values).save(tmp_path / "pairs" / f"7_{side}.png")
    item = dataset(str(tmp_path / "pairs"), flip=0)[0]
    for name, values in zip(("input", "edited"), sides, strict=True):
        expected = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
        assert torch.allclose(item[name], expected, atol=1e-6)
    assert item["text"] == "replace the wolf with a sks dog"
    assert item["is_reg"].item() is False


def test_both_sides_take_the_same_flip_and_crop_beside_a_photo_many_times_larger(tmp_path):
    """A 512 x 384 edit beside its photo: whatever the view, both show the same part of the scene."""
    root = write_pairs(tmp_path / "pairs", 1, (512, 384), (1600, 1200))
    data = dataset(root, size=32, min_resize=40, max_resize=64, crop="random")
    flips, lefts = set(), []
    for visit in range(8):
        item = data.item(0, visit)
        assert item["input"].shape == item["edited"].shape == (3, 32, 32)
        apart = (item["input"][:2] - item["edited"][:2]).abs()[:, 2:-2, 2:-2]
        assert apart.max() < 0.03  # of 2: the whole scene's width
        assert item["input"][2].max() < -0.9  # each side is still itself
        assert item["edited"][2].min() > 0.9
        flips.add(mirrored(item["input"]))
        lefts.append(float(item["input"][0].min()))
    assert flips == {False, True}
    assert max(lefts) - min(lefts) > 0.05


def test_pictures_are_cropped_and_not_squashed(tmp_path):
    """Of 160 x 120 the middle 120 x 120: red runs over three quarters of its range, green over the whole."""
    item = dataset(write_pairs(tmp_path / "pairs", 1, (160, 120)), size=24, flip=0).item(0)
    for side in ("input", "edited"):
        red, green = item[side][0].mean(0), item[side][1].mean(1)
        step = 2 / 24
        assert float(red[-2] - red[1]) == pytest.approx(0.75 * 21 * step, abs=0.02)
        assert float(green[-2] - green[1]) == pytest.approx(21 * step, abs=0.02)
        assert float(red.mean()) == pytest.approx(0, abs=0.01)


def test_a_photo_that_lies_on_its_side_is_turned_upright_first(tmp_path):
    root = write_pairs(tmp_path / "pairs", 1, (48, 64), (48, 64))
    (tmp_path / "pairs" / "00_1.png").unlink()
    lying = Image.fromarray(np.rot90(ramp(120, 160)).copy())  # turned left; orientation 6 turns it back
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(tmp_path / "pairs" / "00_1.jpg", exif=exif, quality=98)
    item = dataset(root, flip=0)[0]
    assert (item["input"][:2] - item["edited"][:2]).abs().max() < 0.08


def test_grey_palette_and_transparent_pictures_are_converted_on_both_sides(tmp_path):
    root = tmp_path / "pairs"
    root.mkdir()
    grey = Image.fromarray(ramp(32, 32)[..., 0])
    clear = Image.fromarray(np.dstack([ramp(32, 32), np.zeros((32, 32), np.uint8)]))
    for name, image in (("1_0.png", grey), ("1_1.png", clear), ("2_0.png", clear), ("2_1.gif", grey.convert("P"))):
        image.save(root / name)
    one, two = (dataset(str(root), flip=0)[i] for i in (0, 1))
    assert torch.equal(one["input"][0], one["input"][2])
    assert one["edited"].min() == two["input"].min() == 1  # transparent is white
    assert (two["edited"] - one["input"]).abs().max() < 0.05


def test_a_damaged_picture_is_named(tmp_path):
    root = write_pairs(tmp_path / "pairs", 2)
    whole = (tmp_path / "pairs" / "01_1.png").read_bytes()
    (tmp_path / "pairs" / "01_1.png").write_bytes(whole[: len(whole) // 2])
    data = dataset(root)
    data.item(0)
    with pytest.raises(ValueError, match=r"01_1\.png"):
        data.item(1)


# Draws


def test_an_item_depends_on_seed_index_and_visit_alone(tmp_path):
    root = write_pairs(tmp_path / "pairs", 3)
    options = {"crop": "random", "max_resize": 24, "repeats": 2, "templates": ["{identifier} 1", "{identifier} 2"]}
    first, again = (dataset(root, seed=4, **options) for _ in range(2))
    for visit in (5, 0, 3):
        for index in (4, 1, 5, 0):
            assert same(first.item(index, visit), again.item(index, visit))
    assert same(first[2], first.item(2, 0))
    views = [first.item(index, visit) for index in (0, 3) for visit in range(4)]  # 0 and 3: one pair, counted twice
    assert sum(same(a, b) for i, a in enumerate(views) for b in views[:i]) == 0
    others = [dataset(root, seed=seed, **options).item(0, 0) for seed in range(5)]
    assert sum(same(a, b) for i, a in enumerate(others) for b in others[:i]) == 0


def test_flips_differ_from_visit_to_visit_and_half_of_them_are_mirrored(tmp_path):
    data = dataset(write_pairs(tmp_path / "pairs", 2))
    flips = [[data.draw(index, visit)[1] for visit in range(200)] for index in (0, 1)]
    for drawn in flips:
        assert 70 <= sum(drawn) <= 130
    assert flips[0] != flips[1]
    assert [mirrored(data.item(0, visit)["edited"]) for visit in range(12)] == flips[0][:12]


def test_reading_pictures_does_not_touch_the_global_random_states(tmp_path):
    data = dataset(write_pairs(tmp_path / "pairs", 1), crop="random")
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    data.item(0, 1)
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


def test_repeats_count_each_pair_that_often(tmp_path):
    data = dataset(write_pairs(tmp_path / "pairs", 3), repeats=4)
    assert len(data) == 12
    shown = [data.draw(index)[0] for index in range(len(data))]
    assert [shown.count(pair) for pair in range(3)] == [4, 4, 4]


# Words


def test_upstreams_sentences_come_first():
    assert INSTANCE_TEMPLATES[0] == "replace the {source_word} with a {identifier} {class_word}"


def test_a_class_word_of_two_words_and_an_empty_identifier_leave_single_spaces():
    template = INSTANCE_TEMPLATES[0]
    assert fill(template, "sks", "golden retriever", "arctic fox") == (
        "replace the arctic fox with a sks golden retriever"
    )
    assert fill(template, "", "golden retriever", "wolf") == "replace the wolf with a golden retriever"


def test_regularization_sentences_have_no_identifier(tmp_path):
    root = write_pairs(tmp_path / "pairs", 1)
    item = dataset(root, reg=True)[0]
    assert item["text"] == "replace the wolf with a dog"
    assert item["is_reg"].item() is True
    named = dataset(
        root, reg=True, identifier="sks", templates=["turn the {source_word} into a {identifier} {class_word}"]
    )
    assert named[0]["text"] == "turn the wolf into a dog"


def test_the_manifests_words_are_taken_and_a_pairs_own_source_word_wins(tmp_path):
    content = {"class_word": "golden retriever", "pairs": [{"id": "00", "source_word": "red fox"}, {"id": "01"}]}
    root = write_pairs(tmp_path / "pairs", 2, content=content)
    plain = PersonalizedEdit(root, source_word="wolf", size=16)
    assert [plain[i]["text"] for i in (0, 1)] == [
        "replace the red fox with a sks golden retriever",
        "replace the wolf with a sks golden retriever",
    ]
    assert PersonalizedEdit(root, "zxv", "dog", "wolf", size=16)[0]["text"] == "replace the red fox with a zxv dog"
    with pytest.raises(ValueError, match="source_word of pair '01'"):
        PersonalizedEdit(root, size=16)


def test_words_that_no_template_asks_for_need_not_be_known(tmp_path):
    root = write_pairs(tmp_path / "pairs", 1)
    with pytest.raises(ValueError, match="class_word"):
        PersonalizedEdit(root, source_word="wolf")
    assert PersonalizedEdit(root, templates=["make it a {identifier}"], size=16)[0]["text"] == "make it a sks"


def test_every_paraphrase_is_used_about_equally_and_by_itself(tmp_path):
    templates = ["a {identifier}", "b {identifier}", "c {identifier}"]
    data = dataset(write_pairs(tmp_path / "pairs", 1), templates=templates)
    drawn = [data.draw(0, visit)[1:3] for visit in range(300)]
    for letter in "abc":
        flips = [flip for flip, text in drawn if text == f"{letter} sks"]
        assert 70 <= len(flips) <= 130
        assert 0.3 < np.mean(flips) < 0.7  # the wording does not tell the mirror


@pytest.mark.parametrize(
    ("templates", "said"),
    [
        (["replace it with {identifer}"], "identifer"),
        (["{identifier} {0}"], "unknown field"),
        (["{identifier} {}"], "unknown field"),
        (["{identifier} {class_word.__class__}"], "unknown field"),
        (["{identifier} {"], "cannot be read"),
        (["{identifier} }"], "cannot be read"),
        ([], "at least one"),
        ("{identifier}", "list"),
        (["a {identifier}", "a {class_word}"], "lacks {identifier}"),
    ],
)
def test_templates_that_cannot_work_are_refused(templates, said):
    with pytest.raises(ValueError, match=said):
        check_templates(templates, needs=("identifier",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repeats": 0}, "repeats is 0"),
        ({"held_out": 1.0}, "held_out is 1"),
        ({"held_out": -0.1}, "held_out is -0.1"),
        ({"identifier": " "}, "identifier is empty"),
        ({"templates": ["a {class_word}"]}, "lacks {identifier}"),
        ({"templates": ["a {identifier} {colour}"]}, "colour"),
        ({"crop": "middle"}, "middle"),
    ],
)
def test_datasets_that_make_no_sense_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        dataset(write_pairs(tmp_path / "pairs", 1), **options)


def test_pairs_with_their_own_sentence_keep_it(tmp_path):
    write_pairs(tmp_path / "0000001", 1)
    (tmp_path / "0000001" / "prompt.json").write_text(json.dumps({"edit": "make it snow"}))
    (tmp_path / "seeds.json").write_text(json.dumps([["0000001", ["00"]]]))
    assert PersonalizedEdit(str(tmp_path), size=16)[0]["text"] == "make it snow"


# Held-out photos


def test_all_pairs_of_a_photo_are_held_out_together(tmp_path):
    """Ten photos of three pairs each: a fifth held out are two photos, six pairs."""
    photos = {f"{i:02d}": f"photo-{i % 10}.jpg" for i in range(30)}
    pairs = [{"id": name, "photo": photo, "source_word": "wolf"} for name, photo in photos.items()]
    data = dataset(write_pairs(tmp_path / "pairs", 30, content={"pairs": pairs}), held_out=0.2)
    kept, out = ([pair.id for pair in part] for part in (data.pairs, data.held_out))
    assert (len(data), len(kept), len(out)) == (24, 24, 6)
    assert sorted(kept + out) == sorted(photos)
    assert len({photos[name] for name in out}) == 2
    assert not {photos[name] for name in out} & {photos[name] for name in kept}
    again = dataset(str(tmp_path / "pairs"), held_out=0.2, seed=9)
    assert [pair.id for pair in again.held_out] == out  # the same photos whatever the seed


def test_held_out_pairs_are_never_drawn(tmp_path):
    data = dataset(write_pairs(tmp_path / "pairs", 10), held_out=0.3, flip=0)
    out = {round(int(pair.id) * 2) for pair in data.held_out}
    assert len(out) == 3
    shown = {round(float(data[i]["input"][2].mean() + 1) * 127.5) for i in range(len(data))}
    assert shown == {2 * i for i in range(10)} - out


@pytest.mark.parametrize(
    ("photos", "share", "out"), [(7, 0.5, 0), (8, 0.5, 4), (8, 0.1, 1), (20, 0.0, 0), (16, 0.02, 0)]
)
def test_how_many_are_held_out(tmp_path, photos, share, out):
    data = dataset(write_pairs(tmp_path / "pairs", photos, (8, 8), (8, 8)), held_out=share, size=8)
    assert (len(data.held_out), len(data.pairs)) == (out, photos - out)


def test_something_is_always_left_to_train_on(tmp_path):
    data = dataset(write_pairs(tmp_path / "pairs", 8, (8, 8), (8, 8)), held_out=0.95, size=8)
    assert len(data.pairs) >= 1


# Latents


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Not equal under mirroring, as a first stage is not: columns weigh more to the right."""
    weight = torch.arange(x.shape[-1], dtype=x.dtype)
    return (x * weight)[..., ::2], -(x.square())[..., ::2]


def test_cached_latents_are_those_of_the_pictures_of_every_visit(tmp_path):
    data = dataset(write_pairs(tmp_path / "pairs", 5), min_resize=20, seed=2, repeats=2)
    cache = EncodedPairs(data, encode, batch_size=2)
    assert len(cache) == len(data) == 10
    flips = set()
    for index in range(10):
        for visit in range(3):
            plain, kept = data.item(index, visit), cache.item(index, visit)
            mean, logvar = encode(plain["edited"][None])
            assert torch.allclose(kept["edited_mean"], mean[0], atol=1e-5)
            assert torch.allclose(kept["edited_std"], (0.5 * logvar[0]).exp(), atol=1e-5)
            assert torch.allclose(kept["c_concat"], encode(plain["input"][None])[0][0], atol=1e-5)
            assert kept["text"] == plain["text"]
            assert torch.equal(kept["is_reg"], plain["is_reg"])
            flips.add(mirrored(plain["input"]))
    assert flips == {False, True}


def test_each_picture_is_encoded_once_for_each_mirror_that_can_be_drawn(tmp_path):
    root = write_pairs(tmp_path / "pairs", 5)
    for flip, times in ((0.0, 1), (1.0, 1), (0.5, 2)):
        seen = []
        cache = EncodedPairs(dataset(root, flip=flip), lambda x, seen=seen: (seen.append(len(x)), encode(x))[1], 3)
        assert sum(seen) == 2 * 5 * times
        for visit in range(6):
            cache.item(0, visit)
        assert sum(seen) == 2 * 5 * times


def test_views_that_vary_cannot_be_cached(tmp_path):
    root = write_pairs(tmp_path / "pairs", 1)
    for options in ({"crop": "random"}, {"max_resize": 24}):
        with pytest.raises(ValueError, match="cache_latents=false"):
            EncodedPairs(dataset(root, **options), encode)


def test_held_out_pairs_are_encoded_in_their_order(tmp_path):
    data = dataset(write_pairs(tmp_path / "pairs", 10), held_out=0.3)
    latents = encode_pairs(data, data.held_out, False, lambda x: (x, x), batch_size=2)
    blues = (latents["c_concat"][:, 2].mean((1, 2)) + 1) * 127.5
    assert [round(float(blue)) for blue in blues] == [2 * int(pair.id) for pair in data.held_out]


# The original's defects, kept for ablations
