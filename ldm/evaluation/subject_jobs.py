"""What ``scripts/spriteworld.py subject`` does: an editor before and after it was taught one subject."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.checkpoint import read_checkpoint
from ldm.data.images import save_image
from ldm.evaluation import spriteworld as world
from ldm.evaluation import subject as subjects
from ldm.inference.editor import EditSettings, ImageEditor
from ldm.runs import kept_weights
from ldm.spriteworld.recogniser import load_recogniser
from ldm.spriteworld.scene import SUBJECTS


def compare_subject(
    frozen: Path, run: Path, subject: str, data: Path, n: int, seed: int, output: Path | None = None
) -> str:
    """Return a Markdown table of the frozen editor and every kept step of a run; write it, the figures and a sheet of
    results to ``output`` (default: the run's folder).

    subject: whose photos the run learned from. Raises ValueError for an unknown subject.
    """
    if subject not in SUBJECTS:
        raise ValueError(f"unknown subject '{subject}'; known: {', '.join(SUBJECTS)}")
    output = run if output is None else output
    recogniser, twin = (load_recogniser(data / f"{name}.safetensors") for name in ("recogniser", "recogniser-grey"))
    photos = subjects.training_photos(data / "subjects" / subject)
    files = {"frozen": frozen, **{path.stem.replace("=", " "): path for path in kept_weights(run)}}
    found: dict[str, dict[str, Any]] = {}
    edits: dict[str, Any] = {}
    trained: tuple[str, ...] = ("wolf",)
    for title, path in files.items():
        checkpoint = read_checkpoint(path)
        recipe = checkpoint.metadata.get("recipe") or {}
        trained = tuple(recipe.get("source_words") or trained)
        editor = ImageEditor.from_checkpoint(checkpoint, device="auto", precision="auto")
        edit = world.editing(editor, EditSettings.of_checkpoint(checkpoint.metadata))
        identifier = recipe.get("identifier", "")
        figures, diversity = subjects.subject_figures(edit, subject, recogniser, photos, trained, identifier, n, seed)
        figures |= subjects.kept_figures(edit, recogniser, twin, n, seed)
        found[title] = {**figures, "plain class: diversity": diversity}
        edits[title] = (edit, identifier)
    sources = [*trained, *subjects.unseen_sources(subject, trained)[:2]]
    sheet = subjects.results_sheet(edits, subject, sources)
    output.mkdir(parents=True, exist_ok=True)
    save_image(sheet, output / "results.png")
    text = comparison(found)
    (output / "results.md").write_text(text + "\n", encoding="utf-8")
    plain = {t: {k: asdict(v) if not isinstance(v, float) else v for k, v in f.items()} for t, f in found.items()}
    (output / "results.json").write_text(json.dumps(plain, indent=2), encoding="utf-8")
    return text


def comparison(found: dict[str, dict[str, Any]]) -> str:
    """Return editors side by side as a Markdown table, one measure a row, with 95 % intervals."""
    titles = list(found)
    lines = [f"| measure | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in found[titles[-1]]:
        cells = [found[title].get(name, "") for title in titles]
        lines.append(f"| {name} | {' | '.join(f'{c:.3g}' if isinstance(c, float) else str(c) for c in cells)} |")
    return "\n".join(lines)
