"""The scripts as the tests call them: inside this process."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name):
    """A script's functions, with its globals."""
    return runpy.run_path(str(SCRIPTS / name))


def refused(capsys, monkeypatch, name, *words):
    """What a script says when it refuses a command line."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    with pytest.raises(SystemExit) as error:
        script(name)["parse"]()
    assert error.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]
