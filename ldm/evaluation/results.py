"""What an evaluation found: a record a picture, means with intervals over groups of cases, and the files of them."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm.evaluation.sources import PRIOR
from ldm.evaluation.statistics import Interval, bootstrap
from ldm.evaluation.suites import TEXT_METHODS, Suite
from ldm.files import replacing, write_json

INPUT, TRUTH, PHOTOS = "input copied", "exact answer", "real photos"
BOUNDS = (INPUT, TRUTH, PHOTOS)
NOTED = ("digits", "pairs", "backbone")  # what ``compare`` must know of a measure
PRIOR_GROUP = "prior (the plain class)"


@dataclass
class Record:
    """One picture's figures. input: the fingerprint of the case's picture, also where a method does not see it."""

    case: str
    kind: str
    reach: str
    subject: str
    method: str
    index: int
    seed: int
    prompt: str
    input: str
    file: str
    measures: dict[str, float] = field(default_factory=dict)


@dataclass
class Results:
    """Everything that a report shows."""

    suite: Suite
    methods: list[dict[str, Any]]
    records: list[Record]
    sheets: dict[str, Path]
    backbones: dict[str, dict[str, str]]
    absent: dict[str, str]
    versions: dict[str, str]
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[str]:
        """The methods that made pictures, then the bounds."""
        names = list(dict.fromkeys(r.method for r in self.records))
        return [n for n in names if n not in BOUNDS] + [n for n in BOUNDS if n in names]

    def groups(self) -> dict[str, list[str]]:
        """The kinds over which a table is made: group -> the case names in it."""
        cases = [case for case in self.suite.cases if not case.hole]
        edits = [case for case in cases if case.kind != PRIOR]
        groups = {"all edits": [case.name for case in edits]}
        for reach in ("global", "local"):
            groups[f"{reach} edits"] = [case.name for case in edits if case.reach == reach]
        for case in edits:
            groups.setdefault(case.kind, []).append(case.name)
        groups[PRIOR_GROUP] = [case.name for case in cases if case.kind == PRIOR]
        return {name: names for name, names in groups.items() if names}

    def summary(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """Return group -> method -> measure -> mean with its 95 % interval.

        All methods are averaged over the same pictures (case, number and seed): those that every method that has the
        measure has it for, or each over its own if there are none (see ``unshared``). Seeds of one picture are one draw
        of the bootstrap, and so is what is made from text alone twice, by the same words and seed.
        """
        table: dict[str, dict[str, dict[str, Interval]]] = {}
        subject_of = {case.name: case.subject.name for case in self.suite.cases}
        for group, names in self.groups().items():
            within = [r for r in self.records if r.case in names]
            subjects = {subject_of[name] for name in names}
            photos = [r for r in self.records if r.method == PHOTOS]
            for measure, about in self.suite.columns.items():
                photos_here = photos if about.prior == (group == PRIOR_GROUP) else []
                shared = _shared_by_methods(within, measure)
                for method in self.rows:
                    if method == PHOTOS:
                        chosen = [r for r in photos_here if r.subject in subjects and measure in r.measures]
                    else:
                        chosen = [r for r in within if r.method == method and measure in r.measures]
                        chosen = [r for r in chosen if not shared or _picture(r) in shared]
                    if chosen:
                        pairs = about.pairs or (method == PHOTOS and about.likeness)
                        clusters = draws_of(chosen)
                        values = torch.tensor([r.measures[measure] for r in chosen])
                        interval = bootstrap(values, clusters=clusters, pairs=pairs)
                        table.setdefault(group, {}).setdefault(method, {})[measure] = interval
        return {group: {name: rows[name] for name in self.rows if name in rows} for group, rows in table.items()}

    def unshared(self) -> dict[str, list[str]]:
        """Return group -> measures whose methods have no picture in common: their means are over different ones."""
        unshared: dict[str, list[str]] = {}
        for group, names in self.groups().items():
            within = [r for r in self.records if r.case in names and r.method not in BOUNDS]
            for measure in self.suite.columns:
                methods = {r.method for r in within if measure in r.measures}
                if len(methods) > 1 and not _shared_by_methods(within, measure):
                    unshared.setdefault(group, []).append(measure)
        return unshared


def draws_of(records: Sequence[Record]) -> list[tuple]:
    """Return what each picture is a draw of: pictures of one input, whatever their seed, are not independent, and from
    text alone the same words and seed give the same picture of a subject, whatever case it stands in."""
    first: dict[tuple[str, str, int], tuple] = {}
    draws = []
    for r in records:
        own = (r.case, r.subject, r.input if r.input and r.method != PHOTOS else r.index)
        again = r.method in TEXT_METHODS and r.prompt
        draws.append(first.setdefault((r.subject, r.prompt, r.seed), own) if again else own)
    return draws


def _picture(record: Record) -> tuple[str, int, int]:
    return record.case, record.index, record.seed


def _shared_by_methods(records: Sequence[Record], measure: str) -> set[tuple[str, int, int]]:
    """Return the pictures for which every method that has a measure at all has it; none if there is no such picture."""
    by_method: dict[str, set[tuple[str, int, int]]] = {}
    for record in records:
        if record.method not in BOUNDS and measure in record.measures:
            by_method.setdefault(record.method, set()).add(_picture(record))
    return set.intersection(*by_method.values()) if by_method else set()


def write_files(results: Results, output: Path) -> None:
    """Write ``results.csv`` (a row a picture) and ``results.json`` (everything but the pictures)."""
    measures = {m: about for m, about in results.suite.columns.items() if any(m in r.measures for r in results.records)}
    fixed = ["suite", *(f for f in Record.__dataclass_fields__ if f != "measures")]
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "results.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fixed, *measures])
        for record in results.records:
            plain = {"suite": results.suite.name, **asdict(record)}
            writer.writerow([*(plain[f] for f in fixed), *(record.measures.get(m, "") for m in measures)])
    summary = {
        group: {method: {m: asdict(v) for m, v in values.items()} for method, values in methods.items()}
        for group, methods in results.summary().items()
    }
    content = {
        "suite": results.suite.name,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "seeds": list(results.suite.seeds),
        "versions": results.versions,
        "made with": results.made_with,
        "methods": results.methods,
        "backbones": results.backbones,
        "measures": {name: {key: getattr(about, key) for key in NOTED} for name, about in measures.items()},
        "left out": results.absent,
        "holes": results.suite.holes,
        "summary": summary,
        "records": [asdict(record) for record in results.records],
    }
    write_json(output / "results.json", content, indent=1)


def as_markdown(results: Results, group: str = "all edits") -> str:
    """Return one group's table as Markdown: a method a row, a measure a column."""
    rows, columns = results.summary().get(group, {}), results.suite.columns
    measures = [m for m in columns if any(m in values for values in rows.values())]
    lines = [f"| {group} | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for name, values in rows.items():
        cells = [_cell(values.get(m), columns[m].digits) for m in measures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Interval | None, digits: int) -> str:
    if value is None:
        return ""
    span = f" [{value.low:.{digits}f}, {value.high:.{digits}f}]" if value.known else ""
    return f"{value.mean:.{digits}f}{span}"
