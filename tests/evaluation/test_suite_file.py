"""Suites as files: what is wrong with one is one clear line, what is missing a hole."""

import re

import pytest
import yaml
from PIL import Image

from ldm.evaluation import sources
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.suite_file import read_suite
from tests.evaluation.small_suites import (
    ROOT,
    Squares,
    changed,
    coloured_suite,
    read,
    suite_content,
)


def test_a_folder_of_masks_only_is_a_hole(tmp_path):
    content = coloured_suite(tmp_path)
    for i in range(3):
        (tmp_path / f"photos/{i:02d}.png").rename(tmp_path / f"{i:02d}.png")
    content["cases"][0]["picture"] = "00.png"
    with pytest.raises(ValueError, match="put photos of rex"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("cases",), [], "lacks cases"),
        (("casses",), [1], "unknown key 'suite.casses'; did you mean 'cases'?"),
        (("cases", 0, "kind"), "replacment", "cases.squares: unknown kind"),
        (("cases", 0, "reach"), "far", "cases.squares: unknown reach"),
        (("cases", 0, "subject"), "tom", "cases.squares: unknown subject 'tom'"),
        (("cases", 1, "name"), "squares", "two cases"),
        (("cases", 1, "name"), "../up", "letters, digits"),
        (("cases", 1, "picture"), None, "either a picture or a source"),
        (("cases", 1, "picture"), "", "either a picture or a source"),
        (("cases", 1, "pictur"), "x", "unknown key 'cases.real.pictur'; did you mean 'picture'?"),
        (("cases", 0, "prompts"), {"dreambooht": "x"}, "unknown key 'prompts.dreambooht'; did you mean 'dreambooth'?"),
        (("cases", 0, "prompts", "dreambooth"), "a {who}", "cases.squares: unknown field 'who'"),
        (("cases", 1, "prompts", "dreambooth"), "a {colour} dog", "cases.real: unknown field 'colour'"),
        (("cases", 0, "prompts", "dreambooth"), "  ", "is empty"),
        (("cases", 0, "prompts", "dreambooth"), 3, "cases.squares: prompts.dreambooth is 3; words"),
        (("cases", 0, "prompts", "dreambooth"), "a {identifier:d}", "is {identifier} alone"),
        (("cases", 0, "prompts", "dreambooth"), "a {", "cannot be read"),
        (("cases", 0, "picture"), "photo.png", "either a picture or a source"),
        (("cases", 0, "mask"), "mask.png", "a mask belongs to a picture"),
        (("cases", 0, "source"), 5, "cases.squares.source is 5"),
        (("cases", 0, "source"), {"params": {}}, "cases.squares: source: expected a mapping with 'target'"),
        (("cases", 0, "source", "target"), "tests.evaluation.small_suites.Squars", "does not exist"),
        (("cases", 0, "source", "target"), "tests.evaluation.small_suites.Redness", "has no parameter"),
        (("cases", 0, "source"), {"target": "builtins.dict"}, "cases.squares: source: 'builtins.dict' is no Source"),
        (("cases", 0, "source", "params", "becoms"), "red", "did you mean 'becomes'?"),
        (("cases", 0, "source", "params"), {}, "needs the parameter(s) becomes"),
        (("cases", 0, "source", "params", "task"), 1, "source: 'task' is given by the suite itself"),
        (("subjects", "rex", "class_word"), None, "subjects.rex lacks class_word"),
        (("subjects", "rex", "class_word"), "", "subjects.rex: it lacks class_word"),
        (("subjects", "rex", "judge", "params"), {"most": 1}, "subjects.rex.judge: "),
        (("subjects", "rex", "judge"), {"target": "builtins.dict"}, "subjects.rex.judge: 'builtins.dict' is no Judge"),
        (("seeds",), [1, 1], "different whole numbers"),
        (("seeds",), [], "different whole numbers"),
        (("seeds",), [-1], "different whole numbers"),
        (("seeds",), 5, "suite.seeds is 5; a list of whole numbers is expected"),
        (("seeds",), [True], "suite.seeds is [True]; a list of whole numbers"),
        (("batch_size",), "8", "suite.batch_size is '8'"),
        (("batch_size",), 0, "at least 1"),
        (("name",), 2024, "suite.name is 2024"),
        (("subjects",), ["rex"], "suite.subjects is ['rex']"),
        (("subjects", "rex"), "dog", "subjects.rex should hold names and values"),
        (("subjects", "rex", "photos"), 5, "subjects.rex.photos is 5"),
        (("subjects",), {5: {"class_word": "dog"}}, "subjects.5: a name is words"),
        (("cases",), {"a": 1}, "suite.cases is {'a': 1}"),
        (("cases",), ["a"], "a case should hold names and values"),
        (("cases", 0, "prompts"), "a dog", "cases.squares.prompts is 'a dog'; names and values"),
        (("cases", 1, "picture"), ["photo.png"], "cases.real.picture is ['photo.png']"),
        (("cases", 1, "caption_after"), 7, "cases.real.caption_after is 7"),
        (("cases", 1, "picture"), ".", "cases.real: a mask belongs to one picture"),
        (("settings",), [1], "suite.settings is [1]"),
        (("settings",), {"dreambooht": {}}, "unknown key 'settings.dreambooht'"),
        (("settings",), {"dreambooth": None}, "settings.dreambooth should hold names and values"),
        (("settings", "dreambooth", "stepps"), 3, "unknown key 'settings.dreambooth.stepps'; did you mean 'steps'?"),
        (("settings", "dreambooth", "steps"), "3", "settings.dreambooth.steps is '3'"),
        (("settings", "dreambooth", "steps"), 0, "settings.dreambooth: steps is 0"),
        (("settings", "instruct_pix2pix", "text_scale"), True, "settings.instruct_pix2pix.text_scale is True"),
        (("settings", "instruct_pix2pix", "guidance_interval"), [1], "a list of 2 numbers"),
        (("settings", "instruct_pix2pix", "sampler"), "dmp", "settings.instruct_pix2pix: unknown sampler"),
    ],
)
def test_bad_suites_are_one_clear_line(tmp_path, path, value, says):
    content = changed(suite_content(tmp_path), path, value)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'suite.yaml'}: ")


