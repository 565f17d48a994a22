"""Drawn cases of a suite: true pictures, copies of the input, blur and noise get the figures they should."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from ldm.errors import UserError
from ldm.evaluation.compare import compare
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.methods import read_methods
from ldm.evaluation.prepared import prepare
from ldm.evaluation.results import as_markdown
from ldm.evaluation.sources import PictureCache, Task
from ldm.evaluation.suite_file import read_suite
from ldm.evaluation.suites import Case, Subject
from ldm.spriteworld.judging import suite_cases
from ldm.spriteworld.judging import suite_measures as drawn
from ldm.spriteworld.judging.editor import pictures
from ldm.spriteworld.judging.suite_cases import DrawnScenes, SpriteSubject
from ldm.spriteworld.world.scene import COATS, PLACES, STYLES, SUBJECTS, coloured, random_scene, swap

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "spriteworld"
GIVEN = [f"dreambooth={DATA / 'text-to-image.safetensors'}", f"instruct_pix2pix={DATA / 'editor.safetensors'}"]
WING = "ldm.spriteworld.judging.suite_cases"


def source(kind="replacement", reach="local", what=None, answer=None, **more):
    draw = {"animal": "wolf", "style": "day", "hat": None, "collar": None} | (what or {})
    task = Task(kind, reach, "dog", SpriteSubject("biscuit"))
    answer = {"subject": "biscuit"} if answer is None else answer
    return DrawnScenes(task, draw=draw, answer=answer, **{"scenes": 12, "seed": 40} | more)


def drawn_by(made):
    return made.load(PictureCache()).scenes


def figures(made, x, photos=None, edited=True):
    """The measures of pictures that answer a source's scenes."""
    return drawn.exact_measures(made.asked, drawn_by(made), x, photos, edited)


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


def test_truth_and_copied_input_bound_a_replacement():
    c = source()
    them = drawn_by(c)
    best, copied = figures(c, them.truth), figures(c, them.x)
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


def test_a_second_subject_is_not_looked_for_in_pictures_from_text_alone():
    c = source()
    truth = drawn_by(c).truth
    made = figures(c, truth, edited=False)
    assert "second subject" not in made
    assert set(figures(c, truth)) - set(made) == {"second subject"}


def test_a_replacement_is_done_by_any_animal_of_the_class_also_by_one_that_is_not_the_subject():
    c = source()
    other = pictures([swap(scene, "dog", COATS["dog"][1]) for scene in drawn_by(c).before])
    found = figures(c, other)
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
def test_every_kind_of_instruction_is_seen_when_done_and_missed_when_not(kind, what, answer):
    c = source(kind, "global", what, answer)
    them = drawn_by(c)
    assert figures(c, them.truth)["instruction done"].mean() == 1
    assert figures(c, them.x)["instruction done"].mean() == 0


def test_a_stance_counts_as_taken_up_in_an_edited_picture_only():
    them = drawn_by(c := source("view synthesis", what={"stance": "stand"}, answer={"stance": "sit"}))
    halfway = 0.3 * them.x + 0.7 * them.truth
    for x, done in ((them.truth, 1), (them.x, 0), (halfway, 1), (0.7 * them.x + 0.3 * them.truth, 0)):
        assert figures(c, x)["instruction done"].mean() == done
    assert "instruction done" not in figures(c, them.truth, edited=False)


def test_a_case_of_the_prior_is_measured_by_leak_class_and_variety():
    c = source("prior", answer={"animal": "dog"})
    truth = drawn_by(c).truth
    photos = drawn_by(source(what={"animal": "cat"}, seed=41)).truth
    found = figures(c, truth, photos)
    assert found["leak"].mean() == 0
    assert found["class right"].mean() >= 0.9
    assert "subject recognised" not in found
    leaked = figures(c, drawn_by(source()).truth, photos)
    assert leaked["leak"].mean() == 1
    assert leaked["PRES (recogniser)"].mean() > found["PRES (recogniser)"].mean() + 0.2


def test_without_a_judge_nothing_is_said_of_the_subject():
    c = DrawnScenes(Task("prior", "local", "dog"), {"animal": "wolf"}, {"animal": "dog"}, scenes=3)
    assert set(figures(c, drawn_by(c).truth)) & {"leak", "PRES (recogniser)", "class right"} == {"class right"}


