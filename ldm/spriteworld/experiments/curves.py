"""Loss curves of runs as one picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.errors import MissingFileError, UserError

INK, GRID, LINE = (40, 40, 40), (225, 225, 225), (36, 92, 160)


def losses(run: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    """Return (step, value) of a run's ``metrics.csv``. Raises FileNotFoundError without one."""
    path = run / "metrics" / "metrics.csv"
    if not path.is_file():
        raise MissingFileError(f"run '{run}' has no metrics/metrics.csv")
    with open(path, newline="") as file:
        rows = [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    return [(step, value) for step, value in rows if math.isfinite(value) and value > 0]


def smoothed(points: Sequence[tuple[int, float]], span: int = 10) -> list[tuple[int, float]]:
    """Return the running mean over ``span`` points."""
    means = []
    for i, (step, _) in enumerate(points):
        values = [value for _, value in points[max(0, i - span + 1) : i + 1]]
        means.append((step, sum(values) / len(values)))
    return means


def curves(runs: Sequence[Path], width: int = 420, height: int = 260) -> Image.Image:
    """Return a panel for each run: its smoothed training loss over the steps, on a logarithmic scale.

    Raises ValueError for no runs, or one without losses.
    """
    if not runs:
        raise UserError("no runs to draw curves of")
    font = ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (width * len(runs), height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, run in enumerate(runs):
        points = smoothed(losses(run))
        if len(points) < 2:
            raise UserError(f"run '{run}' has no losses yet")
        left, top, right, bottom = k * width + 56, 30, (k + 1) * width - 14, height - 34
        low, high = (math.log10(f(v for _, v in points)) for f in (min, max))
        low, high = low - 0.02, max(high, low + 0.1)
        last = points[-1][0]
        for i in range(5):
            y = bottom - (bottom - top) * i / 4
            pen.line((left, y, right, y), GRID)
            pen.text((left - 6, y), f"{10 ** (low + (high - low) * i / 4):.3g}", INK, font, anchor="rm")
        line = [
            (
                left + (right - left) * step / max(1, last),
                bottom - (bottom - top) * (math.log10(value) - low) / (high - low),
            )
            for step, value in points
        ]
        pen.line(line, LINE, 2)
        pen.text((left, 8), f"{run.name.partition('_')[2]}: training loss", INK, font)
        pen.text((right, bottom + 8), f"step {last}", INK, font, anchor="ra")
    return sheet
