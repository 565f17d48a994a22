"""The report of an evaluation: one HTML file that needs nothing else, with tables, plots and sheets inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldm.evaluation.measures import Measure
from ldm.evaluation.results import Results
from ldm.evaluation.statistics import ENOUGH, Interval
from ldm.files import replacing

SHEET_ROWS = 6  # pictures of a case that its sheet shows
STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #d8dde6; --paper: #fff; --best: #e6f4ea;
  --mark: #2f6fde; --bound: #98a2b3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #333b49; --paper: #14181f;
  --best: #1d3a2a; --mark: #7aa7ff; --bound: #5d6778; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem; }
p, li { max-width: 75ch; } .soft { color: var(--soft); }
.wide { overflow-x: auto; margin: .5rem 0 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; position: sticky; left: 0;
  background: var(--paper); }
thead th { font-weight: 600; vertical-align: bottom; min-width: 5.5rem; }
td small { display: block; color: var(--soft); white-space: nowrap; }
tr.bound td { color: var(--soft); } td.best { background: var(--best); font-weight: 600; }
.text td, .text th { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; } figure { margin: 0 0 1.6rem; }
figure img { max-width: 100%; height: auto; border: 1px solid var(--line); background: #fff; }
figcaption dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .3rem 0 .6rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.hole { border: 1px dashed var(--bound); padding: .6rem 1rem; color: var(--soft); overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; }
"""


def write_report(results: Results, path: Path, bounds: Sequence[str]) -> None:
    """Write the report. bounds: the rows that are no methods."""
    summary, unshared, columns = results.summary(), results.unshared(), results.suite.columns
    parts = [
        f"<h1>{escape(results.suite.name)}</h1>",
        f"<p>{escape(results.suite.about)}</p>" if results.suite.about else "",
        f'<p class="soft">{_counts(results)} Means with 95 % bootstrap intervals over pictures (all seeds of one '
        "picture are one draw); the methods of a column are averaged over the same n pictures, those that all methods "
        f"with that measure have. Of fewer than {ENOUGH} different inputs no interval is given. The grey rows are "
        "bounds, not methods; the best method of a column is marked where its interval does not touch any other "
        "one's.</p>",
        *(
            f"<h2>{escape(group[:1].upper() + group[1:])}</h2>"
            + _table(rows, columns, bounds, unshared.get(group, ()))
            + (_plots(rows, columns, bounds) if group == "all edits" else "")
            for group, rows in summary.items()
        ),
        "<h2>Pictures</h2>",
        *(_case(results, case) for case in results.suite.cases),
        "<h2>What was compared</h2>",
        _methods(results.methods),
        "<h2>What the measures say</h2>",
        _measures(results, summary),
        f'<p class="soft">{escape(", ".join(f"{k} {v}" for k, v in results.versions.items()))}; seeds '
        f"{escape(', '.join(map(str, results.suite.seeds)))}.</p>",
    ]
    title = f"Evaluation: {escape(results.suite.name)}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}</style></head><body>'
        + "\n".join(part for part in parts if part)
        + "</body></html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _counts(results: Results) -> str:
    made = sum(1 for r in results.records if r.file)
    holes = len(results.suite.holes)
    text = f"{len(results.suite.cases) - holes} cases, {made} pictures."
    return text + (f" {holes} cases could not be run: their pictures are missing (see below)." if holes else "")


def best_of(
    rows: dict[str, dict[str, Interval]], measure: str, bounds: Sequence[str], better: str = "high"
) -> str | None:
    """Return the method that is clearly best by a measure (its interval apart from all others'), or None. bounds: rows
    that are no methods; better: as in ``Measure``."""
    intervals = {name: values[measure] for name, values in rows.items() if measure in values and name not in bounds}
    if len(intervals) < 2 or not all(v.known for v in intervals.values()):
        return None

    def span(v: Interval) -> tuple[float, float]:
        """Low and high of what is to be small."""
        if better == "high":
            return -v.high, -v.low
        if better == "low":
            return v.low, v.high
        ends = (abs(v.low - 1), abs(v.high - 1))
        return (0.0 if v.low <= 1 <= v.high else min(ends)), max(ends)

    first, *others = sorted(intervals, key=lambda name: sum(span(intervals[name])))
    return first if span(intervals[first])[1] < min(span(intervals[name])[0] for name in others) else None


def _table(
    rows: dict[str, dict[str, Interval]],
    columns: Mapping[str, Measure],
    bounds: Sequence[str],
    unshared: Sequence[str] = (),
) -> str:
    measures = [m for m in columns if any(m in values for values in rows.values())]
    arrows = {"high": "↑", "low": "↓", "one": "→ 1"}
    head = "".join(f"<th>{escape(m)} {arrows[columns[m].better]}</th>" for m in measures)
    best = {m: None if m in unshared else best_of(rows, m, bounds, columns[m].better) for m in measures}
    body = ""
    for name, values in rows.items():
        cells = "".join(_cell(values.get(m), columns[m], best[m] == name) for m in measures)
        kind = ' class="bound"' if name in bounds else ""
        body += f"<tr{kind}><td>{escape(_title(name))}</td>{cells}</tr>"
    table = f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    if not unshared:
        return table
    return (
        f'{table}<p class="soft">Over different pictures, each method over its own: {escape(", ".join(unshared))}.</p>'
    )


def _cell(value: Interval | None, measure: Measure, best: bool) -> str:
    if value is None:
        return "<td>–</td>"
    d = measure.digits
    mark = ' class="best"' if best else ""
    span = f"<small>{value.low:.{d}f} to {value.high:.{d}f}</small>" if value.known else ""
    of = "" if value.draws in (None, value.n) else f" ({value.draws} independent)"
    return f"<td{mark}>{value.mean:.{d}f}{span}<small>n = {value.n}{of}</small></td>"


