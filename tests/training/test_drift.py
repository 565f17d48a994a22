"""The drift monitor: figures with known answers, the best kept step with its reason, nothing lost over a resume."""

import json
from types import SimpleNamespace

import pytest
import torch

from ldm.data.datamodule import PairDataModule
from ldm.data.pairs import replacement_pairs
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.project import CONFIGS
from ldm.training import drift
from ldm.training.run import train
from ldm.training.settings import load_training_config
from tests.training.conftest import overrides


def test_the_score_wants_the_subject_without_leak_and_with_its_background():
    frozen = {"subject": 0.1, "leak": 0.0, "background": 30.0}
    good = {"subject": 0.8, "leak": 0.0, "background": 30.0}
    assert drift.score(good, frozen) == pytest.approx(0.8)
    assert drift.score({**good, "leak": 0.3}, frozen) == pytest.approx(0.5)
    assert drift.score({**good, "leak": -0.3}, frozen) == pytest.approx(0.8)
    assert drift.score({**good, "background": 26.0}, frozen) == pytest.approx(0.6)
    assert drift.score({**good, "background": 35.0}, frozen) == pytest.approx(0.8)


def config(pairs, begun, **more):
    settings = {"text_scale": 1.5, "image_scale": 1.2, "steps": 2, "sampler": "euler", "resolution": 64}
    given = {
        "model.params.ckpt_path": begun,
        "training.drift_every": 2,
        "training.drift.params.pairs": 3,
        "training.keep_at": "[3,4]",
        "training.save_every": 2,
    }
    given |= {f"training.drift.params.settings.{key}": value for key, value in settings.items()}
    path = CONFIGS / "spriteworld" / "instruct2dream.yaml"
    return load_training_config(path, overrides(pairs, **{**given, **more}))


def test_a_run_names_its_best_kept_step_also_when_it_was_stopped(pairs, begun, tmp_path, monkeypatch):
    whole = train(config(pairs, begun), "whole", tmp_path / "whole")
    best = json.loads((whole / "checkpoints" / "best.json").read_text())
    assert set(best["steps"]) == {"0", "2", "3", "4"}
    rows = {int(step): row for step, row in best["steps"].items()}
    assert rows[0]["leak"] == 0
    assert best["step"] == max((3, 4), key=lambda step: drift.score(rows[step], rows[0]))
    assert (whole / "checkpoints" / best["weights"]).is_file()
    assert f"step {best['step']} scores" in best["why"]
    assert "drift/subject" in (whole / "metrics" / "metrics.csv").read_text()

    measure = drift.Monitor._run

    def stop_at_three(self, trainer, module):
        measure(self, trainer, module)
        trainer.should_stop = trainer.global_step == 3

    with monkeypatch.context() as patch:
        patch.setattr(drift.Monitor, "_run", stop_at_three)
        part = train(config(pairs, begun), "part", tmp_path / "part")
    assert part.is_dir()
    train(load_training_config(part / "config.yaml"), "part", tmp_path / "part", part)
    resumed = json.loads((part / "checkpoints" / "best.json").read_text())
    assert resumed["steps"] == best["steps"]


def test_what_is_saved_at_a_step_holds_what_was_measured_there(pairs, begun, tmp_path, monkeypatch):
    from ldm.training.callbacks import Checkpoints

    monkeypatch.setattr(Checkpoints, "on_train_end", lambda *_: None)  # as if killed right after the step
    run = train(config(pairs, begun, **{"training.keep_at": "[4]"}), "killed", tmp_path)
    states = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["callbacks"]
    assert set(states["DriftMonitor"]["rows"]) == {0, 2, 4}


def test_the_plain_edit_of_a_pair_with_its_own_instruction_is_told_no_identifier():
    subject = SimpleNamespace(
        identifier="sks", source_word="wolf", class_word="dog", templates=["swap it for a {identifier} {class_word}"]
    )
    own, none = (SimpleNamespace(instruction=text, source_word=None) for text in ("make it a sks dog", None))
    assert drift._prompt(subject, own, "sks") == "make it a sks dog"
    assert drift._prompt(subject, own, "") == "make it a dog"
    assert drift._prompt(subject, none, "").split() == ["swap", "it", "for", "a", "dog"]


def test_edits_of_the_subject_are_told_with_its_name_and_are_not_what_is_watched():
    subject = SimpleNamespace(identifier="sks", class_word="dog", source_word=None, templates=["a {identifier}"])
    named = SimpleNamespace(instruction="make the {identifier} dog red", source_word="dog")
    assert drift._prompt(subject, named, "sks") == "make the sks dog red"
    assert drift._prompt(subject, named, "") == "make the dog red"
    swap_pair = SimpleNamespace(instruction=None)
    assert replacement_pairs([named, swap_pair]) == [swap_pair]
    assert replacement_pairs([named]) == [named]
    assert replacement_pairs([]) == []


def test_data_that_cannot_be_measured_is_refused(pairs, begun, tmp_path):
    instance = PersonalizedEdit(str(pairs / "training"), class_word="dog", source_word="wolf", size=64)
    where = {"keep_at": [1], "folder": tmp_path, "suffix": ".ckpt"}
    with pytest.raises(ValueError, match="instance and regularization pairs"):
        drift.DriftMonitor(PairDataModule(instance), 1, **where)
    with pytest.raises(ValueError, match=r"unknown key 'training\.drift\.params\.settings\.stpes'"):
        train(config(pairs, begun, **{"training.drift.params.settings.stpes": 3}), "x", tmp_path)
