"""The methods of a suite: weights of the right kind that learned the right subject, each opened once."""

import json
import re

import pytest
import torch

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.runs import weights_of
from ldm.checkpoint.save import save_checkpoint
from ldm.evaluation import methods as methods_module
from ldm.evaluation.methods import read_methods
from tests.evaluation.small_suites import (
    DATA,
    GIVEN,
    read,
    suite_content,
)


def test_sides_that_a_network_cannot_make_are_refused_before_anything_is_made(tmp_path):
    content = suite_content(tmp_path)
    content["settings"]["dreambooth"]["width"] = 100
    suite = read(tmp_path, content)
    with pytest.raises(ValueError, match="dreambooth in settings of suite 'small': width is 100; a multiple of 16"):
        read_methods(GIVEN, suite)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["dreambooth"], "is not NAME=RUN"),
        (["dreambooht=x"], "unknown method 'dreambooht'; did you mean 'dreambooth'?"),
        (["dreambooth=/no/such/run"], "does not exist"),
        ([GIVEN[0], GIVEN[0]], "given twice"),
        ([GIVEN[0], GIVEN[0].replace("dreambooth=", "dreambooth:rex=")], "given twice"),
        (["dreambooth:tom=x"], "unknown subject"),
    ],
)
def test_bad_methods_are_one_clear_line(tmp_path, given, says):
    suite = read(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)):
        read_methods(given, suite)


def test_weights_of_the_wrong_kind_are_refused(tmp_path):
    given = [f"instruct2dream={DATA / 'text-to-image.safetensors'}"]
    content = suite_content(tmp_path)
    content["cases"][0]["prompts"]["instruct2dream"] = "make it a dog"
    suite = read(tmp_path, content)
    with pytest.raises(ValueError, match=r"method instruct2dream, .*text alone .32 input channels for 32"):
        read_methods(given, suite)
    with pytest.raises(ValueError, match=r"method dreambooth, .*edits pictures .64 input channels for 32"):
        read_methods([f"dreambooth={DATA / 'editor.safetensors'}"], suite)


@pytest.mark.parametrize(("learned", "fine"), [("sks dog", True), ("zwx dog", False), ("sks cat", False)])
def test_weights_of_another_subject_are_refused(tmp_path, learned, fine):
    identifier, class_word = learned.split()
    recipe = {"recipe": {"identifier": identifier, "class_word": class_word}}
    save_checkpoint(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, recipe)
    suite = read(tmp_path)
    given = [f"instruct_pix2pix:rex={tmp_path / 'w.safetensors'}"]
    if fine:
        assert read_methods(given, suite)[0].subject == "rex"
    else:
        with pytest.raises(ValueError, match=f"it learned “{learned}”, but subject rex"):
            read_methods(given, suite)


def test_a_run_gives_the_weights_it_chose_or_else_its_last(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no checkpoints/step="):
        weights_of(tmp_path / "run")
    for step in (500, 1000, 800):
        (folder / f"step={step}.safetensors").touch()
    assert weights_of(tmp_path / "run").name == "step=1000.safetensors"
    (folder / "best.json").write_text(json.dumps({"weights": "step=500.safetensors"}))
    assert weights_of(tmp_path / "run").name == "step=500.safetensors"
    for damaged in ("{", "[]", "{}"):
        (folder / "best.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"best.json' does not name the best weights"):
            weights_of(tmp_path / "run")
    (folder / "best.json").write_text(json.dumps({"weights": "step=500.safetensors"}))
    (folder / "step=500.safetensors").write_bytes((DATA / "editor.safetensors").read_bytes())
    assert read_checkpoint(tmp_path / "run").path == folder / "step=500.safetensors"


def test_shipped_weights_recommend_settings_of_their_own_size():
    text = read_checkpoint(DATA / "text-to-image.safetensors").metadata["text_defaults"]
    assert (text["width"], text["height"]) == (64, 64)
    assert read_checkpoint(DATA / "editor.safetensors").metadata["edit_defaults"]["resolution"] == 64


def test_weights_that_are_named_twice_are_opened_once(tmp_path, monkeypatch):
    opened = []
    whole = methods_module.read_checkpoint
    monkeypatch.setattr(methods_module, "read_checkpoint", lambda path: (opened.append(path), whole(path))[1])
    content = suite_content(tmp_path)
    content["subjects"]["tom"] = content["subjects"]["rex"]
    editor = DATA / "editor.safetensors"
    given = [f"instruct_pix2pix:rex={editor}", f"instruct_pix2pix:tom={editor}", f"instruct2dream={editor}"]
    methods = read_methods(given, read(tmp_path, content))
    assert opened == [str(editor)]
    assert len(methods) == 3
