"""Run a suite: every method's pictures, every measure, the bounds beside them, and the files that tell of it."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from ldm.checkpoint import replacing
from ldm.data.images import open_rgb, resize, save_image, to_images, to_tensor
from ldm.evaluation import metrics
from ldm.evaluation.drawn import DrawnCase, draw_case, exact_measures, words_of
from ldm.evaluation.methods import Method, Wanted, make_pictures, read_pictures
from ldm.evaluation.report import SHEET_ROWS, write_report
from ldm.evaluation.suites import TEXT_METHODS, Case, Subject, Suite, photos_of, prompt_of
from ldm.inference.features import weights_hash
from ldm.inference.sheets import contact_sheet
from ldm.models.build import choose_device, choose_precision
from ldm.spriteworld.measures import Interval, bootstrap
from ldm.spriteworld.recogniser import Recogniser

logger = logging.getLogger(__name__)

INPUT, TRUTH, PHOTOS = "input copied", "exact answer", "real photos"
BOUNDS = (INPUT, TRUTH, PHOTOS)
PACKAGES = ("torch", "transformers", "pillow", "numpy", "kornia")


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
        edits = [case for case in cases if case.kind != "prior"]
        found = {"all edits": [case.name for case in edits]}
        for reach in ("global", "local"):
            found[f"{reach} edits"] = [case.name for case in edits if case.reach == reach]
        for case in edits:
            found.setdefault(case.kind, []).append(case.name)
        found["prior (the plain class)"] = [case.name for case in cases if case.kind == "prior"]
        return {name: names for name, names in found.items() if names}

    def summary(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """Return group -> method -> measure -> mean with its 95 % interval.

        All methods are averaged over the same pictures (case, number and seed): those that every method that has the
        measure has it for, or each over its own if there are none. Seeds of one picture are one draw of the bootstrap.
        """
        found: dict[str, dict[str, dict[str, Interval]]] = {}
        subject_of = {case.name: case.subject.name for case in self.suite.cases}
        for group, names in self.groups().items():
            within = [r for r in self.records if r.case in names]
            subjects = {subject_of[name] for name in names}
            photos = [] if group.startswith("prior") else [r for r in self.records if r.method == PHOTOS]
            for measure in metrics.MEASURES:
                shared = _shared_by_methods(within, measure)
                for method in self.rows:
                    if method == PHOTOS:
                        chosen = [r for r in photos if r.subject in subjects and measure in r.measures]
                    else:
                        chosen = [r for r in within if r.method == method and measure in r.measures]
                        chosen = [r for r in chosen if not shared or _picture(r) in shared]
                    if chosen:
                        pairs = metrics.MEASURES[measure].pairs or (method == PHOTOS and measure in ("DINO", "CLIP-I"))
                        clusters = [(r.case, r.subject, r.index if method == PHOTOS else r.input) for r in chosen]
                        values = torch.tensor([r.measures[measure] for r in chosen])
                        interval = bootstrap(values, clusters=clusters, pairs=pairs)
                        found.setdefault(group, {}).setdefault(method, {})[measure] = interval
        return {group: {name: rows[name] for name in self.rows if name in rows} for group, rows in found.items()}


def _picture(record: Record) -> tuple[str, int, int]:
    return record.case, record.index, record.seed


def _shared_by_methods(records: Sequence[Record], measure: str) -> set[tuple[str, int, int]]:
    """Return the pictures for which every method that has a measure at all has it; none if there is no such picture."""
    found: dict[str, set[tuple[str, int, int]]] = {}
    for record in records:
        if record.method not in BOUNDS and measure in record.measures:
            found.setdefault(record.method, set()).add(_picture(record))
    return set.intersection(*found.values()) if found else set()


@dataclass
class Prepared:
    """A case with its input pictures and their fingerprints."""

    case: Case
    inputs: list[Image.Image]
    prints: list[str]
    names: list[str]
    words: list[dict[str, str]]
    seeds: list[int]
    scenes: DrawnCase | None
    region: torch.Tensor | None


def evaluate(
    suite: Suite,
    methods: Sequence[Method],
    models: dict[str, Any],
    absent: dict[str, str],
    recogniser: Recogniser | None,
    output: Path,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Results:
    """Make what is missing of every method's pictures into ``output``, measure all, and write ``results.csv``,
    ``results.json`` and ``report.html`` there.

    models, absent: see ``backbones``. recogniser: needed by cases that are drawn. Called again with the same output it
    goes on where it was. Raises ValueError if no method has a prompt in a case that can be run.
    """
    cases = [prepare(case, suite.seeds) for case in suite.cases if not case.hole]
    jobs = {id(m): [(p, wanted_of(p, m, output)) for p in cases if _answers(m, p.case)] for m in methods}
    for method in methods:
        if not jobs[id(method)]:
            raise ValueError(f"method {method.name} has nothing to do in suite '{suite.name}': no case has its prompt")
    made_with = _made_with(suite, recogniser, device, precision)
    total = sum(len(wanted) for job in jobs.values() for _, wanted in job)
    with tqdm(total=total, unit="picture", disable=None) as bar:
        for method in methods:
            bar.set_description(method.name)
            every = [w for _, wanted in jobs[id(method)] for w in wanted]
            make_pictures(method, every, batch_size or suite.batch_size, device, precision, bar.update)
    records, sheets = _measure_all(suite, cases, methods, jobs, models, recogniser, output)
    results = Results(
        suite=suite,
        methods=[method.about for method in methods],
        records=records,
        sheets=sheets,
        backbones={
            key: {"weights": m.name, "hash": weights_hash(m), "preprocessing": m.preprocessing}
            for key, m in models.items()
        },
        absent=absent,
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        made_with=made_with,
    )
    write_files(results, output)
    write_report(results, output / "report.html", BOUNDS)
    return results


def _made_with(suite: Suite, recogniser: Recogniser | None, device: str, precision: str) -> dict[str, Any]:
    """Return what else two evaluations must have in common to be compared: ``compare`` says where they differ."""
    place = choose_device(device)
    asked = [(c.name, c.kind, c.reach, sorted(c.prompts.items()), c.drawn, c.answer) for c in suite.cases]
    return {
        "project": version("instruct2dream"),
        "device": place.type,
        "precision": choose_precision(precision, place),
        "cases": hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16],
        "recogniser": "" if recogniser is None else weights_hash(recogniser),
        "photos": {s.name: [fingerprint_of(open_rgb(p)) for p in photos_of(s)] for s in suite.subjects.values()},
    }


def _measure_all(
    suite: Suite,
    cases: Sequence[Prepared],
    methods: Sequence[Method],
    jobs: dict[int, list[tuple[Prepared, list[Wanted]]]],
    models: dict[str, Any],
    recogniser: Recogniser | None,
    output: Path,
) -> tuple[list[Record], dict[str, Path]]:
    """Return every picture's measures, and each case's sheet by name (written here)."""
    records, sheets = [], {}
    photos = {
        name: {path.resolve(): open_rgb(path) for path in photos_of(subject)}
        for name, subject in suite.subjects.items()
    }
    for prepared in cases:
        made = {
            method.name: (wanted, read_pictures(wanted))
            for method in methods
            for case, wanted in jobs[id(method)]
            if case is prepared
        }
        records += _measure_case(prepared, made, photos[prepared.case.subject.name], models, recogniser, output)
        sheets[prepared.case.name] = output / "sheets" / f"{prepared.case.folder}.png"
        save_image(_sheet(prepared, made), sheets[prepared.case.name])
    used = {case.case.subject.name for case in cases}
    for name, subject in suite.subjects.items():
        if name in used:
            records += _measure_photos(subject, list(photos[name].values()), models, recogniser)
    return records, sheets


def _answers(method: Method, case: Case) -> bool:
    return method.name in case.prompts and method.subject in ("", case.subject.name)


def prepare(case: Case, seeds: Sequence[int]) -> Prepared:
    """Return a case with its pictures: every picture (or drawn scene) once for every seed of the suite.

    Raises ValueError if the mask has another size than the picture.
    """
    region = None
    if case.drawn is not None:
        scenes = draw_case(case)
        inputs, words = to_images(scenes.x), [words_of(scene) for scene in scenes.before]
        names = [f"{case.name} {i}" for i in range(len(inputs))]
        if len(seeds) > 1:
            k = len(seeds)
            repeated = (t.repeat(k, 1, 1, 1) for t in (scenes.x, scenes.truth, scenes.was, scenes.will))
            scenes = DrawnCase(scenes.before * k, scenes.after * k, *repeated)
    else:
        scenes, inputs, words, names = None, [open_rgb(case.picture)], [{}], [str(case.picture)]
        if case.mask is not None:
            mask = open_rgb(case.mask).convert("L")
            if mask.size != inputs[0].size:
                raise ValueError(
                    f"mask '{case.mask}' is {mask.size[0]} x {mask.size[1]}, its picture {inputs[0].size[0]} x "
                    f"{inputs[0].size[1]}; make them the same size"
                )
            region = (to_tensor(mask.convert("RGB"))[:, :1] > 0).float()
    n = len(inputs)
    numbers = [seed + 1000 * i for seed in seeds for i in range(n)]
    prints = [fingerprint_of(picture) for picture in inputs]
    return Prepared(
        case, inputs * len(seeds), prints * len(seeds), names * len(seeds), words * len(seeds), numbers, scenes, region
    )


def fingerprint_of(picture: Image.Image) -> str:
    """Return what tells a picture's pixels from another's."""
    return hashlib.sha256(picture.tobytes()).hexdigest()[:16]


def wanted_of(prepared: Prepared, method: Method, output: Path) -> list[Wanted]:
    """Return the pictures that one method makes of one case."""
    folder = output / "pictures" / prepared.case.folder / method.name
    text = method.name in TEXT_METHODS
    return [
        Wanted(
            prompt=prompt_of(prepared.case, method.name, **words),
            seed=seed,
            input=None if text else picture,
            input_name="" if text else f"{name} {mark}",
            path=folder / f"{i:03d}-{seed}.png",
        )
        for i, (picture, mark, name, words, seed) in enumerate(
            zip(prepared.inputs, prepared.prints, prepared.names, prepared.words, prepared.seeds, strict=True)
        )
    ]


def _measure_case(
    prepared: Prepared,
    made: dict[str, tuple[list[Wanted], list[Image.Image]]],
    photos: dict[Path, Image.Image],
    models: dict[str, Any],
    recogniser: Recogniser | None,
    output: Path,
) -> list[Record]:
    case, n = prepared.case, len(prepared.inputs)
    others = others_of(case, photos)
    rows = {name: (pictures, wanted) for name, (wanted, pictures) in made.items()}
    if case.kind != "prior":
        rows[INPUT] = (prepared.inputs, None)
    if prepared.scenes is not None:
        rows[TRUTH] = (to_images(prepared.scenes.truth), None)
    records = []
    for name, (pictures, wanted) in rows.items():
        inputs = [None] * n if name in TEXT_METHODS else prepared.inputs
        captions = (case.caption_before, case.caption_after)
        # of a single photo there are no others: the methods are compared with it, its copy is not
        near = others if others or name == INPUT else list(photos.values())
        found = metrics.field_measures(models, pictures, near, inputs, captions, case.kind == "prior")
        found |= _by_ground_truth(prepared, pictures, near, models, recogniser, name not in TEXT_METHODS)
        for i in range(n):
            records.append(
                Record(
                    case=case.name,
                    kind=case.kind,
                    reach=case.reach,
                    subject=case.subject.name,
                    method=name,
                    index=i,
                    seed=prepared.seeds[i],
                    prompt=wanted[i].prompt if wanted else "",
                    input=prepared.prints[i],
                    file=str(wanted[i].path.relative_to(output)) if wanted else "",
                    measures={key: float(values[i]) for key, values in found.items()},
                )
            )
    return records


def others_of(case: Case, photos: dict[Path, Image.Image]) -> list[Image.Image]:
    """Return the photos that pictures of a case are compared with: not the one that is edited, or else its copy would
    be compared with itself, while the real photos are compared with the others only."""
    own = None if case.picture is None else case.picture.resolve()
    return [photo for path, photo in photos.items() if path != own]


def _by_ground_truth(
    prepared: Prepared,
    pictures: list[Image.Image],
    photos: list[Image.Image],
    models: dict[str, Any],
    recogniser: Recogniser | None,
    edited: bool,
) -> dict[str, torch.Tensor]:
    """Return what a drawn scene's truth and a mask of the edited region can tell."""
    found: dict[str, torch.Tensor] = {}
    if prepared.scenes is None and prepared.region is None:
        return found
    x = to_tensor([resize(picture, prepared.inputs[0].size) for picture in pictures])
    if prepared.scenes is not None and recogniser is not None:
        near = to_tensor(photos) if photos else None
        found |= exact_measures(prepared.case, prepared.scenes, x, recogniser, near, edited)
    if prepared.region is not None:
        before, region = to_tensor(prepared.inputs), prepared.region.expand(len(x), -1, -1, -1)
        found |= metrics.background(x, before, region)
    region = prepared.region
    if prepared.scenes is not None and prepared.case.reach == "local":
        region = torch.maximum(prepared.scenes.was, prepared.scenes.will)
    if region is not None and "lpips" in models:
        found["background LPIPS"] = metrics.background_distance(models["lpips"], pictures, prepared.inputs, region)
    return found


