"""The commands around the measures: each option has its effect or is refused, and what was stopped goes on."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYTHON = """#!/usr/bin/env bash
echo "$*" >> asked.txt
case "$*" in
  "scripts/train.py configs"*) echo logs/new_dreambooth-biscuit ;;
esac
"""


def evaluate_spriteworld(folder, *kept):
    """Run the script with a stand-in for Python, beside a DreamBooth run that kept these files; return what it asked
    Python for."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/evaluate_spriteworld.sh", folder / "scripts")
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("1_biscuit", "2_dreambooth-biscuit"):
        (folder / "logs" / name / "checkpoints").mkdir(parents=True)
    (folder / "logs/1_biscuit/checkpoints/best.json").touch()
    for name in kept:
        (folder / "logs/2_dreambooth-biscuit/checkpoints" / name).touch()
    subprocess.run(["bash", "scripts/evaluate_spriteworld.sh"], cwd=folder, check=True, capture_output=True)
    return (folder / "asked.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("kept", "trained", "measured"),
    [
        ((), "scripts/train.py configs/spriteworld/dreambooth.yaml", "logs/new_dreambooth-biscuit"),
        (("last.ckpt",), "scripts/train.py --resume logs/2_dreambooth-biscuit", "logs/2_dreambooth-biscuit"),
        (("last.ckpt", "step=800.safetensors"), None, "logs/2_dreambooth-biscuit"),
    ],
)
def test_a_run_that_was_stopped_goes_on_or_begins_anew(tmp_path, kept, trained, measured):
    asked = evaluate_spriteworld(tmp_path, *kept)
    trainings = [line for line in asked if "train.py" in line]
    assert [line.startswith(trained) for line in trainings] == ([True] if trained else [])
    assert f"dreambooth={measured}" in asked[-1]
