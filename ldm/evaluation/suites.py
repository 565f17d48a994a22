"""Evaluation suites: which subjects and pictures are edited how, and each method's prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.evaluation.measures import Measure, with_columns
from ldm.evaluation.sources import PRIOR, Judge, Source

TEXT_METHODS = ("dreambooth",)
EDIT_METHODS = ("instruct_pix2pix", "instruct2dream")
METHODS = TEXT_METHODS + EDIT_METHODS
KINDS = (
    "replacement",
    "recontextualisation",
    "art rendition",
    "view synthesis",
    "property modification",
    "accessorisation",
    PRIOR,
)
REACHES = ("global", "local")


@dataclass(frozen=True)
class Subject:
    """One subject. photos: files. identifier: the word that names it. class_word: what it is. judge: measures of its
    own, None for none. place: where its photos are looked for, None if it has none."""

    name: str
    photos: tuple[Path, ...]
    identifier: str
    class_word: str
    judge: Judge | None = None
    place: Path | None = None

    @property
    def hole(self) -> str:
        """Why it cannot be evaluated; "" if it can."""
        return f"put photos of {self.name} into '{self.place}'" if self.place is not None and not self.photos else ""


@dataclass(frozen=True)
class Case:
    """One thing to be done: pictures, and each method's prompt.

    kind: one of ``KINDS``; "prior" asks for the plain class and is measured apart. reach: "global" (the whole picture,
    a filter) or "local" (an object). prompts: by method. source: of the input pictures. caption_before, caption_after:
    of the picture, for CLIP; "" for none.
    """

    name: str
    subject: Subject
    kind: str
    reach: str
    prompts: dict[str, str]
    source: Source
    caption_before: str = ""
    caption_after: str = ""

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return self.name.replace(" ", "-")

    @property
    def hole(self) -> str:
        """Why it cannot be run; "" if it can."""
        return self.source.hole or self.subject.hole

    @property
    def left_out(self) -> list[str]:
        """What cannot be measured here for want of pictures, in words."""
        notes, own = list(self.source.left_out), {path.resolve() for path in self.source.files}
        photos = self.subject.photos
        if self.kind != PRIOR and photos and all(path.resolve() in own for path in photos):
            name = self.subject.name
            notes.append(f"No photo of {name} but what is edited: DINO and CLIP-I are not measured here")
        if self.kind == PRIOR and self.source.count == 1:
            names = [name for name, measure in with_columns(self.source.columns).items() if measure.pairs]
            notes.append(
                f"One input: what compares samples with each other ({', '.join(names)}) is not measured of editors, "
                "whose samples all come from it"
            )
        return notes

    def prompt(self, method: str, words: Mapping[str, str]) -> str:
        """Return a method's prompt. words: what its source says of the picture, by field."""
        known = {"identifier": self.subject.identifier, "class_word": self.subject.class_word, **words}
        return " ".join(self.prompts[method].format(**known).split())


@dataclass(frozen=True)
class Suite:
    """What one evaluation does.

    seeds: of the pictures, each different. batch_size: pictures made at once. settings: of sampling, by method, over
    what the checkpoint recommends.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    batch_size: int
    settings: dict[str, dict[str, Any]]
    subjects: dict[str, Subject]
    cases: tuple[Case, ...]

    @property
    def holes(self) -> dict[str, str]:
        """What is missing, by case."""
        return {case.name: case.hole for case in self.cases if case.hole}

    @property
    def columns(self) -> dict[str, Measure]:
        """Every measure that a table of this suite can have, in the order of its columns."""
        own: dict[str, Measure] = {}
        for case in self.cases:
            own |= case.source.columns
        for subject in self.subjects.values():
            if subject.judge is not None:
                own = {**own, **{name: m for name, m in subject.judge.columns.items() if name not in own}}
        return with_columns(own)
