"""One ``metrics.csv`` for a run, however often it was stopped: Lightning's logger begins an empty one at each start."""

from __future__ import annotations

import csv
from pathlib import Path

from ldm.files import replacing

NAME = "metrics.csv"


def keep_earlier_part(folder: Path) -> None:
    """Put the rows of the run's earlier part out of the new logger's way."""
    path = folder / NAME
    if path.is_file():
        path.rename(folder / f"part-{len(_parts(folder)):04d}.csv")


def merge(folder: Path) -> None:
    """Make one file of all parts. Of steps that were done again after a resume the later rows count.

    What was logged after step N, like a validation, has the number of the first batch after it. Such a row stays where
    a resumed run begins with that batch, unless the run logged the same columns again.
    """
    parts = [*_parts(folder), *([folder / NAME] if (folder / NAME).is_file() else [])]
    if len(parts) < 2:
        return
    rows: list[dict[str, str]] = []
    for path in parts:
        with open(path, newline="") as file:
            part = list(csv.DictReader(file))
        first = min((int(row["step"]) for row in part), default=None)
        if first is not None:
            rows = [row for row in rows if int(row["step"]) < first or _is_kept(row, first, part)] + part
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(folder / NAME) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    for path in _parts(folder):
        path.unlink()


def _is_kept(row: dict[str, str], first: int, later: list[dict[str, str]]) -> bool:
    """Whether an earlier row says something of step ``first`` that the later part, which begins there, does not."""
    again = {name for other in later if int(other["step"]) == first for name in _filled(other)}
    return int(row["step"]) == first and not _filled(row) & again


def _filled(row: dict[str, str]) -> set[str]:
    return {name for name, value in row.items() if value not in ("", None)} - {"step", "epoch"}


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.csv"))
