"""One view for both pictures of a pair, checked on ramps: a pixel's colour says where in the scene it lies."""

import numpy as np
import pytest
from PIL import Image

from ldm.data.augment import JointCrop, to_common_aspect

CLOSE = 1.6 / 255  # of the scene: 8-bit rounding, and a little interpolation


def ramp(width: int, height: int, x: tuple = (0.0, 1.0), y: tuple = (0.0, 1.0)) -> Image.Image:
    """The part x, y (shares) of a scene whose red is the place from left to right and green from top to bottom."""
    across = x[0] + (x[1] - x[0]) * (np.arange(width) + 0.5) / width
    down = y[0] + (y[1] - y[0]) * (np.arange(height) + 0.5) / height
    values = np.zeros((height, width, 3))
    values[..., 0], values[..., 1] = across[None, :], down[:, None]
    return Image.fromarray((values * 255).round().astype(np.uint8))


def places(image: Image.Image) -> np.ndarray:
    """Where in the scene each pixel lies, h w (x y)."""
    return np.asarray(image, dtype=float)[..., :2] / 255


def seen(image: Image.Image) -> tuple[float, float, float, float, bool]:
    """The part of the scene that a picture shows (left, top, width, height), and whether it is mirrored."""
    across, down = places(image)[..., 0].mean(0), places(image)[..., 1].mean(1)
    inner = slice(4, -4)  # the edges are where interpolation may deviate
    dx = np.polyfit(np.arange(len(across))[inner], across[inner], 1)[0]
    dy = np.polyfit(np.arange(len(down))[inner], down[inner], 1)[0]
    width, height = abs(dx) * len(across), dy * len(down)
    return across.mean() - width / 2, down.mean() - height / 2, width, height, bool(dx < 0)


def test_a_wide_picture_is_cropped_in_the_centre_and_not_squashed():
    crop = JointCrop(32, flip=0)
    image = ramp(96, 64)
    view = crop.draw(96 / 64, np.random.default_rng(0))
    assert (view.flip, view.left, view.top, view.width, view.height) == (
        False,
        pytest.approx(1 / 6),
        0,
        pytest.approx(2 / 3),
        1,
    )
    result = crop.apply(image, view)
    assert result.size == (32, 32)
    assert seen(result)[:4] == pytest.approx((1 / 6, 0, 2 / 3, 1), abs=2 * CLOSE)
    tall = crop.apply(ramp(64, 96), crop.draw(64 / 96, np.random.default_rng(0)))
    assert seen(tall)[:4] == pytest.approx((0, 1 / 6, 1, 2 / 3), abs=2 * CLOSE)


def test_a_picture_of_the_right_size_passes_bit_for_bit_and_mirrored():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    crop, image = JointCrop(16), Image.fromarray(noise)
    as_is, mirrored = (crop.apply(image, crop.draw(1.0, np.random.default_rng(0), flip)) for flip in (False, True))
    assert np.array_equal(np.asarray(as_is), noise)
    assert np.array_equal(np.asarray(mirrored), noise[:, ::-1])


def test_the_centre_is_cut_out_exactly():
    """A 40 x 24 picture at its own scale: columns 8 to 31 of it, no pixel changed."""
    noise = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    crop = JointCrop(24, flip=0)
    result = crop.apply(Image.fromarray(noise), crop.draw(40 / 24, np.random.default_rng(0)))
    assert np.array_equal(np.asarray(result), noise[:, 8:32])


@pytest.mark.parametrize("sizes", [((512, 384), (2048, 1536)), ((1024, 768), (256, 192)), ((300, 300), (64, 64))])
def test_both_sides_show_the_same_part_also_when_their_sizes_differ(sizes):
    crop = JointCrop(64, min_resize=80, max_resize=110, crop="random", flip=0.5)
    pictures = [ramp(*size) for size in sizes]
    rng, flips, lefts = np.random.default_rng(5), set(), []
    for _ in range(6):
        view = crop.draw(sizes[0][0] / sizes[0][1], rng)
        a, b = (crop.apply(picture, view) for picture in pictures)
        inner = np.abs(places(a) - places(b))[3:-3, 3:-3]
        assert inner.max() <= 2 * CLOSE
        left, top, width, height, flip = seen(a)
        assert (left, top, width, height) == pytest.approx(
            (view.left, view.top, view.width, view.height), abs=2 * CLOSE
        )
        assert flip == view.flip
        flips.add(flip)
        lefts.append(left)
    assert flips == {False, True}
    assert max(lefts) - min(lefts) > 0.1


