"""Photos, and the command line with a stand-in for the editor."""

import logging
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldm.dataset_generation import generate as dataset_job
from tests.dataset_generation.stand_ins import SCRIPT, FakeEditor, photo


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return [photo(tmp_path / "photos" / f"{name}.png", i) for i, name in enumerate("abc")]


# The command line


@pytest.fixture
def generate(monkeypatch, capsys, caplog, tmp_path):
    """Run the command line in this process with a stand-in for the editor: (exit code, printed, said)."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object, editor: FakeEditor | None = None, **changes: object) -> tuple[int, str, str]:
        loading = SimpleNamespace(from_checkpoint=lambda *_, **__: editor or FakeEditor())
        monkeypatch.setattr(dataset_job, "ImageEditor", loading)
        monkeypatch.setattr(dataset_job, "read_checkpoint", lambda path: SimpleNamespace(metadata={}))
        given = {"photos": tmp_path / "photos", "class-word": "dog", "source-words": "wolf", "output": tmp_path / "out"}
        given |= {"ckpt": "editor.ckpt", "num-reg": 2, "resolution": 64, **changes}
        words = [str(w) for name, value in given.items() if value is not None for w in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, *map(str, arguments)])
        loggers = {n: x.level for n, x in logging.root.manager.loggerDict.items() if hasattr(x, "level")}
        caplog.clear()
        try:
            with caplog.at_level("INFO"), pytest.raises(SystemExit) as left:
                runpy.run_path(str(SCRIPT), run_name="__main__")
        finally:
            for name, level in loggers.items():
                logging.getLogger(name).setLevel(level)
        out, err = capsys.readouterr()
        assert not list(tmp_path.rglob("*.tmp")), "something half-written was left"
        assert "Traceback" not in err
        return left.value.code, out, err + caplog.text

    return run
