"""Choosing the scales: the judgement knows a true answer from an unedited, a wrong and a spoiled one."""

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.data.images import to_tensor
from ldm.inference.auto_cfg import ScaleJudge, choose_scales, scale_grid, total_steps
from ldm.inference.edit_job import run_job
from ldm.inference.editor import ImageEditor
from ldm.inference.recipe import read_recipe
from ldm.inference.settings import EditSettings
from tests.inference.planning import planned

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = EditSettings(text_scale=2.5, image_scale=1.5, steps=4, sampler="euler", resolution=64)


@pytest.fixture(scope="module")
def editor():
    return ImageEditor.from_checkpoint(ROOT / "data/spriteworld/editor.safetensors", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def photo():
    return Image.open(ROOT / "data/spriteworld/pictures/wolf/02.png").convert("RGB")


def test_the_grid_is_the_given_one_or_lies_around_the_usual_scales():
    assert scale_grid(SETTINGS, [5, 7.5, 5], [1.2]) == [(5, 1.2), (7.5, 1.2)]
    usual = scale_grid(EditSettings())
    assert (7.5, 1.5) in usual
    assert min(text for text, _ in usual) < 5 < 9 < max(text for text, _ in usual)
    assert min(image for _, image in usual) >= 1.0


def test_the_best_come_first_in_full_steps_and_the_rest_are_drafts(editor, photo):
    settings = EditSettings(**{**SETTINGS.__dict__, "steps": 12})
    grid = list(itertools.product((1.0, 2.0, 3.0), (1.0, 1.5)))
    calls = []
    found = choose_scales(
        editor, photo, "replace the wolf with a bear", settings, 3, grid, None, lambda: calls.append(1)
    )
    assert [c.settings.steps for c in found] == [12, 12, 12, 10, 10, 10]
    assert found[0].score >= found[1].score >= found[2].score
    assert {(c.settings.text_scale, c.settings.image_scale) for c in found} == set(grid)
    assert len(calls) == total_steps(settings, grid) == 6 * 10 + 3 * 12
    again = editor.edit(photo, "replace the wolf with a bear", found[0].settings, [3])[0]
    assert again.tobytes() == found[0].picture.tobytes()


def test_the_photo_is_encoded_once_for_all_candidates(editor, photo, monkeypatch):
    whole, seen = editor.model.picture_condition, []
    monkeypatch.setattr(editor.model, "picture_condition", lambda x: (seen.append(x), whole(x))[1])
    grid = [(1.0, 1.5), (2.5, 1.5)]
    found = choose_scales(editor, photo, "replace the wolf with a bear", SETTINGS, 3, grid)
    assert len(seen) == 1 + len(grid)  # the photo, then each candidate to be judged
    assert torch.equal(seen[0], to_tensor(photo))
    monkeypatch.undo()
    judge = ScaleJudge(editor, photo, "replace the wolf with a bear")
    for candidate in found:
        assert candidate.score == judge.score(candidate.picture)


def test_a_job_writes_the_choice_its_recipe_and_the_sheet_of_all(tmp_path, editor):
    wolf = str(ROOT / "data/spriteworld/pictures/wolf/02.png")
    sweep = ([1.0, 2.5], [1.0, 1.5])
    job = planned([wolf], ["make it night"], str(tmp_path / "out.png"), SETTINGS, 1, sweep=sweep, auto_cfg=True)
    steps = []
    written, failed = run_job(editor, job, lambda: steps.append(1))
    assert (sorted(path.name for path in written), failed) == (["out-scales.png", "out.png"], 0)
    recipe = read_recipe(tmp_path / "out.png")
    assert (recipe["text_scale"], recipe["image_scale"]) in set(itertools.product(*sweep))
    assert len(steps) == job.total_steps
    assert Image.open(tmp_path / "out-scales.png").height > Image.open(tmp_path / "out.png").height


def test_scales_out_of_range_are_refused_before_any_work(tmp_path):
    wolf = str(ROOT / "data/spriteworld/pictures/wolf/02.png")
    with pytest.raises(ValueError, match="text_scale is 400"):
        planned([wolf], ["make it night"], str(tmp_path), SETTINGS, 1, sweep=([400.0], [1.0]), auto_cfg=True)


def test_batches_of_chosen_scales_are_warned_of_and_made_one_by_one(tmp_path, caplog):
    wolf = str(ROOT / "data/spriteworld/pictures/wolf/02.png")
    job = planned([wolf], ["make it night"], str(tmp_path), SETTINGS, 1, batch_size=2, auto_cfg=True)
    assert job.batch_size == 1
    assert "--batch-size has no effect" in caplog.text
