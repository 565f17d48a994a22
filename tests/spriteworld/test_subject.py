"""What a subject's training costs: figures of the general edits, for a copied input and in the shipped YAML."""

from pathlib import Path

import pytest
import yaml

from ldm.spriteworld.judging.recogniser import load_judges
from ldm.spriteworld.judging.subject import KEPT, kept_figures

ROOT = Path(__file__).resolve().parents[2]


def test_a_copy_of_the_input_does_none_of_the_general_edits():
    judges = load_judges(ROOT / "data/spriteworld")
    figures = kept_figures(lambda x, texts: x, *judges, n=24, seed=1)
    assert {name: v.mean for name, v in figures.items() if v.mean > 0.1} == {}


@pytest.mark.parametrize("name", ["ablations", "subjects"])
def test_the_shipped_comparisons_show_every_general_edit(name):
    content = yaml.safe_load((ROOT / f"configs/spriteworld/experiments/{name}.yaml").read_text())
    assert {f"{kind}: {figure}" for kind, figure in KEPT.items()} <= set(content["measures"])