def test_class_samples_that_are_all_alike_are_not_apart():
    features = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    assert torch.allclose(drawn.apartness(features), torch.tensor([1.5, 1.0, 1.5]))
    assert torch.allclose(drawn.apartness(features[:1].repeat(4, 1)), torch.zeros(4), atol=1e-6)
    assert drawn.apartness(features[:1]).tolist() == [0.0]


def test_scenes_are_the_same_every_time_and_always_leave_something_to_do():
    c = source("recontextualisation", "global", None, {"place": "beach"}, scenes=30)
    first, second = drawn_by(c), drawn_by(c)
    assert first.before == second.before
    assert all(scene.place != "beach" for scene in first.before)
    assert all(scene.place == "beach" for scene in first.after)


def test_an_answer_that_changes_nothing_in_any_scene_is_refused(monkeypatch):
    c = source("recontextualisation", "global", None, {"place": "beach"}, scenes=2)
    monkeypatch.setattr(suite_cases, "answered", lambda scene, _: scene)
    with pytest.raises(UserError, match="changes nothing"):
        drawn_by(c)


BISCUIT = {"subject": "biscuit"}
COLLAR = SUBJECTS["biscuit"].collar


@pytest.mark.parametrize(
    ("draw", "answer"),
    [
        ({"animal": "wolf", "place": "beach"}, {"place": "beach"}),
        ({"animal": "wolf", "hat": "red", "style": "day"}, {"hat": "red", "style": "day"}),
        ({"animal": "wolf"}, {"animal": "wolf"}),  # it has one coat only
        (BISCUIT, BISCUIT),
        (BISCUIT, {"collar": COLLAR}),
        (BISCUIT | {"collar": "pink"}, {"collar": "pink"}),
        (BISCUIT, {"hat": "pink", "subject": "biscuit"}),  # the subject has no hat: it takes this one off again
    ],
)
def test_an_answer_that_asks_for_what_is_drawn_is_one_clear_line_when_the_suite_is_read(tmp_path, draw, answer):
    suite = content()
    suite["cases"][0]["source"] = node(draw=draw, answer=answer)
    with pytest.raises(UserError, match=r"cases.drawn: source: answer .* changes nothing in scenes") as error:
        read(tmp_path, suite)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("draw", "answer"),
    [
        ({"animal": "wolf", "place": "beach"}, {}),
        ({"animal": "wolf", "place": "beach"}, {"place": "beach", "style": "night"}),
        ({"animal": "cat"}, {"animal": "cat"}),  # of the other coat
        ({"animal": SUBJECTS["biscuit"].class_word}, BISCUIT),
        (BISCUIT | {"hat": "red"}, BISCUIT),  # the hat goes
        (BISCUIT | {"collar": "pink"}, {"collar": COLLAR}),
        (BISCUIT, {"subject": "biscuit", "hat": "pink"}),
    ],
)
def test_an_answer_that_leaves_something_to_do_is_read_and_can_be_loaded(tmp_path, draw, answer):
    suite = content()
    suite["cases"][0]["source"] = node(draw=draw, answer=answer)
    them = drawn_by(read(tmp_path, suite).cases[0].source)
    assert all((a != b) == bool(answer) for a, b in zip(them.before, them.after, strict=True))


def test_every_seed_sees_every_scene():
    biscuit = Subject("biscuit", (), "sks", "dog", SpriteSubject("biscuit"))
    p = prepare(Case("x", biscuit, "replacement", "local", {}, source(scenes=3)), (0, 7), PictureCache())
    assert len(p.pictures) == len(p.seeds) == len(p.truth) == 6
    assert len(set(p.seeds)) == 6
    twice = p.inputs.scenes.times(6)
    assert torch.equal(twice.x[:3], twice.x[3:])
    assert p.words[0] == {"animal": "wolf", "where": p.words[3]["where"]}
    copied = p.inputs.measure(p.pictures, [], edited=True)
    assert copied["background L1"].tolist() == [0] * 6


