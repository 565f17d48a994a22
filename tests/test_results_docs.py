"""docs/results/: every table says by which code, weights and command it was made, and is whole."""

import re
from pathlib import Path

import pytest
from PIL import Image

from ldm.evaluation import tables
from ldm.evaluation.tables import Provenance, code_version, write_table

ROOT = Path(__file__).resolve().parents[1]
TABLES = sorted((ROOT / "docs/results").glob("*.md"))
HEAD = (
    r"\| commit \| [0-9a-f]{7,40}( \+ changes)? \|\n"
    r"\| weights \| (`[^`]+` [0-9a-f]{16}(, )?)+ \|\n"
    r"\| date \| \d{4}-\d\d-\d\d \|\n"
    r"\| command \| `scripts/[^`]+` \|\n"
)
MADE_BY = Provenance("1234567", ("`a.safetensors` 0123456789abcdef",), "2026-12-01", "scripts/x.py a")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_a_table_says_what_made_it_and_is_whole(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert tables.WRITTEN in text
    assert re.search(HEAD, text)
    assert "so far" not in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert Image.open(path.parent / link).width > 100


def test_there_are_tables():
    assert {"quickstart.md", "shipped-weights.md", "shipped-text-to-image.md", "calibration.md"} <= {
        path.name for path in TABLES
    }


@pytest.mark.parametrize("name", ["commit", "weights", "date", "command"])
def test_nothing_is_written_without_knowing_what_made_it(name):
    with pytest.raises(ValueError, match=f"without their {name}"):
        Provenance(**{**vars(MADE_BY), name: ()})


def test_a_written_table_has_the_head_and_its_picture(tmp_path):
    picture = Image.new("RGB", (120, 10))
    path = write_table(tmp_path / "a/t.md", "Title", "| x |\n|---|\n| 1 |", MADE_BY, picture, "what it shows")
    text = path.read_text()
    assert re.search(HEAD, text)
    assert text.startswith("# Title\n\nWritten by a command")
    assert text.endswith("| 1 |\n\n![what it shows](t.png)\n")
    assert Image.open(tmp_path / "a/t.png").size == (120, 10)


def test_the_code_is_told_by_its_commit_and_changes(tmp_path, monkeypatch):
    answers = {"rev-parse": "abcdef1", "status": ""}
    monkeypatch.setattr(tables, "_git", lambda root, verb, *_: answers[verb])
    (tmp_path / ".git").touch()
    assert code_version(tmp_path) == "abcdef1"
    answers["status"] = " M ldm/x.py"
    assert code_version(tmp_path) == "abcdef1 + changes"
    assert code_version(tmp_path / "elsewhere").startswith("version ")  # a copy without git


def test_weights_are_told_by_a_hash(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    (text,) = Provenance.of([tmp_path / "w.safetensors"], "scripts/x.py   a\nb").weights
    assert re.fullmatch(r"`\S+w.safetensors` [0-9a-f]{16}", text)
