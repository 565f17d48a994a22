"""Where the project's own files are: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import MissingFileError

PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file()
ROOT = PACKAGE.parent if IN_CHECKOUT else Path.cwd()  # what relative defaults, such as logs/, are relative to
CONFIGS = (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / "configs"
SCRIPTS = (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / "scripts"
LOGS = ROOT / "logs"
SPRITEWORLD = PACKAGE.parent / "data" / "spriteworld"  # the small weights and pictures; only a checkout has them


def shipped(name: str) -> Path:
    """Return a file or folder of the small world that comes with a checkout, like "editor.safetensors".

    Raises MissingFileError where it is not there, as in an installed package.
    """
    path = SPRITEWORLD / name
    if not path.exists():
        raise MissingFileError(
            f"the small weights and pictures are in a checkout of the project only ('{path}' is not there); name files "
            "of your own, such as --ckpt"
        )
    return path


def shown(path: Path) -> str:
    """Return a path as a message shows it: relative to the project where it is inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