@pytest.mark.parametrize("shape", [(200, 100), (100, 200), (150, 150)])
@pytest.mark.parametrize("size", [32, (48, 32)])
def test_nothing_is_squashed_nor_outside_the_picture(shape, size):
    """A pixel of the result covers as many pixels of the picture across as down."""
    crop = JointCrop(size, min_resize=40, max_resize=60, crop="random")
    rng = np.random.default_rng(2)
    for _ in range(50):
        view = crop.draw(shape[0] / shape[1], rng)
        across, down = view.width * shape[0] / crop.size[0], view.height * shape[1] / crop.size[1]
        assert across == pytest.approx(down)
        assert view.left >= 0
        assert view.top >= 0
        assert view.left + view.width <= 1 + 1e-9
        assert view.top + view.height <= 1 + 1e-9


def test_the_frame_is_between_the_two_sizes_and_both_ends_are_reached():
    """64 pixels out of a frame of 80 to 128: between a half and four fifths of the shorter side are seen."""
    crop = JointCrop(64, min_resize=80, max_resize=128, crop="random")
    rng = np.random.default_rng(0)
    views = [crop.draw(1.5, rng) for _ in range(400)]
    heights = np.array([view.height for view in views])
    assert heights.min() >= 0.5 - 1e-9
    assert heights.max() <= 0.8 + 1e-9
    assert heights.min() < 0.51
    assert heights.max() > 0.78
    tops = np.array([view.top / (1 - view.height) for view in views])  # anywhere between the two edges
    assert tops.min() < 0.05
    assert tops.max() > 0.95
    assert 150 < sum(view.flip for view in views) < 250


def test_a_least_size_alone_is_the_greatest_too():
    crop = JointCrop(64, min_resize=128, flip=0)
    view = crop.draw(1.0, np.random.default_rng(0))
    assert (view.left, view.top, view.width, view.height) == (0.25, 0.25, 0.5, 0.5)


def test_shares_of_mirrored_views_and_mirrors_by_command():
    rng = np.random.default_rng(0)
    assert not any(JointCrop(32, flip=0).draw(1.0, rng).flip for _ in range(50))
    assert all(JointCrop(32, flip=1).draw(1.0, rng).flip for _ in range(50))
    assert JointCrop(32, flip=0).draw(1.0, rng, flip=True).flip
    assert not JointCrop(32, flip=1).draw(1.0, rng, flip=False).flip


def test_the_same_draws_give_the_same_view_whether_the_mirror_is_drawn_or_told():
    crop = JointCrop(32, max_resize=50, crop="random")
    drawn = [crop.draw(1.3, np.random.default_rng(seed)) for seed in range(8)]
    assert drawn == [crop.draw(1.3, np.random.default_rng(seed)) for seed in range(8)]
    assert drawn == [crop.draw(1.3, np.random.default_rng(seed), drawn[seed].flip) for seed in range(8)]
    assert len(set(drawn)) == 8


def test_only_one_centred_size_is_a_fixed_view():
    assert JointCrop(32).fixed
    assert JointCrop(32, min_resize=40).fixed
    assert not JointCrop(32, max_resize=40).fixed
    assert not JointCrop(32, crop="random").fixed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": 4}, "size is 4"),
        ({"size": 64, "min_resize": 32}, "min_resize 32"),
        ({"size": 64, "min_resize": 90, "max_resize": 80}, "max_resize 80"),
        ({"size": 64, "max_resize": 32}, "max_resize 32"),
        ({"size": 64, "crop": "centre"}, "centre"),
        ({"size": 64, "flip": 1.5}, "flip is 1.5"),
        ({"size": 64, "flip": -0.1}, "flip is -0.1"),
    ],
)
def test_views_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        JointCrop(**given)


# Pictures a few pixels off each other's shape


def test_pictures_of_one_shape_are_left_alone():
    a, b = to_common_aspect(ramp(512, 384), ramp(2048, 1536))
    assert (a.size, b.size) == ((512, 384), (2048, 1536))
    assert np.array_equal(np.asarray(a), np.asarray(ramp(512, 384)))


@pytest.mark.parametrize("turned", [False, True], ids=["landscape", "portrait"])
@pytest.mark.parametrize("swapped", [False, True], ids=["edit-first", "photo-first"])
def test_an_edit_that_upstream_cut_to_its_working_size_lies_over_its_photo(turned, swapped):
    """1920 x 1080 at 512: scaled by 320/1080 to 568.9 x 320, and 512 of it kept: nine tenths of the longer side."""
    wide = (0.05, 0.95)
    if turned:
        edit, photo = ramp(320, 512, y=wide), ramp(540, 960)
    else:
        edit, photo = ramp(512, 320, x=wide), ramp(960, 540)
    pictures = (photo, edit) if swapped else (edit, photo)
    a, b = to_common_aspect(*pictures)
    assert a.width / a.height == pytest.approx(b.width / b.height, rel=0.005)
    crop = JointCrop(64, flip=0)
    view = crop.draw(a.width / a.height, np.random.default_rng(0))
    difference = places(crop.apply(a, view)) - places(crop.apply(b, view))
    assert np.abs(difference[3:-3, 3:-3]).max() <= 2 * CLOSE
