"""Two evaluations of one suite against each other, picture by picture."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ldm.errors import MissingFileError, UserError
from ldm.evaluation.measures import MEASURES, Measure
from ldm.evaluation.results import Record, draws_of
from ldm.evaluation.statistics import bootstrap
from ldm.files import read_json
from ldm.typed import settings


def read_results(path: Path) -> dict[str, Any]:
    """Return what an evaluation's folder (or its ``results.json``) holds. Raises UserError."""
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise MissingFileError(f"'{path}' has no results.json; give a folder that evaluate.py made")
    content = read_json(file)
    if not isinstance(content, dict) or "suite" not in content or not _are_records(content.get("records")):
        raise UserError(f"'{file}' is no result of evaluate.py")
    return content


def _are_records(records: Any) -> bool:
    """Whether this is a list of pictures' figures as ``evaluate`` writes them."""
    return isinstance(records, list) and all(
        isinstance(r, dict)
        and all(isinstance(r.get(name), str) for name in ("method", "subject", "case"))
        and all(isinstance(r.get(name), int) for name in ("index", "seed"))
        and isinstance(r.get("measures"), dict)
        and all(isinstance(value, (int, float)) for value in r["measures"].values())
        for r in records
    )


def columns_of(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Measure]:
    """Return what is to be known of every measure of two results, in the order of their tables.

    What a file says of its measures (digits, pairs, backbone) counts; an older one says nothing: then what the project
    says of the field's measures, and ``Measure``'s defaults of any other. Raises UserError for what cannot be meant.
    """
    said = {**_said(second), **_said(first)}
    found = dict.fromkeys(name for of in (first, second) for record in of["records"] for name in record["measures"])
    order = dict.fromkeys([*_said(first), *said, *MEASURES, *found])
    return {name: said.get(name) or MEASURES.get(name) or Measure(name) for name in order}


def _said(content: dict[str, Any]) -> dict[str, Measure]:
    """What a result's file says of its measures. Raises UserError for what cannot be meant."""
    kept = ("digits", "pairs", "backbone")
    measures = content.get("measures") or {}
    try:
        return {
            name: settings(Measure, {"about": name, **{k: node[k] for k in kept if k in node}}, name)
            for name, node in measures.items()
        }
    except (AttributeError, TypeError, UserError) as error:
        raise UserError(f"what results.json says of its measures cannot be read ({error})") from error


def compare(a: Path, b: Path) -> str:
    """Return a Markdown table of B minus A for every method and measure: the mean difference over the pictures that
    both have (same case, input picture and seed), with its paired 95 % bootstrap interval; a star where it excludes
    zero (all seeds of one picture are one draw of it; of fewer than ``ENOUGH`` inputs there is no interval). Below it
    stand the weights of both, the measures left out because their backbones differ, and whatever else the two were not
    made alike in.

    Results from before the inputs were noted pair by case and number, with each other only. Raises UserError for
    different suites or no picture in common.
    """
    first, second = read_results(a), read_results(b)
    if first["suite"] != second["suite"]:
        raise UserError(f"'{a}' is of suite {first['suite']}, '{b}' of {second['suite']}: they cannot be compared")
    left, right = (_by_picture(content) for content in (first, second))
    columns = columns_of(first, second)
    unlike = _unlike_backbones(first, second, columns)
    rows = [
        row
        for method in dict.fromkeys(key[0] for key in left)
        for name, measure in columns.items()
        if measure.backbone not in unlike and (row := _row(method, name, measure, left, right))
    ]
    if not rows:
        older = [str(path) for path, keys in ((a, left), (b, right)) if all(key[-1] is None for key in keys)]
        why = f": '{older[0]}' does not say which inputs it had; evaluate it again" if len(older) == 1 else ""
        raise UserError(f"'{a}' and '{b}' have no picture and measure in common{why}")
    lines = ["| method | measure | A | B | B - A | pictures |", "|---|---|---|---|---|---|", *rows]
    notes = [f"- {title}: {line}" for title, content in (("A", first), ("B", second)) for line in _weights(content)]
    notes += [f"- left out: {line}" for line in unlike.values()]
    notes += [f"- not known: {line}" for line in _unknown(first, second, columns)]
    notes += [f"- not alike: {line}" for line in _differences(first, second)]
    return "\n".join([*lines, "", *notes])


