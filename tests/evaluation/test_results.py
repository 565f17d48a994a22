"""Tables: means over the same pictures, intervals over independent inputs, the best where it is clear."""

from dataclasses import replace

import pytest

from ldm.evaluation import report
from ldm.evaluation.report import best_of
from ldm.evaluation.results import Record, Results, as_markdown
from ldm.evaluation.statistics import Interval
from tests.evaluation.small_suites import (
    read,
    record,
)


def test_all_methods_are_averaged_over_the_same_pictures(tmp_path):
    suite = read(tmp_path)
    done, kept = "answered", "background L1"
    records = [record("squares", "dreambooth", i, 3, **{done: 1.0}) for i in range(2)]
    records += [record("squares", "instruct_pix2pix", i, 3, **{done: 1.0, kept: 0.5}) for i in range(2)]
    records += [record("real", "instruct_pix2pix", i, 3, **{done: 0.0, kept: 0.1}) for i in range(2)]
    records += [record("real", "input copied", i, 3, **{kept: 0.0}) for i in range(2)]
    results = Results(suite, [], records, {}, {}, {}, {})
    rows = results.summary()["all edits"]
    assert rows["instruct_pix2pix"][done].mean == rows["dreambooth"][done].mean == 1.0
    assert rows["instruct_pix2pix"][done].n == 2
    assert rows["instruct_pix2pix"][kept].mean == pytest.approx(0.3), "the other method does not have this one at all"
    assert rows["instruct_pix2pix"][kept].n == 4
    apart = [r for r in records if (r.case, r.method) in (("squares", "dreambooth"), ("real", "instruct_pix2pix"))]
    rows = Results(suite, [], apart, {}, {}, {}, {}).summary()["all edits"]
    assert (rows["dreambooth"][done].mean, rows["instruct_pix2pix"][done].mean) == (1.0, 0.0)


def test_seeds_of_one_picture_do_not_make_an_interval_narrower(tmp_path):
    suite = read(tmp_path)
    values = [0.1, 0.5, 0.9, 0.2, 0.4]
    once = [record("squares", "instruct_pix2pix", i, 0, **{"background L1": v}) for i, v in enumerate(values)]
    often = [
        record("squares", "instruct_pix2pix", i, seed, **{"background L1": v})
        for seed in range(4)
        for i, v in enumerate(values)
    ]
    found = [
        Results(suite, [], records, {}, {}, {}, {}).summary()["all edits"]["instruct_pix2pix"]["background L1"]
        for records in (once, often)
    ]
    assert found[0].low == pytest.approx(found[1].low)
    assert found[0].high == pytest.approx(found[1].high)


def test_few_inputs_have_no_interval_and_no_best(tmp_path):
    """Twelve pictures of three inputs are three draws; of one input an interval would have no width at all."""
    suite = read(tmp_path)
    for inputs, known in ((1, False), (4, False), (5, True)):
        records = [
            record("squares", method, i, seed, answered=value)
            for method, value in (("dreambooth", 1.0), ("instruct_pix2pix", 0.0))
            for i in range(inputs)
            for seed in range(3)
        ]
        results = Results(suite, [], records, {}, {}, {}, {})
        rows = results.summary()["all edits"]
        value = rows["instruct_pix2pix"]["answered"]
        assert (value.n, value.draws, value.known) == (3 * inputs, inputs, known)
        assert (best_of(rows, "answered", ()) == "dreambooth") == known
        assert ("[" in as_markdown(results).splitlines()[-1]) == known


def test_the_same_picture_from_text_is_one_draw_in_whatever_cases_it_stands(tmp_path):
    suite = read(tmp_path)
    words = "a sks cat in a baseball field"
    records = [
        Record(case, "replacement", "local", "rex", method, 0, seed, words, "one", "f", {"exact": 9.0 + seed})
        for case in ("squares", "real")
        for seed in range(4)
        for method in ("dreambooth", "instruct_pix2pix")
    ]
    rows = Results(suite, [], records, {}, {}, {}, {}).summary()["all edits"]
    assert rows["dreambooth"]["exact"].draws == 1
    other = [replace(r, subject="domino") for r in records if r.case == "real"]  # other weights, another picture
    two = Results(suite, [], [r for r in records if r.case == "squares"] + other, {}, {}, {}, {}).summary()["all edits"]
    assert two["dreambooth"]["exact"].draws == 2
    assert rows["instruct_pix2pix"]["exact"].draws == 2  # an editor made two edits of one picture


def test_methods_without_a_common_picture_are_not_ranked_and_the_report_says_so(tmp_path):
    suite = read(tmp_path)
    done = "answered"
    records = [record("squares", "dreambooth", i, 3, **{done: 1.0}) for i in range(6)]
    records += [record("real", "instruct_pix2pix", i, 3, **{done: 0.0}) for i in range(6)]
    results = Results(suite, [], records, {}, {}, {}, {})
    assert results.unshared() == {"all edits": [done], "local edits": [done]}
    rows = results.summary()["all edits"]
    assert best_of(rows, done, ()) == "dreambooth"
    table = report._table(rows, suite.columns, (), results.unshared()["all edits"])
    assert 'class="best"' not in table
    assert f"each method over its own: {done}." in table
    both = records + [record("real", "dreambooth", i, 3, **{done: 1.0}) for i in range(6)]
    assert Results(suite, [], both, {}, {}, {}, {}).unshared() == {}


def test_the_best_is_marked_only_where_intervals_are_apart():
    rows = {"a": {"leak": Interval(0.1, 0.05, 0.15, 9)}, "b": {"leak": Interval(0.3, 0.2, 0.4, 9)}}
    assert best_of(rows, "leak", (), "low") == "a"
    assert best_of(rows, "leak", ("a",), "low") is None
    rows["a"]["leak"] = Interval(0.1, 0.05, 0.15, 1)
    assert best_of(rows, "leak", (), "low") is None, "an interval over one picture says nothing"
    rows["a"]["leak"] = Interval(0.1, 0.05, 0.25, 9)
    assert best_of(rows, "leak", (), "low") is None
    rows = {"a": {"exact": Interval(20, 19, 21, 9)}, "b": {"exact": Interval(25, 24, 26, 9)}}
    assert best_of(rows, "exact", ()) == "b"
    rows = {"a": {"cleanness": Interval(0.7, 0.6, 0.8, 9)}, "b": {"cleanness": Interval(1.05, 1.0, 1.1, 9)}}
    assert best_of(rows, "cleanness", (), "one") == "b"
    rows = {name: {"leak": Interval(0.3, *span, 9)} for name, span in {"a": (0.1, 0.2), "b": (0.25, 0.3)}.items()}
    assert best_of(rows, "leak", (), "low") == "a"
    rows["c"] = {"leak": Interval(0.3, 0.15, 0.6, 9)}
    assert best_of(rows, "leak", (), "low") is None, "the third's interval touches"
    rows["c"] = {"leak": Interval(0.9, 0.9, 0.9, 9, draws=1)}
    assert best_of(rows, "leak", (), "low") is None, "an interval over seeds of one picture says nothing"
