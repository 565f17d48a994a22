"""The figures of drift against true pictures."""

import pytest
import torch

from ldm.spriteworld.judging.editor import pictures
from ldm.spriteworld.judging.subject import source_scenes, true_scene
from ldm.spriteworld.world.scene import swap
from ldm.training import drift


@pytest.fixture(scope="module")
def worlds():
    scenes = source_scenes("wolf", 12, 3)
    plain = [swap(scene, "dog", true_scene(scene, "storm").coat) for scene in scenes]
    truth = [true_scene(scene, "biscuit") for scene in scenes]
    return pictures(scenes), pictures(truth), pictures(plain)


def test_the_way_is_one_at_the_photo_zero_at_the_input_and_between_for_another_dog(worlds):
    before, truth, plain = worlds
    assert drift.progress_to_goal(truth, before, truth) == pytest.approx(1)
    assert drift.progress_to_goal(before, before, truth) == pytest.approx(0)
    assert drift.progress_to_goal(0.5 * (before + truth), before, truth) == pytest.approx(0.5, abs=0.1)
    assert drift.progress_to_goal(plain, before, truth) < 0.6
    noise = torch.rand(before.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert drift.progress_to_goal(noise, before, truth) < 0


def test_background_is_looked_at_only_where_the_frozen_answer_changes_nothing(worlds):
    before, truth, plain = worlds
    assert drift.kept_psnr(plain, before, truth) > 30  # both stand in the same place
    elsewhere = before.clone()
    elsewhere[..., :8, :] += 0.2  # the sky: a tenth of the range on an eighth of the picture
    assert 19 < drift.kept_psnr(elsewhere, before, truth) < 33
    everywhere = before + 0.2
    assert drift.kept_psnr(everywhere, before, truth) == pytest.approx(20, abs=1e-3)
    assert drift.kept_psnr(before, before, before + 1) == 0.0  # nothing is background
