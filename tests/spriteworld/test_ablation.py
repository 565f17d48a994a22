"""Ablations: a small one from end to end, gone on with where it stopped, and what its YAML must say."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from ldm.inference.settings import EditSettings
from ldm.spriteworld.experiments import ablation as module
from ldm.spriteworld.experiments.ablation import Folders, read_ablation, run_ablation
from ldm.spriteworld.experiments.ablation_table import table
from ldm.spriteworld.experiments.subject import Measured

ROOT = Path(__file__).resolve().parents[2]


def write(path, content):
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_text_to_image_runs_are_trained_once_and_measured_by_a_suite(tmp_path, monkeypatch):
    drawn = {"scenes": 2, "seed": 5, "draw": {"animal": "wolf", "style": "day"}, "answer": {"animal": "dog"}}
    source = {"target": "ldm.spriteworld.judging.suite_cases.DrawnScenes", "params": drawn}
    judge = {"target": "ldm.spriteworld.judging.suite_cases.SpriteSubject", "params": {"name": "biscuit"}}
    case = {"name": "plain", "subject": "biscuit", "kind": "prior", "reach": "local", "source": source}
    suite = {
        "name": "s",
        "settings": {"dreambooth": {"steps": 2}},
        "subjects": {
            "biscuit": {
                "photos": str(ROOT / "data/spriteworld/subjects/biscuit"), "class_word": "dog", "judge": judge
            }
        },
        "cases": [{**case, "prompts": {"dreambooth": "a {class_word}"}}],
    }  # fmt: skip
    monkeypatch.setattr(
        module.TextSettings, "of_checkpoint", classmethod(lambda cls, m, **c: cls(width=64, height=64, steps=2))
    )
    content = {
        "subjects": ["biscuit"],
        "seeds": [1, 2],
        "class_images": 2,
        "suite": str(write(tmp_path / "suite.yaml", suite)),
        "config": "configs/spriteworld/dreambooth.yaml",
        "steps": [1],
        "runs": {"with": [], "without": ["model.params.reg_weight=0"]},
        "measures": ["prior (the plain class): variety", "prior (the plain class): leak"],
    }
    ablation = read_ablation(write(tmp_path / "a.yaml", content))
    text = run_ablation(ablation, Folders(ROOT, tmp_path / "work"), tmp_path / "out", "a", "ablate.py a.yaml")
    kept = (tmp_path / "out" / "a.md").read_text()
    assert text in kept
    assert re.search(r"`data/spriteworld/text-to-image.safetensors` [0-9a-f]{16}", kept)
    assert "`ablate.py a.yaml`" in kept
    assert (tmp_path / "out" / "a.png").stat().st_size > 1000
    rows = [line for line in text.splitlines() if line.startswith("| with")]
    assert len(rows) == 2
    assert all("±" in row for row in rows)

    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(module, "evaluate", lambda *_: pytest.fail("measured again"))
    assert run_ablation(ablation, Folders(ROOT, tmp_path / "work"), tmp_path / "out", "a", "ablate.py a.yaml") == text


def test_editors_are_compared_with_the_frozen_one_and_every_seed_leaves_a_table(tmp_path, monkeypatch):
    few = EditSettings(text_scale=1.5, steps=4, resolution=64, sampler="dpmpp_2m")
    monkeypatch.setattr(EditSettings, "of_checkpoint", classmethod(lambda cls, *_, **__: few))
    content = {
        "subjects": ["storm"],
        "seeds": [1, 2],
        "scenes": 2,
        "pairs": {"num_reg": 2, "per_photo": 1, "source_words": ["wolf"]},
        "config": "configs/spriteworld/instruct2dream.yaml",
        "steps": [1],
        "runs": {
            "default": ["training.drift_every=0"],
            "colder": ["training.drift_every=0", "model.params.learning_rate=0"],
        },
        "measures": ["class: recognised", "plain class: background kept (dB)"],
    }
    ablation = read_ablation(write(tmp_path / "a.yaml", content))
    text = run_ablation(ablation, Folders(ROOT, tmp_path / "work"), tmp_path / "out", "a", "ablate.py a.yaml")
    assert "seeds: 1. Mean ± standard deviation over 1" in (tmp_path / "work/a.md").read_text()  # of the first seed
    assert "seeds: 1, 2. Mean ± standard deviation over 2" in (tmp_path / "out/a.md").read_text()
    frozen, colder, default = (line.split("|")[3:] for line in text.splitlines()[-3:])
    assert text.splitlines()[-3].startswith("| frozen editor |  |")
    assert frozen == colder  # a training that moves nothing leaves the frozen editor
    assert default != frozen

    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(module, "measure_subject", lambda *_: pytest.fail("measured again"))
    assert run_ablation(ablation, Folders(ROOT, tmp_path / "work"), tmp_path / "out", "a", "ablate.py a.yaml") == text

    known = dict.fromkeys(json.loads((tmp_path / "work" / "frozen" / "storm-1.json").read_text()), 1.0)
    asked = []
    monkeypatch.setattr(module, "measure_subject", lambda *_: asked.append(1) or Measured(known, None, "", ()))
    monkeypatch.setattr(module, "compare_subject", lambda *_, **__: asked.append(2))
    wrong = write(tmp_path / "b.yaml", {**content, "measures": ["class: recognized"]})
    with pytest.raises(ValueError, match="no measure 'class: recognized'; did you mean 'class: recognised'"):
        run_ablation(read_ablation(wrong), Folders(ROOT, tmp_path / "work"), tmp_path / "out", "b", "command")
    assert asked == [1]  # what was measured before lacks it: measured again, then refused


def test_an_unfinished_training_is_gone_on_with_and_not_measured(tmp_path, monkeypatch):
    content = {
        **yaml.safe_load((ROOT / "configs/spriteworld/experiments/ablations.yaml").read_text()),
        "runs": {"default": []},
    }
    content["measures"] = ["a"]
    ablation = read_ablation(write(tmp_path / "a.yaml", content))
    run = tmp_path / "runs" / "biscuit-1-default" / "2026-01-01T00-00-00_biscuit"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "config.yaml").write_text("training: {max_steps: 800}")
    (run / "results.json").write_text('{"step 500": {}}')  # measured too early
    asked = []
    monkeypatch.setattr(module, "train", lambda *args, **more: asked.append(more.get("resume")) or run)
    both = '{"step 500": {"a": 2}, "step 800": {"a": 1}}'
    monkeypatch.setattr(module, "compare_subject", lambda *_, **__: (run / "results.json").write_text(both))
    ends = iter([False, False, False, True])
    monkeypatch.setattr(module, "finished", lambda _: next(ends))
    trained = (ablation, "default", "biscuit", 1, [], Folders(ROOT, tmp_path))
    with pytest.raises(KeyboardInterrupt):
        module._trained(*trained)
    assert "step 800" not in (run / "results.json").read_text()
    assert module._trained(*trained)["step 800"] == {"a": 1}
    assert asked == [run, run]
    assert module._trained(*trained)["step 800"] == {"a": 1}  # read, nothing is done
    assert asked == [run, run]


def test_a_table_tells_subjects_apart():
    rows = {("default", 800): {"a": [0.0, 5.0, 1.0, 7.0]}}  # seed by seed
    text = table(rows, ["a"], ["storm", "mochi"], [1, 2], "40 fresh scenes a figure")
    assert text.startswith("Subjects: storm, mochi; seeds: 1, 2. Mean ± standard deviation over 4 trainings a row, 40")
    assert "| default | 800 | 3.25 ± 3.3 |" in text
    assert "| default | 800 | storm | 0.5 ± 0.71 |" in text
    assert "| default | 800 | mochi | 6 ± 1.4 |" in text
    head, rule = (line for line in text.splitlines()[-4:-2])
    assert head.count("|") == rule.count("|") == 5


def test_work_is_shared_by_processes_with_their_part_of_the_cores():
    with module._workers(2, 1) as call:
        assert call(torch.get_num_threads)() == 1
        assert call(os.getpid)() != os.getpid()
        with pytest.raises(ValueError, match=r"unknown key '\S+model.yaml.model'"):
            call(read_ablation, ROOT / "configs/spriteworld/model.yaml")()


@pytest.mark.parametrize("processes", [0, -1, 10**6])
def test_a_number_of_processes_that_the_machine_has_no_cores_for_is_refused(tmp_path, processes):
    ablation = read_ablation(ROOT / "configs/spriteworld/experiments/ablations.yaml")
    with pytest.raises(ValueError, match=f"{processes} processes were asked for; 1 to"):
        run_ablation(ablation, Folders(ROOT, tmp_path / "work"), tmp_path, "a", "command", processes)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"subjects": ["rex"]}, "unknown subject 'rex'"),
        ({"sedes": [1]}, r"unknown key '\S+a.yaml.sedes'; did you mean 'seeds'"),
        ({"seeds": None}, "lacks seeds"),
        ({"class_images": 3}, "either pairs"),
        ({"pairs": None}, "either pairs"),
        ({"suite": "x.yaml"}, "go together"),
        ({"runs": {"more": "model.params.use_ema=true"}}, "runs.more is 'model.params.use_ema=true'; a list of words"),
        ({"steps": 500}, "steps is 500; a list of whole numbers is expected"),
        ({"pairs": {"source_edit": ["remove the collar"]}}, "unknown key 'pairs.source_edit'.*'source_edits'"),
        (
            {"pairs": {"source_edits": "remove the collar"}},
            "pairs.source_edits is 'remove the collar'; a list of words is expected",
        ),
    ],
)
def test_wrong_ablations_are_one_clear_line(tmp_path, change, says):
    content = yaml.safe_load((ROOT / "configs/spriteworld/experiments/ablations.yaml").read_text()) | change
    content = {key: value for key, value in content.items() if value is not None}
    with pytest.raises(ValueError, match=says):
        read_ablation(write(tmp_path / "a.yaml", content))


@pytest.mark.parametrize("name", ["ablations", "prior-preservation", "subjects"])
def test_the_shipped_ones_can_be_read(name):
    assert read_ablation(ROOT / f"configs/spriteworld/experiments/{name}.yaml").runs