def _title(name: str) -> str:
    return {"dreambooth": "DreamBooth", "instruct_pix2pix": "InstructPix2Pix", "instruct2dream": "Instruct2Dream"}.get(
        name, name
    )


def _plots(rows: dict[str, dict[str, Interval]], columns: Mapping[str, Measure], bounds: Sequence[str]) -> str:
    measures = [m for m in columns if sum(m in values for values in rows.values()) > 1]
    return f'<div class="plots">{"".join(_plot(rows, m, bounds) for m in measures)}</div>'


def _plot(rows: dict[str, dict[str, Interval]], measure: str, bounds: Sequence[str]) -> str:
    """One measure: a dot and its interval for every method, as SVG."""
    intervals = {name: values[measure] for name, values in rows.items() if measure in values}
    spans = [(v.low, v.high) if v.known else (v.mean, v.mean) for v in intervals.values()]
    low, high = min(0.0, *(s[0] for s in spans)), max(s[1] for s in spans)
    if "(dB)" in measure:
        low = min(s[0] for s in spans) - 1
    span = (high - low) or 1.0
    left, width, line = 120, 330, 22
    height = 26 + line * len(intervals) + 18

    def x(value: float) -> float:
        return left + (value - low) / span * (width - left - 14)

    marks = [f'<text x="0" y="14" font-weight="600" fill="currentColor">{escape(measure)}</text>']
    for i, (name, v) in enumerate(intervals.items()):
        y = 34 + i * line
        colour = "var(--bound)" if name in bounds else "var(--mark)"
        marks.append(f'<text x="0" y="{y + 4}" fill="currentColor">{escape(_title(name))}</text>')
        if v.known:
            marks.append(f'<line x1="{x(v.low):.1f}" x2="{x(v.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
                         f'stroke-width="3" stroke-linecap="round"/>')  # fmt: skip
        marks.append(f'<circle cx="{x(v.mean):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    y = height - 4
    for value, anchor in ((low, "start"), (high, "end"))[: 2 if high > low else 1]:
        marks.append(f'<text x="{x(value):.1f}" y="{y}" text-anchor="{anchor}" fill="var(--soft)">{value:.3g}</text>')
    return f'<svg viewBox="0 0 {width} {height}" font-size="12" role="img">{"".join(marks)}</svg>'


def _case(results: Results, case: Any) -> str:
    about = f"{case.kind}, {case.reach} edit, {case.subject.name}"
    head = f"<h3>{escape(case.name)} <span class='soft'>({escape(about)})</span></h3>"
    if case.hole:
        return f'{head}<p class="hole">Not run: {escape(case.hole)}.</p>'
    for note in case.left_out:
        head += f'<p class="soft">{escape(note)}.</p>'
    prompts: dict[str, str] = {}
    for record in results.records:
        if record.case == case.name and record.prompt:
            prompts.setdefault(record.method, record.prompt)
    shown = max((r.index for r in results.records if r.case == case.name), default=0) + 1
    if shown > SHEET_ROWS:
        head += f'<p class="soft">The first {SHEET_ROWS} of {shown} pictures.</p>'
    several = {r.method for r in results.records if r.case == case.name and r.prompt not in ("", prompts.get(r.method))}
    more = {m: " <span class='soft'>(the first picture)</span>" if m in several else "" for m in prompts}
    words = "".join(f"<dt>{escape(_title(m))}</dt><dd>“{escape(p)}”{more[m]}</dd>" for m, p in prompts.items())
    missing = [m for m in dict.fromkeys(m["method"] for m in results.methods) if m not in prompts]
    why = {m: "has no weights for this subject here" if m in case.prompts else "has no prompt here" for m in missing}
    words += "".join(f"<dt>{escape(_title(m))}</dt><dd>{why[m]}</dd>" for m in missing)
    data = base64.b64encode(results.sheets[case.name].read_bytes()).decode()
    picture = f'<img alt="{escape(case.name)}" src="data:image/png;base64,{data}">'
    return f"<figure>{head}<figcaption><dl>{words}</dl></figcaption>{picture}</figure>"


def _methods(methods: list[dict[str, Any]]) -> str:
    rows = ""
    for m in methods:
        recipe = ", ".join(f"{k} {v}" for k, v in m["recipe"].items()) or "–"
        settings = json.dumps(m["settings"], ensure_ascii=False)
        rows += (
            f"<tr><td>{escape(_title(m['method']))}</td><td>{escape(m['subject'])}</td><td><code>{escape(m['weights'])}"
            f"</code><small>{escape(m['hash'])}</small></td><td>{escape(str(m['step'] or '–'))}</td><td>"
            f"{escape(recipe)}</td><td><code>{escape(settings)}</code></td></tr>"
        )
    head = "<tr><th>method</th><th>subject</th><th>weights</th><th>step</th><th>recipe</th><th>settings</th></tr>"
    return f'<div class="wide text"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _measures(results: Results, summary: dict) -> str:
    shown = {m for rows in summary.values() for values in rows.values() for m in values}
    items = "".join(
        f"<li><b>{escape(name)}</b>: {escape(measure.about)}.</li>"
        for name, measure in results.suite.columns.items()
        if name in shown
    )
    for key, about in results.backbones.items():
        items += f"<li>{escape(key)}: <code>{escape(about['weights'])}</code>; {escape(about['preprocessing'])}.</li>"
    for key, why in results.absent.items():
        items += f"<li>Left out: {escape(key)} ({escape(why)}).</li>"
    return f"<ul>{items}</ul>"
