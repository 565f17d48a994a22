"""Where the project's own files are: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file()
ROOT = PACKAGE.parent if IN_CHECKOUT else Path.cwd()  # what relative defaults, such as logs/, are relative to
CONFIGS = (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / "configs"
SCRIPTS = (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / "scripts"
LOGS = ROOT / "logs"
SPRITEWORLD = PACKAGE.parent / "data" / "spriteworld"  # the small weights and pictures; only a checkout has them


def shown(path: Path) -> str:
    """Return a path as a message shows it: relative to the project where it is inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
