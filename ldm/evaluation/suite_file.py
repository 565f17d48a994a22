"""The YAML file of an evaluation suite, read into what it means."""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ldm.config import instantiate_from_config, load_config
from ldm.errors import UserError
from ldm.evaluation.sources import Judge, PictureSource, Source, Task, photos_at
from ldm.evaluation.suites import KINDS, METHODS, REACHES, TEXT_METHODS, Case, Subject, Suite
from ldm.inference.settings import EditSettings, TextSettings
from ldm.project import ROOT
from ldm.typed import check_keys, check_type, plain, settings, typed

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _SuiteText:
    """A suite as its file has it."""

    name: str
    subjects: dict
    cases: list
    about: str = ""
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 1
    settings: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_there(self, "name", "subjects", "cases")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds are {list(self.seeds)}; different whole numbers from 0 are expected")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; at least 1 is needed")


@dataclass(frozen=True)
class _SubjectText:
    """A subject as the file has it."""

    class_word: str
    photos: str | None = None
    identifier: str = "sks"
    judge: dict | None = None

    def __post_init__(self) -> None:
        _check_there(self, "class_word")


@dataclass(frozen=True)
class _CaseText:
    """A case as the file has it."""

    name: str
    subject: str
    kind: str
    reach: str
    prompts: dict
    picture: str | None = None
    mask: str | None = None
    source: dict | None = None
    caption_before: str = ""
    caption_after: str = ""

    def __post_init__(self) -> None:
        _check_there(self, "name", "prompts")
        if not re.fullmatch(r"[\w][\w -]*", self.name):
            raise UserError("a name has letters, digits, spaces, - and _ only (it names a folder)")
        _check_known(self.kind, KINDS, "kind")
        _check_known(self.reach, REACHES, "reach")
        if bool(self.picture) == (self.source is not None):
            raise UserError("either a picture or a source is needed")
        if self.mask is not None and self.picture is None:
            raise UserError("a mask belongs to a picture, and there is none")


def read_suite(path: Path, root: Path = ROOT) -> Suite:
    """Return the suite that a YAML file describes; cases with missing pictures are holes in it.

    Relative paths are looked for from the working directory, the suite's own folder and ``root`` (the project's).
    Raises UserError for what is wrong, or if no case can be run.
    """
    content = plain(load_config(path))
    try:
        return _suite(_read(_SuiteText, content, "suite"), (Path(), path.parent, root))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _suite(text: _SuiteText, places: tuple[Path, ...]) -> Suite:
    masks = [node.get("mask") for node in text.cases if isinstance(node, Mapping)]
    masks = frozenset(_located(mask, places).resolve() for mask in masks if isinstance(mask, str))
    subjects = {name: _subject(name, node, places, masks) for name, node in text.subjects.items()}
    cases = tuple(_case(node, subjects, places, masks) for node in text.cases)
    names = [case.folder for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two cases are called '{twice[0]}'; names must differ")
    if all(case.hole for case in cases):
        raise UserError(f"no case of it can be run: {cases[0].hole}")
    return Suite(text.name, text.about, text.seeds, text.batch_size, _settings(text.settings), subjects, cases)


def _read(cls: type[T], node: Any, where: str) -> T:
    """Return one part of a suite's file; a key without a value is as good as none. Raises UserError."""
    check_keys(node, [f.name for f in fields(cls)], where)
    given = {key: value for key, value in node.items() if value is not None}
    try:
        return settings(cls, given, where)
    except UserError as error:
        raise error if where in str(error) else UserError(f"{where}: {error}") from error


def _check_there(text: Any, *names: str) -> None:
    for name in names:
        if not getattr(text, name):
            raise UserError(f"it lacks {name}")


def _check_known(value: str, known: Sequence[str], what: str) -> None:
    if value not in known:
        raise UserError(f"unknown {what} '{value}'; known: {', '.join(known)}")


def _settings(node: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that a suite chooses for its methods. Raises UserError for what a method cannot take."""
    check_keys(node, METHODS, "settings")
    chosen = {}
    for method, given in node.items():
        where, kind = f"settings.{method}", TextSettings if method in TEXT_METHODS else EditSettings
        check_keys(given, [f.name for f in fields(kind)], where)
        chosen[method] = typed(kind, given, where)
        try:
            kind(**chosen[method])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return chosen


def _located(name: str, places: tuple[Path, ...]) -> Path:
    """Return where a file or folder lies: the first place that has it, or as it is named if none has."""
    return next((place / name for place in places if (place / name).exists()), Path(name))


def _subject(name: Any, node: Any, places: tuple[Path, ...], masks: frozenset[Path]) -> Subject:
    where = f"subjects.{name}"
    if not isinstance(name, str):
        raise UserError(f"{where}: a name is words (in quotes, if they look like something else)")
    text = _read(_SubjectText, node, where)
    place = _located(text.photos, places) if text.photos else None
    photos = () if place is None else tuple(photos_at(place, masks))
    judge = None if text.judge is None else _made(Judge, text.judge, f"{where}.judge")
    return Subject(name, photos, text.identifier or "sks", text.class_word, judge, place)


def _case(node: Any, subjects: dict[str, Subject], places: tuple[Path, ...], masks: frozenset[Path]) -> Case:
    where = f"cases.{node.get('name')}" if isinstance(node, Mapping) else "a case"
    text = _read(_CaseText, node, where)
    try:
        _check_known(text.subject, tuple(subjects), "subject")
        check_keys(text.prompts, METHODS, "prompts")
        subject = subjects[text.subject]
        task = Task(text.kind, text.reach, subject.class_word, subject.judge)
        if text.source is not None:
            source = _made(Source, text.source, "source", task=task)
        else:
            source = _pictures(text, task, places, masks, where)
        for method, prompt in text.prompts.items():
            _check_prompt(prompt, ("identifier", "class_word", *source.words), f"prompts.{method}")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    captions = (text.caption_before, text.caption_after)
    return Case(text.name, subject, text.kind, text.reach, dict(text.prompts), source, *captions)


def _made(kind: type[T], node: Mapping[str, Any], where: str, **extra: Any) -> T:
    """Return the object that a node names.

    extra: parameters that the suite itself gives. Raises UserError if the object is of another kind, or refuses its
    parameters.
    """
    params = node.get("params")
    taken = [name for name in extra if isinstance(params, Mapping) and name in params]
    if taken:
        raise UserError(f"{where}: '{taken[0]}' is given by the suite itself; take it out of params")
    try:
        made = instantiate_from_config(node, **extra)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not isinstance(made, kind):
        raise UserError(f"{where}: '{node['target']}' is no {kind.__name__} of ldm.evaluation.sources")
    return made


def _pictures(
    text: _CaseText, task: Task, places: tuple[Path, ...], masks: frozenset[Path], where: str
) -> PictureSource:
    mask = _located(text.mask, places) if text.mask else None
    if mask is not None and not mask.is_file():
        logger.warning("%s: no mask at '%s', so how well the background is kept cannot be measured", where, mask)
    return PictureSource(_located(text.picture or "", places), task, mask, masks)


def _check_prompt(text: Any, known: tuple[str, ...], where: str) -> None:
    """Raise UserError for a prompt that is no text, or uses fields that the case does not fill."""
    if text is not None:
        check_type(str, text, where)
    if not text or not text.strip():
        raise UserError(f"{where} is empty")
    try:
        parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    for _, name, form, conversion in parts:
        _check_known(name, known, "field")
        if form or conversion:
            raise UserError(f"{where}: a field is {{{name}}} alone, without a format")
