"""Run folders: which of the weights that a training run kept are the ones to use."""

from __future__ import annotations

import json
from pathlib import Path

from ldm.errors import MissingFileError, UserError


def is_run(path: Path) -> bool:
    """Return whether a folder is a run's (``config.yaml`` and ``checkpoints/``)."""
    return (path / "checkpoints").is_dir()


def kept_weights(run: Path) -> list[Path]:
    """Return the weights that a run kept, by step. Raises MissingFileError if there are none."""
    kept = [p for p in (run / "checkpoints").glob("step=*") if p.suffix in (".safetensors", ".ckpt")]
    if not kept:
        raise MissingFileError(f"run '{run}' has no checkpoints/step=* yet")
    return sorted(kept, key=lambda path: int(path.stem.partition("=")[2]))


def weights_of(path: Path) -> Path:
    """Return the weights that a run folder named the best (``checkpoints/best.json``), or else kept last; any other
    path as it is. Raises MissingFileError for a run that has kept none, UserError for a ``best.json`` that names
    none."""
    if not is_run(path):
        return path
    choice = path / "checkpoints" / "best.json"
    if choice.is_file():
        try:
            best = path / "checkpoints" / json.loads(choice.read_text(encoding="utf-8"))["weights"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{choice}' does not name the best weights ({error!r}); name a file of the run") from error
        if best.is_file():
            return best
    return kept_weights(path)[-1]
