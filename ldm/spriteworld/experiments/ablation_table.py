"""An ablation's figures as a Markdown table and as bars."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from PIL import Image, ImageDraw, ImageFont

FROZEN = "frozen editor"
Rows = dict[tuple[str, int], dict[str, list[float]]]  # (run, step) -> measure -> one value a training, seed by seed

LINE = 22  # pixels of a bar with its gap
LABEL, MARGINS = 190, 260  # pixels: of a run's name, and of that with what stands behind a bar
INK, GREY, BAR, DOT = (20, 20, 20), (60, 60, 60), (150, 180, 220), (30, 60, 120)


def table(rows: Rows, measures: Sequence[str], subjects: Sequence[str], seeds: Sequence[int], measured_by: str) -> str:
    """Return mean and spread (standard deviation over subjects and seeds) of every run and step as Markdown.

    measures: the columns. subjects, seeds: those whose figures are in ``rows``. measured_by: on what, for the line
    above the table.
    """
    head = [
        f"Subjects: {', '.join(subjects)}; seeds: {', '.join(map(str, seeds))}. Mean ± standard deviation over "
        f"{len(subjects) * len(seeds)} trainings a row, {measured_by}.",
        "",
    ]
    lines = [f"| run | steps | {' | '.join(measures)} |", "|---" * (len(measures) + 2) + "|"]
    for (name, step), figures in rows.items():
        cells = [_spread(figures[measure]) for measure in measures]
        lines.append(f"| {name} | {step or ''} | {' | '.join(cells)} |")
    if len(subjects) > 1:
        lines += ["", "By subject, over the seeds:", ""]
        lines += [f"| run | steps | subject | {' | '.join(measures)} |", "|---" * (len(measures) + 3) + "|"]
        for (name, step), figures in rows.items():
            for i, subject in enumerate(subjects):  # the figures of every seed are in the subjects' order
                cells = [_spread(figures[measure][i :: len(subjects)]) for measure in measures]
                lines.append(f"| {name} | {step or ''} | {subject} | {' | '.join(cells)} |")
    return "\n".join(head + lines)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3g} ± {stdev(values):.2g}" if len(values) > 1 else f"{values[0]:.3g}"


def plot(rows: Rows, measures: Sequence[str], last: int, width: int = 560) -> Image.Image:
    """Return bars of every measure for the frozen editor and every run at its last step, the trainings as dots.

    last: that step. width: pixels of one measure's bars; two stand side by side.
    """
    shown = {name: figures for (name, step), figures in rows.items() if step in (0, last)}
    height = (len(shown) + 2) * LINE
    picture = Image.new("RGB", (2 * width, -(-len(measures) // 2) * height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for k, measure in enumerate(measures):
        values = {name: figures[measure] for name, figures in shown.items()}
        pen.text(((k % 2) * width + 10, (k // 2) * height + 6), measure, INK, font)
        _bars(pen, font, values, (k % 2) * width + 10, (k // 2) * height + 6 + LINE, width - MARGINS)
    return picture


def _bars(
    pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont, values: dict[str, list[float]], left: int, top: int, full: int
) -> None:
    """Draw a bar for each name, with its values as dots. left, top: pixels; full: the longest bar's."""
    most = max(max(v) for v in values.values()) or 1.0
    zero = left + LABEL
    for i, (name, figures) in enumerate(values.items()):
        y = top + i * LINE
        pen.text((left, y), name, GREY, font)
        pen.rectangle((zero, y + 2, zero + full * mean(figures) / most, y + LINE - 6), BAR)
        for value in figures:
            x = zero + full * value / most
            pen.ellipse((x - 2, y + 6, x + 2, y + 10), DOT)
        pen.text((zero + full + 6, y), f"{mean(figures):.3g}", INK, font)
