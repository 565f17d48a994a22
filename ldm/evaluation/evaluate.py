"""Run a suite: every method's pictures, every measure, the bounds beside them, and the files that tell of it."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ldm.checkpoint.save import weights_hash
from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import save_image
from ldm.errors import UserError
from ldm.evaluation.methods import Method, PictureToMake, make_pictures, read_methods, read_pictures
from ldm.evaluation.prepared import Prepared, answers, pictures_to_make, prepare
from ldm.evaluation.records import Made, records_of_case, records_of_photos
from ldm.evaluation.report import SHEET_ROWS, write_report
from ldm.evaluation.results import BOUNDS, TRUTH, Record, Results, as_markdown, write_files
from ldm.evaluation.sources import PRIOR, PictureCache, fingerprint_of
from ldm.evaluation.suite_file import read_suite
from ldm.evaluation.suites import Suite
from ldm.files import check_writable, content_hash
from ldm.models.backbones import backbones
from ldm.models.devices import DEVICES, PRECISIONS, choose_device, choose_precision

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "pillow", "numpy", "kornia")
Photos = dict[str, dict[Path, Image.Image]]  # subject -> resolved path -> photo
Jobs = list[tuple[Method, list[tuple[Prepared, list[PictureToMake]]]]]


@dataclass(frozen=True)
class SuiteRequest:
    """What ``evaluate.py`` is asked for.

    suite: a YAML file. methods: NAME=RUN, or NAME:SUBJECT=RUN, at least one. output: folder of the results; given
    again, it is gone on with. dino, clip: a backbone's folder or name, None for the field's own if the hub's cache has
    it. lpips: the files of AlexNet and of LPIPS's linear layers, None for none. batch_size: pictures made at once, None
    for the suite's. device: "auto", "cpu" or "cuda". precision: "auto", "fp32", "fp16" or "bf16".

    Raises UserError for what makes no sense by itself.
    """

    suite: Path
    methods: tuple[str, ...]
    output: Path
    dino: str | None = None
    clip: str | None = None
    lpips: tuple[str, str] | None = None
    batch_size: int | None = None
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("no method is named; give --methods NAME=RUN ...")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}; it must be at least 1")
        for name, known in (("device", DEVICES), ("precision", ("auto", *PRECISIONS))):
            if getattr(self, name) not in known:
                raise UserError(f"unknown {name} '{getattr(self, name)}'; known: {', '.join(known)}")


def run_suite(request: SuiteRequest) -> str:
    """Check everything that is asked for, run the suite and return its tables as Markdown, the report's path below.

    Raises UserError before anything is made if something does not fit.
    """
    suite = read_suite(request.suite)
    methods = read_methods(request.methods, suite)
    check_writable(request.output / "report.html")
    for name, why in suite.holes.items():
        logger.warning("case '%s' is left out: %s", name, why)
    models, absent = backbones(request.dino, request.clip, request.lpips, choose_device(request.device))
    for key, why in absent.items():
        logger.info("columns of %s are left out: %s", key, why)
    results = evaluate(
        suite, methods, models, absent, request.output, request.batch_size, request.device, request.precision
    )
    tables = [as_markdown(results, group) for group in results.summary()]
    return "\n\n".join([*tables, str(request.output / "report.html")])


def evaluate(
    suite: Suite,
    methods: Sequence[Method],
    models: dict[str, Any],
    absent: dict[str, str],
    output: Path,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Results:
    """Make what is missing of every method's pictures into ``output``, measure all, and write ``results.csv``,
    ``results.json`` and ``report.html`` there.

    models, absent: see ``backbones``. batch_size: pictures made at once, None for the suite's. device, precision: as a
    command line has them. Called again with the same output it goes on where it was. Raises UserError if no method has
    a prompt in a case that can be run.
    """
    opened = PictureCache()
    cases = [prepare(case, suite.seeds, opened) for case in suite.cases if not case.hole]
    jobs: Jobs = [(m, [(p, pictures_to_make(p, m, output)) for p in cases if answers(m, p.case)]) for m in methods]
    for method, job in jobs:
        if not job:
            raise UserError(f"method {method.name} has nothing to do in suite '{suite.name}': no case has its prompt")
    photos = {
        name: {path.resolve(): opened(path) for path in subject.photos} for name, subject in suite.subjects.items()
    }
    made_with = _made_with(suite, photos, opened, device, precision)
    _make_all(jobs, batch_size or suite.batch_size, device, precision)
    records, sheets = _measure_all(suite, cases, jobs, photos, models, output)
    results = Results(
        suite=suite,
        methods=[method.about for method in methods],
        records=records,
        sheets=sheets,
        backbones={key: _backbone(model) for key, model in models.items()},
        absent=absent,
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        made_with=made_with,
    )
    write_files(results, output)
    write_report(results, output / "report.html", BOUNDS)
    return results


def _backbone(model: Any) -> dict[str, str]:
    """Return what results say of a backbone."""
    return {"weights": model.name, "hash": weights_hash(model), "preprocessing": model.preprocessing}


def _make_all(jobs: Jobs, batch_size: int, device: str, precision: str) -> None:
    """Make every method's pictures that are not there yet, with a progress bar."""
    total = sum(len(wanted) for _, job in jobs for _, wanted in job)
    with tqdm(total=total, unit="picture", disable=None) as bar:
        for method, job in jobs:
            bar.set_description(method.name)
            every = [w for _, wanted in job for w in wanted]
            make_pictures(method, every, batch_size, device, precision, bar.update)