def test_a_suite_is_read_without_a_picture_being_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(Squares, "load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(sources, "open_rgb", lambda *_: pytest.fail("opened"))
    suite = read(tmp_path)
    assert list(suite.holes) == ["hole"]
    assert [case.source.count for case in suite.cases] == [2, 1, 0, 2]


def test_keys_without_a_value_are_as_good_as_none(tmp_path):
    content = suite_content(tmp_path) | {"about": None, "seeds": None, "batch_size": None, "settings": None}
    content["cases"][1] |= {"mask": None, "caption_before": None}
    suite = read(tmp_path, content)
    assert (suite.about, suite.seeds, suite.batch_size, suite.settings) == ("", (0,), 1, {})
    assert suite.cases[1].source.mask is None


def test_columns_of_sources_and_judges_stand_before_the_ones_that_they_name(tmp_path):
    names = list(read(tmp_path).columns)
    assert [name for name in names if name in MEASURES] == list(MEASURES)
    assert set(names) - set(MEASURES) == {"answered", "exact", "edited", "apart", "red"}
    assert names[names.index("answered") + 1] == "background kept (dB)"
    assert names[names.index("exact") + 1 :][:2] == ["edited", "DINO"]
    assert names[names.index("apart") + 1] == "PRES"
    assert names[-1] == "red"


@pytest.mark.parametrize("name", ["cross_dataset", "unseen", "manipulations"])
def test_the_published_suites_run_as_soon_as_their_pictures_are_there(tmp_path, name):
    content = yaml.safe_load((ROOT / f"configs/evaluation/{name}.yaml").read_text())
    for path in {case["picture"] for case in content["cases"]}:
        place = tmp_path / path
        if not place.suffix:  # a folder
            place = place / "another.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "teal").save(place)
    suite = read_suite(ROOT / f"configs/evaluation/{name}.yaml", tmp_path)
    assert not suite.holes
    assert {"instruct_pix2pix", "instruct2dream", "dreambooth"} == set().union(*(case.prompts for case in suite.cases))
    priors = [case for case in suite.cases if case.kind == "prior"]
    assert priors
    for case in priors:  # asked of another member of the class: of the subject's own photo PRES would measure the input
        assert case.source.files
        assert not {p.parent for p in case.source.files} & {s.place for s in suite.subjects.values()}
        assert not {"instruct_pix2pix", "instruct2dream", "dreambooth"} - set(case.prompts)
