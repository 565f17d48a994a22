"""Tables of figures for people: Markdown that says by which code, weights and command it was made."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from PIL import Image

from ldm.data.images import save_image
from ldm.errors import UserError
from ldm.files import check_writable, fingerprint, replacing
from ldm.project import IN_CHECKOUT, ROOT, shown

WRITTEN = "Written by a command, never by hand."


@dataclass(frozen=True)
class Provenance:
    """What a table was made by.

    commit: of the code, "+ changes" behind it if the code differs from it. weights: "`file` hash" of each file that was
    measured. date: of the day, like 2026-12-01. command: the command line. Raises UserError if one of them is empty.
    """

    commit: str
    weights: tuple[str, ...]
    date: str
    command: str

    def __post_init__(self) -> None:
        for name in ("commit", "weights", "date", "command"):
            if not getattr(self, name):
                raise UserError(f"figures are not written without their {name}")

    @classmethod
    def of(cls, weights: Sequence[Path], command: str) -> Provenance:
        """Return that of weights (files or folders) and a command, by this code, today. Raises UserError."""
        hashes = tuple(f"`{shown(path.absolute())}` {fingerprint(path)}" for path in weights)
        return cls(code_version(), hashes, date.today().isoformat(), " ".join(command.split()))

    def head(self) -> str:
        """Return the lines that stand above a table."""
        rows = {"commit": self.commit, "weights": ", ".join(self.weights), "date": self.date}
        rows["command"] = f"`{self.command}`"
        lines = [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows.items()]
        return "\n".join([WRITTEN, "", "| made by | |", "|---|---|", *lines])


def code_version(root: Path = ROOT) -> str:
    """Return the code's commit, "+ changes" behind it if tracked files outside docs/ differ; without git the version.

    Raises UserError if there is neither.
    """
    if IN_CHECKOUT and (root / ".git").exists():
        commit = _git(root, "rev-parse", "--short", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
        if commit:
            return f"{commit} + changes" if changes else commit
    try:
        return f"version {version('instruct2dream')}"
    except PackageNotFoundError:
        raise UserError("figures are not written without the code's commit: this is no git checkout") from None


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def write_table(
    path: Path, title: str, table: str, made_by: Provenance, picture: Image.Image | None = None, shows: str = ""
) -> Path:
    """Write a Markdown file with its head, and the picture beside it under the same name; return the file's path.

    title: the heading. table: Markdown. picture: shown below the table, None for none. shows: what it shows, in words.
    """
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}", made_by.head(), table]
    if picture is not None:
        image = path.with_suffix(".png")
        save_image(picture, image)
        parts.append(f"![{shows or title}]({image.name})")
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