def test_the_shipped_suite_names_cases_that_can_be_drawn(monkeypatch):
    monkeypatch.setattr(suite_cases, "random_scene", lambda *_, **__: pytest.fail("drawn when it was read"))
    monkeypatch.setattr(suite_cases, "subject_scene", lambda *_, **__: pytest.fail("drawn when it was read"))
    suite = read_suite(ROOT / "configs/evaluation/spriteworld.yaml", ROOT)
    assert not suite.holes
    assert {c.kind for c in suite.cases} >= {"replacement", "prior", "view synthesis"}
    assert all(set(c.prompts) == {"dreambooth", "instruct_pix2pix", "instruct2dream"} for c in suite.cases)
    assert all(isinstance(c.source, DrawnScenes) for c in suite.cases)


def test_the_columns_stand_in_one_order_with_the_fields_own():
    suite = read_suite(ROOT / "configs/evaluation/spriteworld.yaml", ROOT)
    assert list(suite.columns) == [
        "subject recognised", "instruction done", "background kept (dB)", "background L1", "background LPIPS",
        "second subject", "exact (dB)", "cleanness", "DINO", "CLIP-I", "CLIP-T", "CLIP direction", "leak",
        "PRES (recogniser)", "class right", "DIV (recogniser)", "variety", "PRES", "DIV",
    ]  # fmt: skip
    assert not any("sprite" in measure.about for measure in MEASURES.values())


def node(**params):
    """A suite's node of drawn scenes."""
    params = {"scenes": 2, "seed": 5, "draw": {"animal": "wolf", "style": "day"}} | params
    return {"target": f"{WING}.DrawnScenes", "params": params}


def content(**subject):
    prompts = {"dreambooth": "a {identifier} {class_word}", "instruct_pix2pix": "replace the wolf with a {class_word}"}
    judge = {"target": f"{WING}.SpriteSubject", "params": {"name": "biscuit"}}
    biscuit = {"photos": str(DATA / "subjects/biscuit"), "class_word": "dog", "judge": judge}
    return {
        "name": "small",
        "seeds": [3],
        "batch_size": 2,
        "settings": {"dreambooth": {"steps": 2}, "instruct_pix2pix": {"steps": 2}},
        "subjects": {"biscuit": biscuit | subject},
        "cases": [
            {"name": "drawn", "subject": "biscuit", "kind": "replacement", "reach": "local",
             "source": node(answer={"subject": "biscuit"}), "prompts": prompts},
            {"name": "plain", "subject": "biscuit", "kind": "prior", "reach": "local",
             "source": node(answer={"animal": "dog"}), "prompts": {"dreambooth": "a {class_word} {where}"}},
        ],
    }  # fmt: skip


def read(tmp_path, suite):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")
    return read_suite(path)


def run(tmp_path, suite, given=GIVEN, models=None, name="out"):
    suite = read(tmp_path, suite)
    return evaluate(suite, read_methods(given, suite), models or {}, {}, tmp_path / name, precision="fp32")


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"draw": {"animal": "unicorn"}}, "unknown animal 'unicorn' in draw"),
        ({"draw": {"animal": "wolf", "subject": "biscuit"}}, "either an animal or a subject"),
        ({"draw": {"style": "day"}}, "either an animal or a subject"),
        ({"draw": {"animal": "wolf", "plaec": "beach"}}, "unknown key 'draw.plaec'; did you mean 'place'?"),
        ({"draw": {"animal": "wolf", "colour": "red"}}, "unknown key 'draw.colour'"),
        ({"draw": {"animal": None}}, "unknown animal 'None' in draw"),
        ({"draw": 5}, "draw is 5"),
        ({"answer": {"place": "moon"}}, "unknown place 'moon' in answer"),
        ({"answer": {"hat": None}}, "unknown hat 'None' in answer"),
        ({"answer": {"plaec": "beach"}}, "unknown key 'answer.plaec'; did you mean 'place'?"),
        ({"answer": "biscuit"}, "answer is 'biscuit'"),
        ({"scenes": 0}, "scenes is 0; at least 1"),
        ({"scenes": "2"}, "scenes is '2'; a whole number"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"seed": -1}, "seed is -1"),
        ({"sceens": 2}, "did you mean 'scenes'?"),
        ({"task": 1}, "'task' is given by the suite itself"),
    ],
)
def test_bad_scenes_are_one_clear_line_when_the_suite_is_read(tmp_path, params, says):
    suite = content()
    suite["cases"][0]["source"] = node(**params)
    with pytest.raises(UserError, match=re.escape(says)) as error:
        read(tmp_path, suite)
    assert "\n" not in str(error.value)
    assert "suite.yaml: cases.drawn: source: " in str(error.value)