def _unknown(first: dict[str, Any], second: dict[str, Any], columns: dict[str, Measure]) -> list[str]:
    """Return what to say of measures that neither file nor the project knows anything of, none if there are none."""
    known = {*MEASURES, *_said(first), *_said(second)}
    names = [name for name in columns if name not in known]
    if not names:
        return []
    return [
        f"whether {', '.join(names)} compare pictures with each other: neither file says it; if so, their intervals "
        "should be twice as wide"
    ]


Pictures = dict[tuple, Record]  # by (method, subject, case, index, seed, input)


def _row(method: str, name: str, measure: Measure, left: Pictures, right: Pictures) -> str:
    """Return one method's line for one measure, "" if no picture has it in both."""
    mine = {key: record for key, record in left.items() if key[0] == method and name in record.measures}
    keys = [key for key in mine if key in right and name in right[key].measures]
    if not keys:
        return ""
    x, y = (torch.tensor([of[key].measures[name] for key in keys], dtype=torch.float64) for of in (left, right))
    clusters = draws_of([left[key] for key in keys])
    change, d = bootstrap(y - x, clusters=clusters, pairs=measure.pairs), measure.digits
    star = " *" if change.low > 0 or change.high < 0 else ""
    span = f" [{change.low:+.{d}f}, {change.high:+.{d}f}]{star}" if change.known else ""
    return f"| {method} | {name} | {x.mean():.{d}f} | {y.mean():.{d}f} | {change.mean:+.{d}f}{span} | {len(keys)} |"


def _by_picture(content: dict[str, Any]) -> Pictures:
    fixed = ("method", "subject", "case", "index", "seed")
    known = {f.name for f in fields(Record)}
    empty = dict.fromkeys(known, "")  # an older file does not say everything
    pictures = {}
    for row in content["records"]:
        record = Record(**{**empty, **{name: value for name, value in row.items() if name in known}})
        pictures[(*(row[name] for name in fixed), row.get("input"))] = record
    return pictures


def _unlike_backbones(first: dict[str, Any], second: dict[str, Any], columns: dict[str, Measure]) -> dict[str, str]:
    """Return the backbones that both results have but that are not the same, with what to say of them."""
    unlike = {}
    for key, ours in (first.get("backbones") or {}).items():
        theirs = (second.get("backbones") or {}).get(key, ours)
        marks = [about.get("hash") for about in (ours, theirs)]
        if marks[0] != marks[1] if all(marks) else ours != theirs:
            names = ", ".join(name for name, measure in columns.items() if measure.backbone == key)
            said = " and ".join(f"'{about.get('weights')}' ({about.get('preprocessing')})" for about in (ours, theirs))
            unlike[key] = f"{names}, measured by {said}"
    return unlike


def _differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return what besides weights and backbones is not the same in both: how they were made, settings, prompts."""
    differences = []
    ours, theirs = (content.get("made with") or {} for content in (first, second))
    for key in sorted(set(ours) & set(theirs)):
        if ours[key] != theirs[key]:
            short = not isinstance(ours[key], (dict, list))
            differences.append(f"{key}" + (f" ({ours[key]} and {theirs[key]})" if short else ""))
    settings = [
        {(m.get("method"), m.get("subject")): m.get("settings") or {} for m in content.get("methods") or []}
        for content in (first, second)
    ]
    for key in settings[0]:
        a, b = settings[0][key], settings[1].get(key, settings[0][key])
        unlike = [f"{name} {a.get(name)} and {b.get(name)}" for name in {**a, **b} if a.get(name) != b.get(name)]
        if unlike:
            differences.append(f"settings of {key[0]} ({', '.join(unlike)})")
    prompts = [
        {(r["method"], r["case"], r["index"], r["seed"]): r.get("prompt") for r in content["records"]}
        for content in (first, second)
    ]
    others = [key for key, text in prompts[0].items() if prompts[1].get(key, text) != text]
    return differences + [
        f"prompts of {method} in {n} pictures"
        for method in dict.fromkeys(key[0] for key in others)
        if (n := sum(key[0] == method for key in others))
    ]


def _weights(content: dict[str, Any]) -> list[str]:
    keys = ("method", "subject", "weights", "hash")
    return ["{} ({}): {}, {}".format(*(m.get(key) for key in keys)) for m in content.get("methods") or []]
