"""Gates, on pictures whose figures follow by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.dataset_generation.gates import ANOTHER, PASSED, UNLIKE, Gates, judge

GATES = Gates(blank=0.03, unchanged=0.02, destroyed=0.15)


def picture(values: np.ndarray, scale: int = 2) -> Image.Image:
    """A grey picture of 32 x 32 values 0 to 255, each ``scale`` pixels wide: what the gates look at, exactly."""
    return Image.fromarray(np.repeat(np.repeat(values.astype(np.uint8), scale, 0), scale, 1)).convert("RGB")


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((32, 32), left)
    values[:, 16:] = right
    return values


def test_figures_of_a_quarter_that_changed():
    """A quarter of the pixels by 102/255 = 0.4: sqrt(0.16 / 4) = 0.2 in all, nothing in the rest."""
    before = halves(50, 150)
    after = before.copy()
    after[:16, :16] += 102
    verdict = judge(picture(before), picture(after), GATES)
    spread = np.array([152] * 1 + [50] * 1 + [150] * 2) / 255  # a quarter, a quarter, a half
    assert verdict.figures == {
        "contrast": pytest.approx(spread.std(), abs=6e-5),
        "change": pytest.approx(0.2, abs=6e-5),
        "background change": 0,
    }
    assert verdict.reason == ""


def test_the_subject_may_change_as_it_likes_but_not_everything():
    """A quarter may turn over altogether; over a half, a change of d leaves d / sqrt(3) in the three quarters kept."""
    before = halves(0, 255)
    quarter = before.copy()
    quarter[:16, :16] = 255
    assert judge(picture(before), picture(quarter), GATES).reason == ""
    for d, reason in ((66, ""), (67, "destroyed")):  # 66/255/sqrt(3) = 0.1494, 67/255/sqrt(3) = 0.1517
        verdict = judge(picture(before), picture(halves(d, 255)), GATES)
        assert verdict.reason == reason
        assert verdict.figures["background change"] == pytest.approx(d / 255 / 3**0.5, abs=6e-5)
        assert verdict.figures["change"] == pytest.approx(d / 255 / 2**0.5, abs=6e-5)


def test_another_picture_altogether_is_destroyed():
    assert judge(picture(halves(0, 255)), picture(halves(255, 0)), GATES).reason == "destroyed"


def test_the_input_again_is_unchanged_and_a_little_more_is_not():
    before = halves(50, 150)
    assert judge(picture(before), picture(before), GATES).reason == "unchanged"
    for d, reason in ((5, "unchanged"), (6, "")):  # 5/255 = 0.0196, 6/255 = 0.0235
        assert judge(picture(before), picture(before + d), GATES).reason == reason
        assert judge(picture(before + d), picture(before), GATES).reason == reason


def test_a_picture_without_contrast_is_blank_whatever_it_was_made_from():
    for level in (0, 128, 255):
        assert judge(picture(halves(0, 255)), picture(halves(level, level)), GATES).reason == "blank"
    for half, reason in ((7, "blank"), (8, "")):  # halves 128 +- d deviate by d/255: 0.0275 and 0.0314
        after = halves(128 - half, 128 + half)
        assert judge(picture(halves(100, 160)), picture(after), GATES).reason == reason


def test_blank_is_said_first():
    blank = picture(halves(90, 90))
    assert judge(blank, blank, GATES).reason == "blank"


def test_colour_counts_as_a_change():
    """Red by 51/255 = 0.2 over everything: sqrt(0.04 / 3)."""
    before = picture(halves(50, 150))
    red = np.asarray(before).copy()
    red[..., 0] += 51
    assert judge(before, Image.fromarray(red), GATES).figures["change"] == pytest.approx((0.04 / 3) ** 0.5, abs=6e-5)


def test_fine_texture_does_not_count():
    before = np.asarray(picture(halves(50, 150), scale=4)).astype(int)
    y, x = np.mgrid[0 : before.shape[0], 0 : before.shape[1]]
    after = before + np.where((x + y) % 2, 40, -40)[..., None]
    verdict = judge(*(Image.fromarray(v.astype(np.uint8)) for v in (before, after)), GATES)
    assert verdict.figures["change"] == 0
    assert verdict.reason == "unchanged"


def test_sizes_may_differ():
    before, after = halves(50, 150), halves(50, 200)
    alike = judge(picture(before), picture(after), GATES)
    assert judge(picture(before, 8), picture(after, 1), GATES) == alike
    assert judge(picture(before, 8), picture(before, 3), GATES).figures["change"] == 0


def test_thresholds_are_those_given():
    before, after = picture(halves(50, 150)), picture(halves(50, 175))
    assert judge(before, after, GATES).reason == ""
    assert judge(before, after, Gates(unchanged=0.1)).reason == "unchanged"
    assert judge(before, after, Gates(destroyed=0.05)).reason == "destroyed"
    assert judge(before, after, Gates(blank=0.4)).reason == "blank"


@pytest.mark.parametrize(
    "given",
    [
        {"attempts": 0},
        {"blank": -0.1},
        {"blank": 1.0},
        {"unchanged": -0.1},
        {"unchanged": 0.2, "destroyed": 0.1},
        {"destroyed": float("nan")},
        {"step": 0.9},
    ],
)
def test_thresholds_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        Gates(**given)


@pytest.mark.parametrize("given", [{"attempts": "many"}, {"attempts": 2.5}, {"blank": None}, {"step": "1.15x"}])
def test_thresholds_of_another_kind_are_refused(given):
    """They come from a YAML file: a slip in it is told in one line."""
    with pytest.raises(ValueError, match=next(iter(given))):
        Gates(**given)


class FakeClip:
    """Pictures and words on a plane: what is bright is a wolf, what is dark a dog, red is neither."""

    name = "fake"

    def images(self, images):
        return torch.stack([self._of(np.asarray(image.convert("RGB"), float)) for image in images])

    def texts(self, texts):
        angle = {"dog": 0.2, "wolf": 0.8}
        return torch.stack([self._at(angle[text.split()[-1]]) for text in texts])

    def _of(self, a):
        return self._at(2.5 if a[..., 0].mean() > a[..., 1].mean() + 50 else a.mean() / 255)

    @staticmethod
    def _at(angle):
        return torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32)


def test_a_clip_adds_two_gates():
    dark, bright = picture(halves(40, 60)), picture(halves(190, 210))
    dull = picture(halves(60, 40))
    red = Image.merge("RGB", [bright.convert("L"), dark.convert("L"), dark.convert("L")])
    wide = Gates(destroyed=1.0)
    told = ("dog", "wolf")
    assert judge(dark, bright, wide, FakeClip(), told).reason == PASSED
    assert judge(bright, dark, wide, FakeClip(), told).reason == ANOTHER  # the other way round
    assert judge(dark, red, wide, FakeClip(), told).reason == UNLIKE
    assert judge(dark, red, wide).reason == PASSED  # without CLIP nobody minds
    assert judge(dark, dull, wide, FakeClip(), told).reason == ANOTHER  # changed, but not towards a wolf
    loose = Gates(destroyed=1.0, clip_picture=-1.0, clip_direction=-1.0)
    assert judge(dark, red, loose, FakeClip(), told).reason == PASSED
    with pytest.raises(ValueError, match=r"clip_picture is 3"):
        Gates(clip_picture=3)