def test_an_unknown_subject_of_the_world_is_one_clear_line(tmp_path):
    suite = content(judge={"target": f"{WING}.SpriteSubject", "params": {"name": "rex"}})
    with pytest.raises(UserError, match=r"subjects.biscuit.judge: unknown sprite-world subject 'rex'; known: biscuit"):
        read(tmp_path, suite)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("drawn")
    return tmp_path, run(tmp_path, content())


def test_bounds_bound_a_whole_evaluation(done):
    tmp_path, results = done
    summary = results.summary()
    replaced, prior = summary["replacement"], summary["prior (the plain class)"]
    assert replaced["exact answer"]["subject recognised"].mean == 1
    assert replaced["input copied"]["background kept (dB)"].mean == 60
    assert replaced["real photos"]["subject recognised"].mean >= 0.9
    assert set(prior["real photos"]) == {"PRES (recogniser)"}  # how alike the subject is to itself
    assert prior["real photos"]["PRES (recogniser)"].mean > prior["input copied"]["PRES (recogniser)"].mean
    assert "PRES (recogniser)" not in replaced["real photos"]
    assert replaced["input copied"]["background L1"].mean == 0
    assert "second subject" in replaced["instruct_pix2pix"]
    assert "second subject" not in replaced["dreambooth"]  # from text alone everything stands elsewhere
    assert "| real photos |" in as_markdown(results, "replacement")
    assert len(results.made_with["recogniser"]) == 16
    said = json.loads((tmp_path / "out/results.json").read_text())["measures"]
    assert said["variety"] == {"digits": 1, "pairs": True, "backbone": ""}
    assert "| dreambooth | exact (dB) |" in compare(tmp_path / "out", tmp_path / "out")


def test_the_prior_of_one_drawn_scene_says_nothing_of_how_unlike_edits_are(tmp_path):
    suite = content() | {"seeds": [0, 1]}
    prompts = {"instruct_pix2pix": "replace the wolf with a {class_word}"}
    suite["cases"] = [suite["cases"][1] | {"prompts": prompts, "source": node(scenes=1, answer={"animal": "dog"})}]
    rows = run(tmp_path, suite, GIVEN[1:]).summary()["prior (the plain class)"]
    assert {"leak", "PRES (recogniser)"} <= set(rows["instruct_pix2pix"])
    assert not {"DIV (recogniser)", "variety"} & set().union(*rows.values())
    said = "One input: what compares samples with each other (DIV (recogniser), variety, DIV) is not measured"
    assert said in (tmp_path / "out/report.html").read_text()


def test_the_exact_answers_shadow_is_no_lost_background_for_any_measure(tmp_path):
    class Changed:
        model = None
        name = preprocessing = "none"

        def __call__(self, x, y):
            return (x - y).abs().amax((1, 2, 3))

    suite = content()
    suite["cases"] = suite["cases"][:1]
    results = run(tmp_path, suite, [], {"lpips": Changed()})
    lost = [r.measures["background LPIPS"] for r in results.records if r.method == "exact answer"]
    assert len(lost) == 2
    assert max(lost) < 0.05  # of values in [-1, 1]: a step or two of 256


def test_other_scenes_or_answers_are_another_case(tmp_path):
    def asked(**params):
        suite = content()
        suite["cases"] = [suite["cases"][0] | {"source": node(**{"answer": {"subject": "biscuit"}} | params)}]
        return run(tmp_path, suite, []).made_with["cases"]

    others = {"seed": 6}, {"scenes": 3}, {"answer": {"animal": "dog"}}, {"draw": {"animal": "cat", "style": "day"}}
    first = asked()
    assert asked() == first
    assert len({first, *(asked(**other) for other in others)}) == 5
