"""README and guides speak of what is there: files, flags, config keys, pictures, figures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.training.settings import load_training_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "data/spriteworld/README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "edit.sh": "scripts/edit_cli.py",
    "generate_dataset.sh": "scripts/generate_dataset.py",
    "train.sh": "scripts/train.py",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_named_file_is_there(page):
    text = page.read_text(encoding="utf-8")
    places = r"(?:scripts|configs|ldm|data/spriteworld|docs|tests)"
    named = set(re.findall(rf"(?<![\w/.]){places}/[\w./-]+\.(?:py|sh|yaml|png|md|sbatch|safetensors)\b", text))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_picture_and_link_is_there(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_kept_picture_is_shown_somewhere():
    shown = set()
    for page in [*PAGES, *(ROOT / "docs/results").glob("*.md")]:
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        shown |= {(page.parent / link).resolve() for link in links}
    kept = [*(ROOT / "docs").rglob("*.png"), *(ROOT / "data/spriteworld").glob("*.png")]
    assert kept
    assert [str(path) for path in kept if path.resolve() not in shown] == []


def test_the_figures_of_the_readme_are_those_of_the_results():
    """Each row of its table between the markers stands in the file that the marker names."""
    marked = re.search(r"<!-- results: (\S+) -->\n(.*?)<!-- /results -->", TEXT, re.S)
    results = (ROOT / marked[1]).read_text(encoding="utf-8")
    known = [[float(x) for x in re.findall(r"(?<=\| )-?[\d.]+", line)] for line in results.splitlines()]
    rows = [line for line in marked[2].splitlines() if re.match(r"\| \w", line)]
    assert 0 < len(rows) <= 8
    for row in rows:
        figures = [float(x) for x in re.findall(r"(?<=\| )-?[\d.]+(?= \|)", row)]
        assert figures in known, row


def test_the_layout_names_what_is_there():
    tree = re.search(r"## Where things are\s+```\n(.*?)```", TEXT, re.S)[1]
    top, inside = [], []
    for line in tree.splitlines():
        names = re.match(r"( *)([\w./]+(?:, [\w./]+)*)(?= {2})", line)
        if names:
            (inside if names[1] else top).extend(names[2].split(", "))
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


def keys_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])((?:model|training|data|dataset)\.[\w.]+)=", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_override_can_be_given(page):
    """By the recipe that most of them are about, or by one of the other full-size ones."""
    recipes = sorted((ROOT / "configs" / "stable-diffusion").glob("v1-*.yaml"))
    for key in keys_in(page.read_text(encoding="utf-8")):
        assert any(takes(recipe, key) for recipe in recipes), key


def takes(recipe: Path, key: str) -> bool:
    try:
        load_training_config(recipe, [f"{key}=1"])
    except UserError:
        return False
    return True
