"""What training shows of itself: triplets that are held out, and what the model makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.training import sheets

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, DATA = ROOT / "configs" / "spriteworld", ROOT / "data" / "spriteworld"


def triplets(folder, n):
    folder.mkdir()
    lines = []
    for i in range(n):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(folder / f"in{i:03d}.png")
        Image.new("RGB", (64, 64), (i, 250, 0)).save(folder / f"out{i:03d}.png")
        lines.append(json.dumps({"input": f"in{i:03d}.png", "edited": f"out{i:03d}.png", "instruction": f"do {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.mark.parametrize(("n", "shown", "warned"), [(100, [90, 91, 93], False), (4, [0, 1, 2], True)])
def test_held_out_triplets_are_shown_with_the_edit_between(tmp_path, tiny_model, monkeypatch, caplog, n, shown, warned):
    settings = {"steps": 1, "resolution": 64, "sampler": "euler"}
    sheet = sheets.TripletSheet(triplets(tmp_path / "set", n), settings=settings, rows=3)
    assert [triplet.instruction for triplet in sheet.triplets] == [f"do {i}" for i in shown]
    assert ("trained on" in caplog.text) == warned
    seen = {}
    made = sheets.contact_sheet
    monkeypatch.setattr(
        sheets, "contact_sheet", lambda rows, *labels, cell: seen.update(rows=rows) or made(rows, *labels, cell=cell)
    )
    picture = sheet(tiny_model)
    assert picture.width > 3 * 192
    for i, (before, edited, wanted) in zip(shown, seen["rows"], strict=True):
        assert before.getpixel((5, 5)) == (i, 0, 0)
        assert wanted.getpixel((5, 5)) == (i, 250, 0)
        assert edited.size == before.size
        assert np.asarray(edited).std() > 0


def test_what_cannot_be_shown_is_refused_before_training(tmp_path):
    folder = triplets(tmp_path / "set", 4)
    with pytest.raises(ValueError, match="rows of a sheet is 0"):
        sheets.TripletSheet(folder, rows=0)
    with pytest.raises(ValueError, match="rows of a sheet is 0"):
        sheets.SubjectSheet(folder, "sks", class_word="dog", rows=0)
    with pytest.raises(ValueError, match="seeds of a sheet is 0"):
        sheets.PromptSheet(["a dog"], seeds=0)
    (tmp_path / "set" / "out001.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"out001.png' is not a picture"):
        sheets.TripletSheet(folder)
    Image.new("RGB", (900, 64)).save(tmp_path / "set" / "in001.png")
    Image.new("RGB", (900, 64)).save(tmp_path / "set" / "out001.png")
    with pytest.raises(ValueError, match="too narrow to edit"):
        sheets.TripletSheet(folder)
    shares = sheets.TripletSheet(triplets(tmp_path / "other", 10), splits=(0.5, 0.5, 0.0), rows=5)
    assert [triplet.instruction for triplet in shares.triplets] == [f"do {i}" for i in range(5, 10)]


def test_a_split_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        sheets.TripletSheet(triplets(tmp_path / "set", 4), split="dev")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sheets.TripletSheet(str(tmp_path / "nowhere"))
