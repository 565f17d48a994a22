"""What ``scripts/spriteworld.py subject`` does: an editor before and after it was taught one subject."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.runs import kept_weights
from ldm.data.images import save_image
from ldm.errors import UserError
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.spriteworld.judging import editor as world
from ldm.spriteworld.judging import subject as subjects
from ldm.spriteworld.judging.recogniser import load_recogniser
from ldm.spriteworld.world.scene import SUBJECTS


def compare_subject(
    frozen: Path | None, run: Path, subject: str, data: Path, n: int, seed: int, output: Path | None = None
) -> str:
    """Return a Markdown table of the frozen editor (None: without it) and every kept step of a run; write it, the
    figures and a sheet of results to ``output`` (default: the run's folder).

    subject: whose photos the run learned from. Raises ValueError for an unknown subject.
    """
    output = run if output is None else output
    files = {path.stem.replace("=", " "): path for path in kept_weights(run)}
    results: dict[str, dict[str, Any]] = {}
    edits: dict[str, Any] = {}
    trained: tuple[str, ...] = ("wolf",)
    for title, path in (({"frozen": frozen} if frozen else {}) | files).items():
        results[title], edits[title], trained = measure_subject(path, subject, data, n, seed, trained)
    sources = [*trained, *subjects.unseen_sources(subject, trained)[:2]]
    sheet = subjects.results_sheet(edits, subject, sources)
    output.mkdir(parents=True, exist_ok=True)
    save_image(sheet, output / "results.png")
    text = comparison(results)
    (output / "results.md").write_text(text + "\n", encoding="utf-8")
    (output / "results.json").write_text(json.dumps(plain(results), indent=2), encoding="utf-8")
    return text


def measure_subject(
    path: Path, subject: str, data: Path, n: int, seed: int, trained: tuple[str, ...] = ("wolf",)
) -> tuple[dict[str, Any], tuple[Any, str], tuple[str, ...]]:
    """Return a checkpoint's figures about a subject, the edit (with the identifier it is asked with) that gave them,
    and the source words of its training.

    data: the sprite world's folder; n: scenes a figure; trained: the source words, where the checkpoint names none.
    Raises ValueError for an unknown subject.
    """
    if subject not in SUBJECTS:
        raise UserError(f"unknown subject '{subject}'; known: {', '.join(SUBJECTS)}")
    recogniser, twin = (load_recogniser(data / f"{name}.safetensors") for name in ("recogniser", "recogniser-grey"))
    photos = subjects.training_photos(data / "subjects" / subject)
    checkpoint = read_checkpoint(path)
    recipe = checkpoint.metadata.get("recipe") or {}
    trained = tuple(recipe.get("source_words") or trained)
    editor = ImageEditor.from_checkpoint(checkpoint, device="auto", precision="auto")
    edit = world.editing(editor, EditSettings.of_checkpoint(checkpoint.metadata))
    identifier = recipe.get("identifier", "")
    figures, diversity = subjects.subject_figures(edit, subject, recogniser, photos, trained, identifier, n, seed)
    figures |= subjects.kept_figures(edit, recogniser, twin, n, seed)
    return {**figures, "plain class: diversity": diversity}, (edit, identifier), trained


def plain(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return figures as JSON can hold them."""
    return {t: {k: asdict(v) if not isinstance(v, float) else v for k, v in f.items()} for t, f in results.items()}


def comparison(results: dict[str, dict[str, Any]]) -> str:
    """Return editors side by side as a Markdown table, one measure a row, with 95 % intervals."""
    titles = list(results)
    lines = [f"| measure | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in results[titles[-1]]:
        cells = [results[title].get(name, "") for title in titles]
        lines.append(f"| {name} | {' | '.join(f'{c:.3g}' if isinstance(c, float) else str(c) for c in cells)} |")
    return "\n".join(lines)
