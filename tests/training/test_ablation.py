"""Ablations: a small one from end to end, gone on with where it stopped, and what its YAML must say."""

from pathlib import Path

import pytest
import yaml

from ldm.training import ablation as module
from ldm.training.ablation import read_ablation, run_ablation

ROOT = Path(__file__).resolve().parents[2]


def write(path, content):
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_text_to_image_runs_are_trained_once_and_measured_by_a_suite(tmp_path, monkeypatch):
    drawn = {"scenes": 2, "seed": 5, "animal": "wolf", "style": "day"}
    case = {"name": "plain", "subject": "biscuit", "kind": "prior", "reach": "local", "drawn": drawn}
    suite = {
        "name": "s",
        "settings": {"dreambooth": {"steps": 2}},
        "subjects": {
            "biscuit": {
                "photos": str(ROOT / "data/spriteworld/subjects/biscuit"), "class_word": "dog", "world": "biscuit"
            }
        },
        "cases": [{**case, "answer": {"animal": "dog"}, "prompts": {"dreambooth": "a {class_word}"}}],
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
    text = run_ablation(ablation, ROOT, tmp_path / "work", tmp_path / "out", "a")
    assert (tmp_path / "out" / "a.md").read_text() == text + "\n"
    assert (tmp_path / "out" / "a.png").stat().st_size > 1000
    rows = [line for line in text.splitlines() if line.startswith("| with")]
    assert len(rows) == 2
    assert all("±" in row for row in rows)

    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(module, "evaluate", lambda *_: pytest.fail("measured again"))
    assert run_ablation(ablation, ROOT, tmp_path / "work", tmp_path / "out", "a") == text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"subjects": ["rex"]}, "unknown subject 'rex'"),
        ({"sedes": [1]}, "unknown key 'sedes'"),
        ({"seeds": None}, "lacks seeds"),
        ({"class_images": 3}, "either pairs"),
        ({"pairs": None}, "either pairs"),
        ({"suite": "x.yaml"}, "go together"),
    ],
)
def test_wrong_ablations_are_one_clear_line(tmp_path, change, says):
    content = yaml.safe_load((ROOT / "configs/spriteworld/ablations.yaml").read_text()) | change
    content = {key: value for key, value in content.items() if value is not None}
    with pytest.raises(ValueError, match=says):
        read_ablation(write(tmp_path / "a.yaml", content))


@pytest.mark.parametrize("name", ["ablations", "prior-preservation"])
def test_the_shipped_ones_can_be_read(name):
    assert read_ablation(ROOT / f"configs/spriteworld/{name}.yaml").runs
