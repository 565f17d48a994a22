"""Every measure of every picture: the methods' results, the bounds beside them, and the subjects' own photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.evaluation.measures import Measure, background_distance, field_measures, leave_one_out
from ldm.evaluation.methods import PictureToMake
from ldm.evaluation.prepared import Prepared
from ldm.evaluation.results import BOUNDS, INPUT, PHOTOS, TRUTH, Record
from ldm.evaluation.sources import PRIOR, fingerprint_of, repeated
from ldm.evaluation.suites import TEXT_METHODS, Case, Subject

Made = dict[
    str, tuple[list[PictureToMake], list[Image.Image]]
]  # method -> what was wanted, and the pictures that were made


def records_of_case(
    prepared: Prepared,
    made: Made,
    photos: Mapping[Path, Image.Image],
    models: dict[str, Any],
    columns: Mapping[str, Measure],
    output: Path,
) -> list[Record]:
    """Return the figures of one case: of every method's pictures, of the inputs and, where known, the true answers.

    photos: the subject's, by resolved path. models: the backbones that are there. columns: every measure of the suite.
    output: folder of the results, which the records' files are relative to.
    """
    others = others_of(prepared.case, photos)
    rows: dict[str, tuple[list[Image.Image], list[PictureToMake] | None]] = {
        name: (pictures, wanted) for name, (wanted, pictures) in made.items()
    }
    rows[INPUT] = (prepared.pictures, None)
    if prepared.truth is not None:
        rows[TRUTH] = (prepared.truth, None)
    records = []
    for name, (pictures, wanted) in rows.items():
        measures = _measured(prepared, name, pictures, others, models)
        if prepared.different < 2 and name not in TEXT_METHODS:  # alike whatever became of the prior
            measures = {key: values for key, values in measures.items() if not columns[key].pairs}
        if name in BOUNDS:
            measures = _without_copies(measures, columns, prepared.different, len(pictures))
        records += _records(prepared, name, wanted, measures, output)
    return records


def _records(
    prepared: Prepared, name: str, wanted: list[PictureToMake] | None, measures: dict[str, torch.Tensor], output: Path
) -> list[Record]:
    """Return one row's figures as records. name: of the method or the bound; wanted: None for a bound."""
    case = prepared.case
    return [
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
        for i in range(len(prepared.pictures))
    ]


def _measured(
    prepared: Prepared, name: str, pictures: list[Image.Image], photos: list[Image.Image], models: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Return all measures of one row's pictures, ``(n,)`` each. name: of the method or the bound."""
    case, edited = prepared.case, name not in TEXT_METHODS
    inputs = prepared.pictures if edited else [None] * len(pictures)
    captions = (case.caption_before, case.caption_after)
    measures = field_measures(models, pictures, photos, inputs, captions, case.kind == PRIOR)
    measures |= prepared.inputs.measure(pictures, photos, edited)
    region = prepared.inputs.region
    if edited and region is not None and "lpips" in models:
        region = repeated(region, len(pictures))
        measures["background LPIPS"] = background_distance(models["lpips"], pictures, prepared.pictures, region)
    return measures


def _without_copies(
    measures: dict[str, torch.Tensor], columns: Mapping[str, Measure], different: int, n: int
) -> dict[str, torch.Tensor]:
    """Return the measures of a bound, in which each of ``different`` pictures stands n / different times: a copy is at
    no distance from itself, so comparisons of each picture with all others come out too small by a known factor."""
    if different < 2 or different == n:
        return measures
    factor = (n - 1) / (n - n / different)
    return {name: values * factor if columns[name].pairs else values for name, values in measures.items()}


def others_of(case: Case, photos: Mapping[Path, Image.Image]) -> list[Image.Image]:
    """Return the photos that pictures of a case are compared with: none that is edited, or else its copy would be
    compared with itself, while the real photos are compared with the others only."""
    own = {path.resolve() for path in case.source.files}
    return [photo for path, photo in photos.items() if path not in own]


def records_of_photos(subject: Subject, photos: Sequence[Image.Image], models: dict[str, Any]) -> list[Record]:
    """Return the figures of the subject's own photos, each against the others: the bound above; none if there are
    none. models: the backbones that are there."""
    measures: dict[str, torch.Tensor] = {}
    for key, name in (("dino", "DINO"), ("clip", "CLIP-I")):
        if key in models and len(photos) > 1:
            measures[name] = leave_one_out(models[key].images(photos))
    if "DINO" in measures:
        measures["PRES"] = measures["DINO"]
    if subject.judge is not None and photos:
        measures |= subject.judge.of_photos(photos)
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
