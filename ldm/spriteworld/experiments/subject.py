"""What ``scripts/spriteworld.py subject`` does: an editor before and after it was taught one subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.runs import kept_weights
from ldm.errors import UserError
from ldm.evaluation.tables import Provenance, write_table
from ldm.files import write_json
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.spriteworld.judging import editor as judging
from ldm.spriteworld.judging import subject as subjects
from ldm.spriteworld.judging.recogniser import load_judges
from ldm.spriteworld.world.scene import SUBJECTS


@dataclass(frozen=True)
class Measured:
    """What a checkpoint knows of a subject.

    figures: by name, most of them intervals. edit: the editing function that gave them. identifier: the word that it is
    asked with for the subject, "" of a frozen editor. sources: the source words of its training.
    """

    figures: dict[str, Any]
    edit: Callable
    identifier: str
    sources: tuple[str, ...]


def compare_subject(
    frozen: Path | None,
    run: Path,
    subject: str,
    data: Path,
    n: int,
    seed: int,
    output: Path | None = None,
    command: str = "",
) -> str:
    """Return a Markdown table of the frozen editor and every kept step of a run; write it with a sheet of results.

    frozen: the editor's file, None to leave it out. subject: whose photos the run learned from. data: the sprite
    world's folder. n: scenes a figure. output: FILE.md, or a folder for ``results.md`` and the figures as
    ``results.json`` (default: the run's). command: the command line, for the file's head. Raises UserError for an
    unknown subject.
    """
    output = run if output is None else output
    files = {path.stem.replace("=", " "): path for path in kept_weights(run)}
    files = {"frozen": frozen, **files} if frozen else files
    made_by = Provenance.of(list(files.values()), command)
    measured: dict[str, Measured] = {}
    sources: tuple[str, ...] = ("wolf",)
    for title, path in files.items():
        measured[title] = measure_subject(path, subject, data, n, seed, sources)
        sources = measured[title].sources
    edits = {title: (result.edit, result.identifier) for title, result in measured.items()}
    sheet = subjects.results_sheet(edits, subject, [*sources, *subjects.unseen_sources(subject, sources)[:2]])
    figures = {title: result.figures for title, result in measured.items()}
    text = comparison(figures)
    table = output if output.suffix == ".md" else output / "results.md"
    shows = f"Columns: input, {', '.join(measured)}, the exact answer"
    title = f"An editor before and after it learned {subject.capitalize()}, {n} fresh scenes a figure"
    write_table(table, title, text, made_by, sheet, shows)
    if table != output:
        write_json(output / "results.json", {name: plain(values) for name, values in figures.items()})
    return text


def measure_subject(
    path: Path, subject: str, data: Path, n: int, seed: int, sources: tuple[str, ...] = ("wolf",)
) -> Measured:
    """Return a checkpoint's figures about a subject.

    data: the sprite world's folder. n: scenes a figure. sources: the source words, where the checkpoint names none.
    Raises UserError for an unknown subject.
    """
    if subject not in SUBJECTS:
        raise UserError(f"unknown subject '{subject}'; known: {', '.join(SUBJECTS)}")
    recogniser, twin = load_judges(data)
    photos = subjects.training_photos(data / "subjects" / subject)
    checkpoint = read_checkpoint(path)
    recipe = checkpoint.metadata.get("recipe") or {}
    sources = tuple(recipe.get("source_words") or sources)
    editor = ImageEditor.from_checkpoint(checkpoint, device="auto", precision="auto")
    edit = judging.editing(editor, EditSettings.of_checkpoint(checkpoint.metadata))
    identifier = recipe.get("identifier", "")
    figures, diversity = subjects.subject_figures(edit, subject, recogniser, photos, sources, identifier, n, seed)
    figures |= subjects.kept_figures(edit, recogniser, twin, n, seed)
    return Measured({**figures, "plain class: diversity": diversity}, edit, identifier, sources)


def plain(figures: dict[str, Any]) -> dict[str, Any]:
    """Return figures as JSON can hold them."""
    return {name: value if isinstance(value, float) else asdict(value) for name, value in figures.items()}


def comparison(results: dict[str, dict[str, Any]]) -> str:
    """Return editors side by side as a Markdown table, one measure a row, with 95 % intervals."""
    titles = list(results)
    lines = [f"| measure | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in results[titles[-1]]:
        cells = [results[title].get(name, "") for title in titles]
        lines.append(f"| {name} | {' | '.join(f'{c:.3g}' if isinstance(c, float) else str(c) for c in cells)} |")
    return "\n".join(lines)
