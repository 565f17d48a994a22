"""Two evaluations of one suite against each other, picture by picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ldm.evaluation.metrics import MEASURES
from ldm.spriteworld.measures import bootstrap


def read_results(path: Path) -> dict[str, Any]:
    """Return what an evaluation's folder (or its ``results.json``) holds. Raises FileNotFoundError or ValueError."""
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"'{path}' has no results.json; give a folder that evaluate.py made")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{file}' cannot be read ({error})") from error
    if not isinstance(content, dict) or "records" not in content or "suite" not in content:
        raise ValueError(f"'{file}' is no result of evaluate.py")
    return content


def compare(a: Path, b: Path) -> str:
    """Return a Markdown table of B minus A for every method and measure: the mean difference over the pictures that
    both have (same case, input picture and seed), with its paired 95 % bootstrap interval; a star where it excludes
    zero. Below it stand the weights of both, and the measures left out because their backbones differ.

    Results from before the inputs were noted pair by case and number, with each other only. Raises ValueError for
    different suites or no picture in common.
    """
    first, second = read_results(a), read_results(b)
    if first["suite"] != second["suite"]:
        raise ValueError(f"'{a}' is of suite {first['suite']}, '{b}' of {second['suite']}: they cannot be compared")
    left, right = (_by_picture(content) for content in (first, second))
    unlike = _unlike_backbones(first, second)
    lines = ["| method | measure | A | B | B - A | pictures |", "|---|---|---|---|---|---|"]
    for method in dict.fromkeys(key[0] for key in left):
        for measure, about in MEASURES.items():
            pairs = [
                (values[measure], right[key][measure])
                for key, values in left.items()
                if key[0] == method and measure in values and measure in right.get(key, {})
            ]
            if pairs and about.backbone not in unlike:
                x, y = torch.tensor(pairs, dtype=torch.float64).T
                change, d = bootstrap(y - x), about.digits
                star = " *" if change.low > 0 or change.high < 0 else ""
                lines.append(
                    f"| {method} | {measure} | {x.mean():.{d}f} | {y.mean():.{d}f} | {change.mean:+.{d}f} "
                    f"[{change.low:+.{d}f}, {change.high:+.{d}f}]{star} | {len(pairs)} |"
                )
    if len(lines) == 2:
        older = [str(path) for path, keys in ((a, left), (b, right)) if all(key[-1] is None for key in keys)]
        why = f": '{older[0]}' does not say which inputs it had; evaluate it again" if len(older) == 1 else ""
        raise ValueError(f"'{a}' and '{b}' have no picture and measure in common{why}")
    notes = [f"- {title}: {line}" for title, content in (("A", first), ("B", second)) for line in _weights(content)]
    notes += [f"- left out: {line}" for line in unlike.values()]
    return "\n".join([*lines, "", *notes])


def _by_picture(content: dict[str, Any]) -> dict[tuple, dict[str, float]]:
    fixed = ("method", "subject", "case", "index", "seed")
    return {(*(r[name] for name in fixed), r.get("input")): r["measures"] for r in content["records"]}


def _unlike_backbones(first: dict[str, Any], second: dict[str, Any]) -> dict[str, str]:
    """Return the backbones that both results have but that are not the same, with what to say of them."""
    found = {}
    for key, ours in (first.get("backbones") or {}).items():
        theirs = (second.get("backbones") or {}).get(key, ours)
        if ours != theirs:
            names = ", ".join(name for name, about in MEASURES.items() if about.backbone == key)
            said = " and ".join(f"'{about.get('weights')}' ({about.get('preprocessing')})" for about in (ours, theirs))
            found[key] = f"{names}, measured by {said}"
    return found


def _weights(content: dict[str, Any]) -> list[str]:
    keys = ("method", "subject", "weights", "hash")
    return ["{} ({}): {}, {}".format(*(m.get(key) for key in keys)) for m in content.get("methods") or []]
