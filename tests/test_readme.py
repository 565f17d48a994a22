"""The README speaks of what is there: files, flags, config keys, pictures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.config import load_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    "edit.sh": "scripts/edit_cli.py",
    "generate_dataset.sh": "scripts/generate_dataset.py",
    "train.sh": "scripts/train.py",
}


def test_every_named_file_is_there():
    named = set(
        re.findall(r"\b(?:scripts|configs|ldm|data/spriteworld|docs)/[\w./-]+\.(?:py|sh|yaml|png|md|sbatch)\b", TEXT)
    )
    assert len(named) > 8
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_picture_and_link_is_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_sheet_that_is_kept_is_shown_somewhere():
    pages = [ROOT / "README.md", ROOT / "data/spriteworld/README.md", *(ROOT / "docs").glob("*.md")]
    shown = set()
    for page in pages:
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        shown |= {(page.parent / link).resolve() for link in links}
    kept = [*(ROOT / "docs").glob("*.png"), *(ROOT / "data/spriteworld").glob("*.png")]
    kept += (ROOT / "data/spriteworld/measures").rglob("*.png")
    assert len(kept) > 10
    assert [str(path) for path in kept if path.resolve() not in shown] == []


def test_the_layout_names_what_is_there():
    tree = re.search(r"## Where things are\s+```\n(.*?)```", TEXT, re.S)[1]
    top, inside = [], []
    for line in tree.splitlines():
        name = re.match(r"( *)([\w.]+(?:/[\w.]+)*/?)(?= {2})", line)
        if name and len(name[1]) == 0:
            top.append(name[2])
        elif name and len(name[1]) == 2:
            inside.append(name[2])
    assert all((ROOT / name).exists() for name in top)
    assert all((ROOT / "ldm" / name).exists() for name in inside)
    there = {f"{p.name}/" if p.is_dir() else p.name for p in (ROOT / "ldm").iterdir() if not p.name.startswith("__")}
    assert there == set(inside)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_known(command):
    shown = " ".join(re.findall(rf"\./{re.escape(command)}((?:[^\n]*\\\n)*[^\n]*)", TEXT))
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown))
    assert flags
    script = [sys.executable, str(ROOT / COMMANDS[command]), "--help"]
    known = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert sorted(flag for flag in flags if flag not in known) == []


def test_every_config_key_is_there():
    config = load_config(ROOT / "configs" / "stable-diffusion" / "v1-finetune_unfrozen.yaml")
    keys = set(re.findall(r"`((?:model|training|data|dataset)\.[\w.]+)=", TEXT))
    assert keys
    for key in keys:
        node = config
        for part in key.split("."):
            assert part in node, key
            node = node[part]