def _measure_photos(
    subject: Subject, photos: list[Image.Image], models: dict[str, Any], recogniser: Recogniser | None
) -> list[Record]:
    """The bound above: the subject's own photos, each against the others."""
    found: dict[str, torch.Tensor] = {}
    for key, name in (("dino", "DINO"), ("clip", "CLIP-I")):
        if key in models and len(photos) > 1:
            found[name] = metrics.leave_one_out(models[key].images(photos))
    if subject.world and recogniser is not None and photos:
        found["subject recognised"] = recogniser.is_subject(to_tensor(photos), subject.world).float()
    if not found:
        return []
    return [
        Record(
            case=PHOTOS,
            kind="",
            reach="",
            subject=subject.name,
            method=PHOTOS,
            index=i,
            seed=0,
            prompt="",
            input=fingerprint_of(photo),
            file="",
            measures={key: float(values[i]) for key, values in found.items()},
        )
        for i, photo in enumerate(photos)
    ]


def _sheet(prepared: Prepared, made: dict[str, tuple[list[Wanted], list[Image.Image]]]) -> Image.Image:
    columns = {"input": prepared.inputs, **{name: pictures for name, (_, pictures) in made.items()}}
    if prepared.scenes is not None and prepared.case.kind != "prior":
        columns[TRUTH] = to_images(prepared.scenes.truth)
    rows = list(zip(*columns.values(), strict=True))[:SHEET_ROWS]
    cell = 128 if max(prepared.inputs[0].size) <= 128 else 256
    return contact_sheet(rows, column_labels=[name.replace("_", " ") for name in columns], cell=cell)


def write_files(results: Results, output: Path) -> None:
    """Write ``results.csv`` (a row a picture) and ``results.json`` (everything but the pictures)."""
    measures = [m for m in metrics.MEASURES if any(m in r.measures for r in results.records)]
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
        "left out": results.absent,
        "holes": results.suite.holes,
        "summary": summary,
        "records": [asdict(record) for record in results.records],
    }
    with replacing(output / "results.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def as_markdown(results: Results, group: str = "all edits") -> str:
    """Return one group's table as Markdown: a method a row, a measure a column."""
    rows = results.summary().get(group, {})
    measures = [m for m in metrics.MEASURES if any(m in values for values in rows.values())]
    lines = [f"| {group} | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for name, values in rows.items():
        cells = [_cell(values.get(m), metrics.MEASURES[m].digits) for m in measures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Interval | None, digits: int) -> str:
    return "" if value is None else f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
