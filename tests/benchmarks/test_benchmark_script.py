"""The benchmarks' command line: an option without effect is warned of, and what cannot be measured is one line."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.parametrize(
    ("what", "flag", "value"),
    [
        ("edit", "--precision", "fp32"),
        ("edit", "--folder", "somewhere"),
        ("train", "--precision", "fp32"),
        ("train", "--folder", "somewhere"),
        ("load", "--device", "cpu"),
        ("load", "--rounds", "3"),
        ("load", "--threads", "1"),
        ("shipped", "--size", "full"),
        ("shipped", "--device", "cpu"),
        ("shipped", "--precision", "fp32"),
    ],
)
def test_a_benchmark_takes_only_what_it_uses(monkeypatch, caplog, what, flag, value):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", what, flag, value])
    args = runpy.run_path(str(SCRIPTS / "benchmark.py"))["parse"]()
    assert args.what == what
    assert f"{flag} has no effect on {what}" in caplog.text


def test_a_tiny_edit_is_measured_beside_diffusers_in_every_variant():
    """No time is judged: every variant is run as often as was asked, and what is compared are equal pictures' costs."""
    from ldm.benchmarks.edit import benchmark_edit
    from ldm.benchmarks.measure import report

    results = benchmark_edit("tiny", torch.device("cpu"), rounds=2, pixels=64, steps=2)
    assert [series.name for series in results] == ["UNet evaluation", "sampler step", "edit of 2 steps"]
    for series in results:
        assert {"diffusers fp32", "ours fp32"} <= set(series.seconds)
        assert all(len(times) == 2 and min(times) > 0 for times in series.seconds.values()), series
        assert series.ratio("diffusers fp32", "diffusers fp32") == 1
    told = report(results).splitlines()
    assert len(told) == 1 + sum(len(series.seconds) for series in results)
    assert all("x" in line for line in told[1:])


def test_the_shipped_editors_times_are_told_in_a_fresh_process(monkeypatch, capsys):
    """No time is judged: as many edits as rounds, and the threads that were asked for."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "shipped", "--rounds", "2", "--threads", "1"])
    main = runpy.run_path(str(SCRIPTS / "benchmark.py"))["main"]
    assert main() == 0
    told = capsys.readouterr().out
    assert re.search(r"^loading \d+\.\d\d s, first edit \d+\.\d\d s$", told, re.M)
    assert "(median of 1)" in told
    assert "CPU, 1 thread, one picture" in told


def test_a_benchmark_of_what_cannot_be_loaded_says_so(tmp_path):
    from ldm.benchmarks.shipped import benchmark_shipped

    with pytest.raises(ValueError, match=r"failed: .*MissingFileError: .*absent"):
        benchmark_shipped(tmp_path / "absent.safetensors", tmp_path / "none.png", rounds=1)