def _made_with(suite: Suite, photos: Photos, opened: PictureCache, device: str, precision: str) -> dict[str, Any]:
    """Return what else two evaluations must have in common to be compared: ``compare`` says where they differ."""
    place = choose_device(device)
    asked = [
        [c.name, c.kind, c.reach, sorted(c.prompts.items()), c.source.about(opened), c.caption_before, c.caption_after]
        for c in suite.cases
    ]
    judges = [subject.judge for subject in suite.subjects.values() if subject.judge is not None]
    own: dict[str, str] = {}
    for one in (*judges, *(case.source for case in suite.cases)):
        own |= one.made_with()
    return {
        "project": version("instruct2dream"),
        "device": place.type,
        "precision": choose_precision(precision, place),
        "cases": content_hash(json.dumps(asked, sort_keys=True)),
        **own,
        "photos": {name: [fingerprint_of(photo) for photo in of.values()] for name, of in photos.items()},
    }


def _measure_all(
    suite: Suite,
    cases: Sequence[Prepared],
    jobs: Jobs,
    photos: Photos,
    models: dict[str, Any],
    output: Path,
) -> tuple[list[Record], dict[str, Path]]:
    """Return every picture's measures, and each case's sheet by name (written here)."""
    records, sheets, columns = [], {}, suite.columns
    for prepared in cases:
        made = {
            method.name: (wanted, read_pictures(wanted))
            for method, job in jobs
            for case, wanted in job
            if case is prepared
        }
        of_subject = photos[prepared.case.subject.name]
        records += records_of_case(prepared, made, of_subject, models, columns, output)
        sheets[prepared.case.name] = output / "sheets" / f"{prepared.case.folder}.png"
        save_image(_sheet(prepared, made), sheets[prepared.case.name])
    used = {case.case.subject.name for case in cases}
    for name, subject in suite.subjects.items():
        if name in used:
            records += records_of_photos(subject, list(photos[name].values()), models)
    return records, sheets


def _sheet(prepared: Prepared, made: Made) -> Image.Image:
    """Return a case's sheet: an input a row, a method a column."""
    columns = {"input": prepared.pictures, **{name: pictures for name, (_, pictures) in made.items()}}
    if prepared.truth is not None and prepared.case.kind != PRIOR:
        columns[TRUTH] = prepared.truth
    rows = list(zip(*columns.values(), strict=True))[:SHEET_ROWS]
    cell = 128 if max(prepared.pictures[0].size) <= 128 else 256
    return contact_sheet(rows, column_labels=[name.replace("_", " ") for name in columns], cell=cell)
