"""The command ``instruct2dream``: its verbs are the scripts, and it completes in a shell."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.__main__ import VERBS, completion, parser
from ldm.project import IN_CHECKOUT, SCRIPTS

ROOT = Path(__file__).resolve().parents[1]


def test_every_script_is_a_verb_and_has_a_parser():
    assert IN_CHECKOUT
    assert set(VERBS.values()) == {path.stem for path in SCRIPTS.glob("*.py")}
    for verb, script in VERBS.items():
        own = runpy.run_path(str(SCRIPTS / f"{script}.py"))["parser"]()
        assert own.prog == f"{script}.py", verb
        assert own.description, verb


@pytest.mark.parametrize("given", [["edit", "--sampler"], ["train", "--resume"], ["completion", "bash"]])
def test_the_whole_command_line_knows_each_verbs_flags(given):
    whole = parser()
    action = next(a for a in whole._actions if getattr(a, "choices", None) and given[0] in a.choices)
    known = action.choices[given[0]].format_help()
    assert given[1] in known


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_names_the_verbs_and_their_flags(shell):
    text = completion(shell)
    for word in ("generate-dataset", "inspect", "--guidance-interval", "--source-words"):
        assert word in text
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_verb_runs_its_script_and_an_unknown_one_is_one_line(tmp_path):
    def call(*given):
        command = [sys.executable, "-m", "ldm", *given]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    done = call("edit", "--show-recipe", str(tmp_path / "gone.png"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"edit_cli.py: error: picture '{tmp_path / 'gone.png'}' does not exist\n"
    done = call("edti")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "generate-dataset" in call("--help").stdout


def test_a_wrapper_before_set_up_says_what_to_do(tmp_path):
    for name in ("edit.sh", "train.sh", "generate_dataset.sh"):
        copy = tmp_path / name
        copy.write_text((ROOT / name).read_text())
        bare = {"PATH": "/usr/bin:/bin", "PYTHON": "false"}
        done = subprocess.run(["bash", str(copy), "--help"], capture_output=True, text=True, check=False, env=bare)
        assert done.returncode == 2
        assert "scripts/setup.sh" in done.stderr
        assert done.stderr.count("\n") == 1


def test_completion_takes_its_options_in_any_order():
    command = [sys.executable, "-m", "ldm", "completion", "--traceback", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == completion("bash").strip()
