"""Command lines: an option that would have no effect is an error, told before any work."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


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
    ],
)
def test_a_benchmark_takes_only_what_it_uses(monkeypatch, capsys, what, flag, value):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", what, flag, value])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")
    assert left.value.code == 2
    assert f"{flag} has no effect on {what}" in capsys.readouterr().err
