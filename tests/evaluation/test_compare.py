"""Two results of one suite, picture by picture."""

import json
import re

import pytest

from ldm.errors import UserError
from ldm.evaluation.compare import compare
from tests.evaluation.small_suites import (
    RECORD,
    result,
)


def test_two_results_are_compared_picture_by_picture(done, tmp_path):
    folder, _ = done
    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((folder / "out/results.json").read_text())
    for record in content["records"]:
        if record["method"] == "dreambooth" and "exact" in record["measures"]:
            record["measures"]["exact"] += 2.0
    (other / "results.json").write_text(json.dumps(content))
    table = compare(folder / "out", other)
    row = next(line for line in table.splitlines() if line.startswith("| dreambooth | exact"))
    assert "| +2.0 | " in row  # of two inputs no interval is known
    assert re.search(r"\| instruct_pix2pix \| exact .* \| \+0.0 \| \d", table)
    content["suite"] = "another"
    (other / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(folder / "out", other)
    with pytest.raises(FileNotFoundError, match="no results"):
        compare(tmp_path, folder / "out")


def test_a_file_tells_of_its_own_measures_and_an_older_one_takes_what_is_known(tmp_path):
    def results(name, by, **more):
        records = [
            {**RECORD, "input": f"{i}", "index": i, "measures": {"apart": 0.1 * (i % 3) * by, "DINO": 0.5}}
            for i in range(6)
        ]
        (tmp_path / name).mkdir()
        content = {"suite": "s", "records": records, "methods": []}
        (tmp_path / name / "results.json").write_text(json.dumps(content | more))
        return tmp_path / name

    def row(table):
        cells = next(line for line in table.splitlines() if "| apart |" in line).split("|")
        low, high = re.search(r"\[(.*), (.*)\]", cells[5]).groups()
        return cells[3].strip(), float(high) - float(low)

    said = {"apart": {"digits": 4, "pairs": True, "backbone": ""}}
    older, old = results("older", 1), results("old", 2)
    new, newer = results("new", 1, measures=said), results("newer", 2, measures=said)
    assert row(compare(older, old))[0] == "0.10"
    assert row(compare(new, newer))[0] == row(compare(older, newer))[0] == row(compare(new, old))[0] == "0.1000"
    assert row(compare(new, newer))[1] == pytest.approx(2 * row(compare(older, old))[1], abs=0.03)
    assert "- not known: whether apart compare pictures with each other" in compare(older, old)
    assert not any("not known" in compare(*pair) for pair in ((new, newer), (older, newer), (new, old)))
    lines = compare(new, newer).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:4]] == ["apart", "DINO"]
    assert "| DINO | 0.500 |" in compare(older, old)
    for damaged in ([1], {"apart": 5}, {"apart": {"digits": "x"}}):
        bad = results(f"bad{len(list(tmp_path.iterdir()))}", 1, measures=damaged)
        with pytest.raises(UserError, match="says of its measures cannot be read"):
            compare(bad, new)


def test_a_change_is_starred_only_over_inputs_enough(tmp_path):
    for inputs, seeds, star in ((5, 1, True), (4, 3, False), (1, 12, False)):
        for name, by in (("a", 0.0), ("b", 0.1)):
            records = [
                {**RECORD, "input": f"input {i}", "index": i, "seed": s, "measures": {"DINO": 0.5 + 0.01 * i + by}}
                for i in range(inputs)
                for s in range(seeds)
            ]
            folder = tmp_path / f"{name}{inputs}"
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps({"suite": "s", "records": records, "methods": []}))
        table = compare(tmp_path / f"a{inputs}", tmp_path / f"b{inputs}")
        assert ("[+0.100, +0.100] *" in table) == star
        assert "+0.100" in table


@pytest.mark.parametrize("records", [5, [1], [{"measures": {}}], {"a": 1}])
def test_files_that_hold_no_pictures_figures_are_refused(tmp_path, records):
    (tmp_path / "results.json").write_text(json.dumps({"suite": "s", "records": records}))
    with pytest.raises(ValueError, match="is no result of evaluate"):
        compare(tmp_path, tmp_path)


def test_a_comparison_says_what_else_was_not_alike(tmp_path):
    a = result(tmp_path, "a", **{"made with": {"precision": "fp32", "cases": "11"}}, prompt="give it a hat")
    b = result(tmp_path, "b", **{"made with": {"precision": "bf16", "cases": "11"}}, prompt="give it a cap", steps=77)
    table = compare(a, b)
    assert "- not alike: precision (fp32 and bf16)" in table
    assert "- not alike: prompts of instruct_pix2pix in 1 pictures" in table
    assert "- not alike: settings of instruct_pix2pix (steps 20 and 77)" in table
    assert "not alike: cases" not in table
    assert "not alike" not in compare(a, a)


def test_backbones_are_told_apart_by_their_weights_not_by_where_they_lie(tmp_path):
    def clip(path, mark):
        return {"clip": {"weights": path, "hash": mark, "preprocessing": "p"}}

    a = result(tmp_path, "a", backbones=clip("here", "1"))
    moved, other = (result(tmp_path, n, backbones=clip(*c)) for n, c in (("b", ("there", "1")), ("c", ("here", "2"))))
    assert "| CLIP-T |" in compare(a, moved)
    assert "| CLIP-T |" not in compare(a, other)


def test_pictures_of_other_inputs_are_not_paired(tmp_path):
    a, other = result(tmp_path, "a"), result(tmp_path, "other", input="bb")
    older, oldest = (result(tmp_path, name, input=None) for name in ("older", "oldest"))
    with pytest.raises(ValueError, match=r"no picture and measure in common$"):
        compare(a, other)
    with pytest.raises(ValueError, match="older' does not say which inputs it had"):
        compare(a, older)
    assert "| instruct_pix2pix | DINO | 0.500 | 0.500 |" in compare(older, oldest)


def test_a_comparison_names_both_weights_and_leaves_out_what_other_backbones_measured(tmp_path):
    dino, clip = ({key: {"weights": key, "preprocessing": "p"}} for key in ("dino", "clip"))
    a = result(tmp_path, "a", backbones={**dino, **clip})
    b = result(tmp_path, "b", backbones={**dino, "clip": {"weights": "clip-large", "preprocessing": "p"}})
    table = compare(a, b)
    assert "| DINO |" in table
    assert "| background L1 |" in table
    assert "| CLIP-T |" not in table
    assert "left out: CLIP-I, CLIP-T, CLIP direction, measured by 'clip' (p) and 'clip-large' (p)" in table
    assert "A: instruct_pix2pix (all): a.ckpt, hash-of-a" in table
    assert "B: instruct_pix2pix (all): b.ckpt, hash-of-b" in table


def test_pictures_from_the_same_words_and_seed_are_one_draw_in_every_case(tmp_path):
    """A text-to-image method makes the same picture for six cases with one prompt: that is no six draws."""

    def results(name, by):
        own = {"method": "dreambooth", "prompt": "a sks dog"}
        records = [
            {**RECORD, **own, "case": f"c{i}", "input": f"{i}", "seed": s, "measures": {"DINO": by * (1 + s)}}
            for i in range(6)
            for s in range(2)
        ]
        (tmp_path / name).mkdir()
        content = {"suite": "s", "records": records, "methods": []}
        (tmp_path / name / "results.json").write_text(json.dumps(content))
        return tmp_path / name

    row = next(line for line in compare(results("a", 1), results("b", 2)).splitlines() if "| DINO |" in line)
    assert "[" not in row
