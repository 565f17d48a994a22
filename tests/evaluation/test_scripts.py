"""The commands around the measures: each option has its effect or is refused, and what was stopped goes on."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_lines import refused, script

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "spriteworld"

PYTHON = """#!/usr/bin/env bash
echo "$*" >> asked.txt
case "$*" in
  "scripts/train.py configs"*) echo "logs/new_${@: -1}" ;;
esac
"""


BOOTH = f"dreambooth-biscuit-{hashlib.sha256(b'weights').hexdigest()[:8]}"


def evaluate_spriteworld(folder, *kept):
    """Run the script with a stand-in for Python, beside a DreamBooth run that kept these files; return what it asked
    Python for."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/evaluate_spriteworld.sh", folder / "scripts")
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    weights = folder / "data/spriteworld/text-to-image.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    for name in ("1_biscuit", f"2_{BOOTH}", "3_dreambooth-biscuit-01234567"):
        (folder / "logs" / name / "checkpoints").mkdir(parents=True)
    (folder / "logs/1_biscuit/checkpoints/best.json").touch()
    (folder / "logs/3_dreambooth-biscuit-01234567/checkpoints/step=800.safetensors").touch()  # of other weights
    for name in kept:
        (folder / f"logs/2_{BOOTH}/checkpoints" / name).touch()
    subprocess.run(["bash", "scripts/evaluate_spriteworld.sh"], cwd=folder, check=True, capture_output=True)
    return (folder / "asked.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("kept", "trained", "measured"),
    [
        ((), "scripts/train.py configs/spriteworld/dreambooth.yaml", f"logs/new_{BOOTH}"),
        (("last.ckpt",), f"scripts/train.py --resume logs/2_{BOOTH}", f"logs/2_{BOOTH}"),
        (("last.ckpt", "step=800.safetensors"), None, f"logs/2_{BOOTH}"),
    ],
)
def test_a_run_that_was_stopped_goes_on_or_begins_anew(tmp_path, kept, trained, measured):
    asked = evaluate_spriteworld(tmp_path, *kept)
    trainings = [line for line in asked if "train.py" in line]
    assert [line.startswith(trained) for line in trainings] == ([True] if trained else [])
    assert f"dreambooth={measured}" in asked[-1]
    images = f"logs/class-images/dog-{BOOTH[-8:]}"
    assert f"--output {images} " in next(line for line in asked if "txt2img.py" in line)
    assert all(f"dataset.class_images={images} " in line for line in trainings if "--resume" not in line)


def test_what_an_older_editor_has_learned_is_not_compared(tmp_path):
    evaluate_spriteworld(tmp_path)
    editor = tmp_path / "data/spriteworld/editor.safetensors"
    editor.touch()
    os.utime(editor, (2**32, 2**32))
    command = ["bash", "scripts/evaluate_spriteworld.sh"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "logs/1_biscuit is older than data/spriteworld/editor.safetensors; run" in done.stderr


@pytest.mark.parametrize(
    "words", ["--dino a", "--clip a", "--lpips a b", "--batch-size 3", "--device cpu", "--precision fp32"]
)
def test_a_comparison_takes_no_other_options(capsys, monkeypatch, words):
    said = refused(capsys, monkeypatch, "evaluate.py", "--compare", "a", "b", *words.split())
    assert f"{words.split()[0][2:]} has no effect" in said


def test_what_is_evaluated_is_still_on_any_device(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "suite.yaml", "--methods", "dreambooth=x"])
    args = script("evaluate.py")["parse"]()
    assert (args.device, args.precision, args.compare) == ("auto", "auto", None)
