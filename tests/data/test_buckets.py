"""Aspect buckets: pictures that keep about their shape, and steps whose pictures share one size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.data.augment import JointCrop, bucket_sizes
from ldm.data.datamodule import PairDataModule
from ldm.data.encoded import EncodedPairs
from ldm.data.images import open_rgb, picture_size
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.training.prepare import build_data
from ldm.training.settings import TrainSettings

SHAPES = {"wide": (160, 96), "square": (128, 128), "tall": (60, 100)}


def write(folder, shapes):
    """Pairs of noise in these shapes, in this order."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(shapes):
        for side in "01":
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}_{side}.png")
    return str(folder)


def stream(folder, shapes, **options):
    words = {"class_word": "dog", "source_word": "wolf", "size": 64, "aspect_buckets": 16}
    return PersonalizedEdit(write(folder, shapes), **{**words, **options})


def test_the_sizes_of_the_full_size_model():
    assert bucket_sizes((256, 256), 64) == [(256, 256), (192, 320), (320, 192)]
    assert bucket_sizes((512, 512), 64)[1:] == [(384, 640), (448, 576), (576, 448), (640, 384)]


@pytest.mark.parametrize(("size", "step"), [((64, 64), 16), ((512, 512), 64), ((768, 512), 64)])
def test_sizes_are_on_the_grid_within_the_area_and_not_too_long(size, step):
    for width, height in bucket_sizes(size, step)[1:]:
        assert width % step == height % step == 0
        assert width * height <= size[0] * size[1]
        assert max(width, height) <= 2 * min(width, height)
        assert width * (height + step) > size[0] * size[1]  # no larger one of that width


@pytest.mark.parametrize("options", [{}, {"min_resize": 80, "max_resize": 100, "crop": "random"}])
def test_nothing_is_squashed_in_any_bucket(options):
    crop, rng = JointCrop(64, aspect_buckets=16, **options), np.random.default_rng(0)
    for width, height in SHAPES.values():
        for size in (None, *crop.sizes):
            view = crop.draw(width / height, rng, size=size)
            assert view.width * width / view.size[0] == pytest.approx(view.height * height / view.size[1])
            assert min(view.left, view.top) >= 0
            assert max(view.left + view.width, view.top + view.height) <= 1 + 1e-9
            assert crop.apply(Image.new("RGB", (width, height)), view).size == view.size


def test_a_bucket_shows_more_of_a_wide_picture_than_the_square():
    aspect, rng = 160 / 96, np.random.default_rng(0)
    square, fitting = (JointCrop(64, aspect_buckets=step).draw(aspect, rng) for step in (None, 16))
    assert fitting.size == (80, 48)
    assert square.width == pytest.approx(0.6)
    assert fitting.width == fitting.height == pytest.approx(1.0)


def test_a_step_has_the_size_of_its_first_pair(tmp_path):
    """The regularization pictures are square; they are cropped to whatever the instance pair of the step needs."""
    data = PairDataModule(
        stream(tmp_path / "training", SHAPES.values()),
        stream(tmp_path / "regularization", [(64, 64)] * 2, reg=True, aspect_buckets=None),
        seed=1,
    )
    data.total_batches = 6
    seen = []
    for batch in data.train_dataloader():
        assert batch["input"].shape == batch["edited"].shape
        assert batch["is_reg"].tolist() == [False, True]
        seen.append(tuple(batch["edited"].shape[:1:-1]))
    assert set(seen[:3]) == set(seen[3:]) == {(80, 48), (64, 64), (48, 80)}


def test_cached_latents_are_those_of_the_pictures_in_every_size(tmp_path):
    data = stream(tmp_path / "training", SHAPES.values())
    plain = stream(tmp_path / "regularization", [(64, 64)] * 2, reg=True)
    assert data.sizes() == [(48, 80), (64, 64), (80, 48)]
    caches = [EncodedPairs(s, lambda x: (x[..., ::2], x[..., ::2]), sizes=data.sizes()) for s in (data, plain)]
    for source, cache in zip((data, plain), caches, strict=True):
        for index in range(2):
            for size in data.sizes():
                shown, kept = source.item(index, 1, size), cache.item(index, 1, size)
                assert torch.allclose(kept["edited_mean"], shown["edited"][..., ::2], atol=1e-6)
                assert torch.allclose(kept["c_concat"], shown["input"][..., ::2], atol=1e-6)
    assert [caches[0].size_of(i) for i in range(3)] == [(80, 48), (64, 64), (48, 80)]


def test_a_turned_photo_counts_as_it_is_seen(tmp_path):
    """EXIF orientation 6: stored lying, seen standing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        Image.new("RGB", (40, 20)).save(tmp_path / name, exif=exif)
        assert picture_size(tmp_path / name) == open_rgb(tmp_path / name).size == (20, 40), name
    Image.new("RGB", (40, 20)).save(tmp_path / "plain.png")
    assert picture_size(tmp_path / "plain.png") == (40, 20)


@pytest.mark.parametrize("step", [0, 7, 65])
def test_a_step_that_makes_no_sense(step):
    with pytest.raises(ValueError, match=f"aspect_buckets is {step}"):
        JointCrop(64, aspect_buckets=step)


def data_of(folder, train, reg):
    write(folder / "training", SHAPES.values())
    write(folder / "regularization", [(64, 64)] * 2)
    common = {"class_word": "dog", "source_word": "wolf"}
    streams = {
        name: {
            "target": "ldm.data.personalized_edit.PersonalizedEdit",
            "params": {**common, "data_root": str(folder / place), **options},
        }
        for name, place, options in (("train", "training", train), ("reg", "regularization", reg))
    }
    return OmegaConf.create({"data": {"target": "ldm.data.datamodule.PairDataModule", "params": streams}})


@pytest.mark.parametrize(
    ("train", "reg", "said"),
    [
        ({"size": 64, "aspect_buckets": 8}, {"size": 64}, "multiples of 16"),
        ({"size": 72}, {"size": 72}, "instance pictures of 72 x 72: sides must be multiples of 16"),
        ({"size": 64}, {"size": 32}, "share a step"),
        ({"size": 64}, {"size": 64, "aspect_buckets": 16}, "size of its instance pair"),
        ({"size": 64, "aspect_buckets": 16}, {"size": 64}, None),
    ],
)
def test_sizes_that_a_step_cannot_have_are_refused_before_it(tmp_path, train, reg, said):
    """A model whose pictures must be multiples of 16."""
    model = SimpleNamespace(grid=lambda: 16)
    settings = TrainSettings(max_steps=1)
    config = data_of(tmp_path, train, reg)
    if said is None:
        assert build_data(config, settings, model, tmp_path).total_batches == 1
    else:
        with pytest.raises(ValueError, match=said):
            build_data(config, settings, model, tmp_path)
