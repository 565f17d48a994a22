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

import torch
from PIL import Image
from tqdm import tqdm

from ldm.checkpoint.save import weights_hash
from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import open_rgb, resize, save_image, to_images, to_tensor
from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.methods import Method, Wanted, make_pictures, read_pictures
from ldm.evaluation.report import SHEET_ROWS, write_report
from ldm.evaluation.results import BOUNDS, INPUT, PHOTOS, TRUTH, Record, Results, write_files
from ldm.evaluation.suites import TEXT_METHODS, Case, Subject, Suite, photos_of, prompt_of
from ldm.files import content_hash
from ldm.models.devices import choose_device, choose_precision
from ldm.spriteworld.judging.measures import edited_region
from ldm.spriteworld.judging.recogniser import Recogniser
from ldm.spriteworld.judging.suite_cases import DrawnCase, draw_case, exact_measures, words_of

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "pillow", "numpy", "kornia")


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
    different: int  # pictures, before each is repeated for every seed


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
            raise UserError(f"method {method.name} has nothing to do in suite '{suite.name}': no case has its prompt")
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
    asked = [
        [c.name, c.kind, c.reach, sorted(c.prompts.items()), c.drawn, c.answer, c.caption_before, c.caption_after,
         None if c.mask is None else fingerprint_of(open_rgb(c.mask))]
        for c in suite.cases
    ]  # fmt: skip
    return {
        "project": version("instruct2dream"),
        "device": place.type,
        "precision": choose_precision(precision, place),
        "cases": content_hash(json.dumps(asked, sort_keys=True)),
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

    Raises ValueError if the mask has another size than the picture, or leaves no background.
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
        scenes, inputs, names = None, [open_rgb(path) for path in case.pictures], [p.name for p in case.pictures]
        words = [{}] * len(inputs)
        if case.mask is not None:
            mask = open_rgb(case.mask).convert("L")
            if mask.size != inputs[0].size:
                raise UserError(
                    f"mask '{case.mask}' is {mask.size[0]} x {mask.size[1]}, its picture {inputs[0].size[0]} x "
                    f"{inputs[0].size[1]}; make them the same size"
                )
            region = (to_tensor(mask.convert("RGB"))[:, :1] > 0).float()
            if bool(region.all()):
                raise UserError(f"mask '{case.mask}' covers the whole picture: no background is left to measure")
    n = len(inputs)
    numbers = [seed + 1000 * i for seed in seeds for i in range(n)]
    prints = [fingerprint_of(picture) for picture in inputs]
    return Prepared(
        case,
        inputs * len(seeds),
        prints * len(seeds),
        names * len(seeds),
        words * len(seeds),
        numbers,
        scenes,
        region,
        n,
    )


def fingerprint_of(picture: Image.Image) -> str:
    """Return what tells a picture's pixels from another's."""
    return content_hash(picture.tobytes())


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
    rows[INPUT] = (prepared.inputs, None)
    if prepared.scenes is not None:
        rows[TRUTH] = (to_images(prepared.scenes.truth), None)
    records = []
    for name, (pictures, wanted) in rows.items():
        inputs = [None] * n if name in TEXT_METHODS else prepared.inputs
        captions = (case.caption_before, case.caption_after)
        measures = metrics.field_measures(models, pictures, others, inputs, captions, case.kind == "prior")
        measures |= _by_ground_truth(prepared, pictures, others, models, recogniser, name not in TEXT_METHODS)
        if prepared.different < 2 and name not in TEXT_METHODS:  # alike whatever became of the prior
            measures = {key: values for key, values in measures.items() if not metrics.MEASURES[key].pairs}
        if name in BOUNDS:
            measures = _without_copies(measures, prepared.different, n)
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
                    measures={key: float(values[i]) for key, values in measures.items()},
                )
            )
    return records


def _without_copies(measures: dict[str, torch.Tensor], different: int, n: int) -> dict[str, torch.Tensor]:
    """Return the measures of a bound, in which each of ``different`` pictures stands n / different times: a copy is at
    no distance from itself, so comparisons of each picture with all others come out too small by a known factor."""
    if different < 2 or different == n:
        return measures
    factor = (n - 1) / (n - n / different)
    return {name: values * factor if metrics.MEASURES[name].pairs else values for name, values in measures.items()}


def others_of(case: Case, photos: dict[Path, Image.Image]) -> list[Image.Image]:
    """Return the photos that pictures of a case are compared with: none that is edited, or else its copy would be
    compared with itself, while the real photos are compared with the others only."""
    own = {path.resolve() for path in case.pictures}
    return [photo for path, photo in photos.items() if path not in own]


def _by_ground_truth(
    prepared: Prepared,
    pictures: list[Image.Image],
    photos: list[Image.Image],
    models: dict[str, Any],
    recogniser: Recogniser | None,
    edited: bool,
) -> dict[str, torch.Tensor]:
    """Return what a drawn scene's truth and a mask of the edited region can tell."""
    measures: dict[str, torch.Tensor] = {}
    if prepared.scenes is None and prepared.region is None:
        return measures
    x = to_tensor([resize(picture, prepared.inputs[0].size) for picture in pictures])
    if prepared.scenes is not None and recogniser is not None:
        near = to_tensor(photos) if photos else None
        measures |= exact_measures(prepared.case, prepared.scenes, x, recogniser, near, edited)
    if prepared.region is not None:
        before, region = to_tensor(prepared.inputs), prepared.region.expand(len(x), -1, -1, -1)
        measures |= metrics.background(x, before, region)
    region = prepared.region
    if prepared.scenes is not None and prepared.case.reach == "local":
        region = edited_region(prepared.scenes.was, prepared.scenes.will)
    if region is not None and "lpips" in models:
        measures["background LPIPS"] = metrics.background_distance(models["lpips"], pictures, prepared.inputs, region)
    return measures


def _measure_photos(
    subject: Subject, photos: list[Image.Image], models: dict[str, Any], recogniser: Recogniser | None
) -> list[Record]:
    """The bound above: the subject's own photos, each against the others."""
    measures: dict[str, torch.Tensor] = {}
    for key, name in (("dino", "DINO"), ("clip", "CLIP-I")):
        if key in models and len(photos) > 1:
            measures[name] = metrics.leave_one_out(models[key].images(photos))
    if "DINO" in measures:
        measures["PRES"] = measures["DINO"]
    if subject.world and recogniser is not None and photos:
        x = to_tensor(photos)
        measures["subject recognised"] = recogniser.is_subject(x, subject.world).float()
        if len(photos) > 1:
            measures["PRES (recogniser)"] = metrics.leave_one_out(recogniser.described(x))
    if not measures:
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
            measures={key: float(values[i]) for key, values in measures.items()},
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
