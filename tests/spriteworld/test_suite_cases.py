"""Measures that need no alignment: true pictures, copies of the input, blur and noise get the figure they should."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm.evaluation.evaluate import prepare
from ldm.evaluation.suites import Case, Subject, read_suite
from ldm.spriteworld.judging import suite_cases as drawn
from ldm.spriteworld.judging.editor import pictures
from ldm.spriteworld.judging.recogniser import load_recogniser
from ldm.spriteworld.world.scene import COATS, PLACES, STYLES, coloured, random_scene, swap

ROOT = Path(__file__).resolve().parents[2]
BISCUIT = Subject("biscuit", ROOT / "data/spriteworld/subjects/biscuit", "sks", "dog", "biscuit")


@pytest.fixture(scope="module")
def recogniser():
    return load_recogniser(ROOT / "data/spriteworld/recogniser.safetensors")


def case(kind="replacement", reach="local", what=None, answer=None):
    what = {"scenes": 12, "seed": 40, "animal": "wolf", "style": "day", "hat": None, "collar": None} | (what or {})
    return Case("x", BISCUIT, kind, reach, {}, drawn=what, answer={"subject": "biscuit"} if answer is None else answer)


def scenes(n=160, **fixed):
    return [random_scene(np.random.default_rng([9, i, 86]), **fixed) for i in range(n)]


def test_places_and_styles_are_told_from_unseen_pictures_and_from_blurred_speckled_ones():
    them = scenes()
    x = pictures(them)
    blurred = F.avg_pool2d(
        F.pad(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), (2,) * 4), 5, 1
    )
    for seen, least in ((x, 0.99), (blurred, 0.97)):
        told = drawn.surroundings(seen)
        assert np.mean([place == scene.place for (place, _), scene in zip(told, them, strict=True)]) >= least
        assert np.mean([style == scene.style for (_, style), scene in zip(told, them, strict=True)]) >= least
    assert set(told) <= {(place, style) for place in PLACES for style in STYLES}


@pytest.mark.parametrize("colour", drawn.TELLABLE)
def test_a_colour_is_found_where_it_was_given_and_nowhere_else(colour):
    plain = scenes(40, style="day", hat=None, collar=None)
    hats = pictures([replace(scene, hat=colour) for scene in plain])
    dyed = pictures([replace(scene, coat=coloured(scene.coat, colour)) for scene in plain])
    for truth in (hats, dyed):
        enough = drawn.COLOUR_ENOUGH * drawn.colour_share(truth, colour)
        assert bool((drawn.colour_share(truth, colour) >= enough).all())
        assert not bool((drawn.colour_share(pictures(plain), colour) >= enough).any())


def test_variety_is_zero_for_one_picture_repeated_and_high_for_many_places():
    x = pictures(scenes(8))
    assert drawn.variety(x[:1].repeat(5, 1, 1, 1)).max() < 1e-4
    assert drawn.variety(x).mean() > 15
    assert drawn.variety(x[:1]).tolist() == [0.0]


def test_truth_and_copied_input_bound_a_replacement(recogniser):
    c = case()
    them = drawn.draw_case(c)
    best = drawn.exact_measures(c, them, them.truth, recogniser)
    copied = drawn.exact_measures(c, them, them.x, recogniser)
    assert best["subject recognised"].mean() == 1
    assert copied["subject recognised"].mean() == 0
    assert best["instruction done"].mean() >= 0.9
    assert copied["instruction done"].mean() == 0
    assert best["exact (dB)"].min() == 60 > copied["exact (dB)"].max()
    assert copied["background kept (dB)"].min() == 60
    assert copied["background L1"].max() == 0
    assert best["background L1"].max() < 0.01
    assert best["cleanness"].sub(1).abs().max() < 1e-6
    assert best["second subject"].sum() == 0


def test_a_second_subject_is_not_looked_for_in_pictures_from_text_alone(recogniser):
    c = case()
    them = drawn.draw_case(c)
    made = drawn.exact_measures(c, them, them.truth, recogniser, edited=False)
    assert "second subject" not in made
    assert set(drawn.exact_measures(c, them, them.truth, recogniser)) - set(made) == {"second subject"}


def test_a_replacement_is_done_by_any_animal_of_the_class_also_by_one_that_is_not_the_subject(recogniser):
    c = case()
    them = drawn.draw_case(c)
    other = pictures([swap(scene, "dog", COATS["dog"][1]) for scene in them.before])
    found = drawn.exact_measures(c, them, other, recogniser)
    assert found["instruction done"].mean() >= 0.9
    assert found["subject recognised"].mean() == 0


@pytest.mark.parametrize(
    ("kind", "what", "answer"),
    [
        ("recontextualisation", {}, {"place": "beach"}),
        ("art rendition", {}, {"style": "night"}),
        ("property modification", {}, {"colour": "purple"}),
        ("accessorisation", {}, {"hat": "pink"}),
    ],
)
def test_every_kind_of_instruction_is_seen_when_done_and_missed_when_not(recogniser, kind, what, answer):
    c = case(kind, "global", what, answer)
    them = drawn.draw_case(c)
    assert drawn.exact_measures(c, them, them.truth, recogniser)["instruction done"].mean() == 1
    assert drawn.exact_measures(c, them, them.x, recogniser)["instruction done"].mean() == 0


def test_a_stance_counts_as_taken_up_in_an_edited_picture_only(recogniser):
    them = drawn.draw_case(c := case("view synthesis", what={"stance": "stand"}, answer={"stance": "sit"}))
    halfway = 0.3 * them.x + 0.7 * them.truth
    for x, done in ((them.truth, 1), (them.x, 0), (halfway, 1), (0.7 * them.x + 0.3 * them.truth, 0)):
        assert drawn.exact_measures(c, them, x, recogniser)["instruction done"].mean() == done
    assert "instruction done" not in drawn.exact_measures(c, them, them.truth, recogniser, edited=False)


def test_a_case_of_the_prior_is_measured_by_leak_class_and_variety(recogniser):
    c = case("prior", answer={"animal": "dog"})
    them = drawn.draw_case(c)
    photos = drawn.draw_case(case(what={"seed": 41, "animal": "cat"})).truth
    found = drawn.exact_measures(c, them, them.truth, recogniser, photos)
    assert found["leak"].mean() == 0
    assert found["class right"].mean() >= 0.9
    assert "subject recognised" not in found
    subjects = drawn.draw_case(case())
    leaked = drawn.exact_measures(c, them, subjects.truth, recogniser, photos)
    assert leaked["leak"].mean() == 1
    assert leaked["PRES (recogniser)"].mean() > found["PRES (recogniser)"].mean() + 0.2


def test_class_samples_that_are_all_alike_are_not_apart():
    features = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    assert torch.allclose(drawn.apartness(features), torch.tensor([1.5, 1.0, 1.5]))
    assert torch.allclose(drawn.apartness(features[:1].repeat(4, 1)), torch.zeros(4), atol=1e-6)
    assert drawn.apartness(features[:1]).tolist() == [0.0]


def test_scenes_are_the_same_every_time_and_always_leave_something_to_do():
    c = case("recontextualisation", "global", {"scenes": 30}, {"place": "beach"})
    first, second = drawn.draw_case(c), drawn.draw_case(c)
    assert first.before == second.before
    assert all(scene.place != "beach" for scene in first.before)
    assert all(scene.place == "beach" for scene in first.after)


def test_an_answer_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match="changes nothing"):
        drawn.draw_case(case("recontextualisation", "global", {"scenes": 2, "place": "beach"}, {"place": "beach"}))


def test_every_seed_sees_every_scene():
    p = prepare(case(what={"scenes": 3}), (0, 7))
    assert len(p.inputs) == len(p.seeds) == len(p.scenes.x) == 6
    assert len(set(p.seeds)) == 6
    assert torch.equal(p.scenes.x[:3], p.scenes.x[3:])


def test_the_shipped_suite_names_cases_that_can_be_drawn():
    suite = read_suite(ROOT / "configs/evaluation/spriteworld.yaml", ROOT)
    assert not suite.holes
    assert {c.kind for c in suite.cases} >= {"replacement", "prior", "view synthesis"}
    assert all(set(c.prompts) == {"dreambooth", "instruct_pix2pix", "instruct2dream"} for c in suite.cases)
