"""Evaluation suites: YAML that says which subjects and pictures are edited how, by which method's words."""

from __future__ import annotations

import logging
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.config import load_config, nearest, plain
from ldm.data.images import SUFFIXES
from ldm.errors import UserError
from ldm.inference.settings import EditSettings, TextSettings

logger = logging.getLogger(__name__)

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
    "prior",
)
REACHES = ("global", "local")
SUITE_KEYS = {
    "name": str,
    "about": str,
    "seeds": list,
    "batch_size": int,
    "settings": dict,
    "subjects": dict,
    "cases": list,
}
SUBJECT_KEYS = ("photos", "identifier", "class_word", "world")
CAPTIONS = ("caption_before", "caption_after")
EXPECTED = {
    str: "words (in quotes, if they look like a number)",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "names and values",
}
CASE_KEYS = ("name", "subject", "kind", "reach", "prompts", "picture", "mask", "drawn", "answer", *CAPTIONS)


@dataclass(frozen=True)
class Subject:
    """One subject: its photos, the word that names it, what it is; ``world``: its name in the sprite world; ``masks``:
    files that are no photos of it, wherever they lie."""

    name: str
    photos: Path | None
    identifier: str
    class_word: str
    world: str | None = None
    masks: frozenset[Path] = frozenset()


@dataclass(frozen=True)
class Case:
    """One thing to be done: a picture (or drawn scenes), and what each method is told.

    kind: one of ``KINDS``; "prior" asks for the plain class and is measured apart. reach: "global" (the whole picture,
    a filter) or "local" (an object). picture: a file, or a folder of which every picture is edited (without a mask).
    mask: light where the edit may change the picture. caption_before,
    caption_after: of the picture, for CLIP. drawn, answer: sprite-world scenes and their exact change.
    """

    name: str
    subject: Subject
    kind: str
    reach: str
    prompts: dict[str, str]
    picture: Path | None = None
    mask: Path | None = None
    drawn: dict[str, Any] | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    caption_before: str = ""
    caption_after: str = ""
    hole: str = ""  # why it cannot be run; "" if it can
    unmasked: str = ""  # why a picture has no mask though it needs one; "" if it has, or needs none

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return self.name.replace(" ", "-")

    @property
    def pictures(self) -> list[Path]:
        """The files that are edited; none for drawn scenes."""
        return [] if self.picture is None else _images_in(self.picture, self.subject.masks)

    @property
    def left_out(self) -> list[str]:
        """What cannot be measured here for want of pictures, in words."""
        notes, own = [], {path.resolve() for path in self.pictures}
        photos = photos_of(self.subject)
        if self.kind != "prior" and photos and all(path.resolve() in own for path in photos):
            name = self.subject.name
            notes.append(f"No photo of {name} but what is edited: DINO and CLIP-I are not measured here")
        if self.kind == "prior" and (len(self.pictures) == 1 or (self.drawn or {}).get("scenes") == 1):
            notes.append("One input: DIV and variety are not measured of editors, whose samples all come from it")
        return notes


@dataclass(frozen=True)
class Suite:
    """What one evaluation does. settings: method -> sampling settings over what the checkpoint recommends."""

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


def read_suite(path: Path, root: Path) -> Suite:
    """Return the suite that a YAML file describes; cases with missing pictures are holes in it.

    Relative paths are looked for from the working directory, the suite's own folder and ``root`` (the project's).
    Raises FileNotFoundError or ValueError for what is wrong, or if no case can be run.
    """
    content = plain(load_config(path))
    _known(content, tuple(SUITE_KEYS), str(path))
    for key in ("name", "subjects", "cases"):
        if not content.get(key):
            raise UserError(f"suite {path} lacks {key}")
    for key, kind in SUITE_KEYS.items():
        _typed(content, key, kind, f"suite {path}")
    settings = content.get("settings") or {}
    _check_settings(settings, path)
    places = (Path(), path.parent, root)
    masks = [node.get("mask") for node in content["cases"] if isinstance(node, dict)]
    masks = frozenset(_found(mask, places).resolve() for mask in masks if isinstance(mask, str))
    subjects = {name: _subject(name, node, places, path, masks) for name, node in content["subjects"].items()}
    cases = [_case(node, subjects, places, path) for node in content["cases"]]
    names = [case.folder for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two cases of {path} are called '{twice[0]}'; names must differ")
    if all(case.hole for case in cases):
        raise UserError(f"no case of {path} can be run: {cases[0].hole}")
    seeds = tuple(content.get("seeds") or (0,))
    if any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds of {path} are {list(seeds)}; different whole numbers from 0 are expected")
    batch_size = 1 if content.get("batch_size") is None else content["batch_size"]
    if batch_size < 1:
        raise UserError(f"batch_size of {path} is {batch_size}; at least 1 is needed")
    return Suite(content["name"], content.get("about") or "", seeds, batch_size, settings, subjects, tuple(cases))


def _known(node: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(node, dict):
        raise UserError(f"{where} should hold names and values, found {node!r}"[:200])
    for key in node:
        if key not in keys:
            raise UserError(f"unknown key '{key}' in {where}{nearest(str(key), list(keys))}")


def _typed(node: dict, key: str, kind: type, where: str) -> None:
    """Raise ValueError if a node has a value of another type under a key (none at all is fine)."""
    value = node.get(key)
    if value is not None and type(value) is not kind:
        raise UserError(f"{key} of {where} is {value!r}; expected {EXPECTED[kind]}"[:200])


def _check_settings(settings: Any, path: Path) -> None:
    """Raise ValueError for settings that a method does not have, or of the wrong type or size."""
    where = f"settings of {path}"
    _known(settings, METHODS, where)
    for method, node in settings.items():
        kind = TextSettings if method in TEXT_METHODS else EditSettings
        _known(node, tuple(kind.__dataclass_fields__), f"{method} in {where}")
        for key, value in node.items():
            usual = getattr(kind(), key)
            if key == "guidance_interval":
                fits = isinstance(value, list) and len(value) == 2 and all(_is_number(v) for v in value)
            else:
                fits = _is_number(value) if isinstance(usual, float) else type(value) is type(usual)
            if not fits:
                wanted = "two numbers" if key == "guidance_interval" else EXPECTED[type(usual)]
                raise UserError(f"{key} of {method} in {where} is {value!r}; expected {wanted}"[:200])
        try:
            kind(**node)
        except ValueError as error:
            raise UserError(f"{method} in {where}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(value: Any, known: tuple[str, ...], what: str, where: str) -> str:
    if value not in known:
        raise UserError(f"unknown {what} '{value}' in {where}; known: {', '.join(known)}")
    return value


def _plain(name: str, where: str) -> str:
    if not re.fullmatch(r"[\w][\w -]*", name):
        raise UserError(f"{where}: a name has letters, digits, spaces, - and _ only (it names a folder)")
    return name


def _found(name: str, places: tuple[Path, ...]) -> Path:
    return next((place / name for place in places if (place / name).exists()), Path(name))


def _subject(name: str, node: Any, places: tuple[Path, ...], path: Path, masks: frozenset[Path]) -> Subject:
    where = f"subject '{name}' of {path}"
    if not isinstance(name, str):
        raise UserError(f"{where}: its name should be {EXPECTED[str]}")
    _known(node, SUBJECT_KEYS, where)
    for key in SUBJECT_KEYS:
        _typed(node, key, str, where)
    if not node.get("class_word"):
        raise UserError(f"{where} lacks class_word: what it is, like dog")
    photos = _found(node["photos"], places) if node.get("photos") else None
    world = node.get("world")
    if world is not None:
        from ldm.spriteworld.world.scene import SUBJECTS

        _one_of(world, tuple(SUBJECTS), "sprite-world subject", where)
    return Subject(name, photos, node.get("identifier") or "sks", node["class_word"], world, masks)


def _case(node: Any, subjects: dict[str, Subject], places: tuple[Path, ...], path: Path) -> Case:
    where = f"case '{node.get('name')}' of {path}" if isinstance(node, dict) else f"a case of {path}"
    _known(node, CASE_KEYS, where)
    for key in ("name", "subject", "kind", "reach", "prompts"):
        if not node.get(key):
            raise UserError(f"{where} lacks {key}")
    for key in ("picture", "mask", *CAPTIONS):
        _typed(node, key, str, where)
    for key in ("drawn", "answer"):
        _typed(node, key, dict, where)
    subject = subjects[_one_of(node["subject"], tuple(subjects), "subject", where)]
    _one_of(node["kind"], KINDS, "kind", where)
    _one_of(node["reach"], REACHES, "reach", where)
    _known(node["prompts"], METHODS, f"prompts of {where}")
    if (node.get("picture") is None) == (node.get("drawn") is None):
        raise UserError(f"{where} needs either a picture or drawn scenes")
    drawn = node.get("drawn")
    if drawn is None and node.get("answer"):
        raise UserError(f"{where}: answer says how drawn scenes change; a picture has none")
    prompts = {
        method: _check_prompt(text, drawn is not None, f"prompt of {method} in {where}")
        for method, text in node["prompts"].items()
    }
    picture, mask = (_found(node[key], places) if node.get(key) else None for key in ("picture", "mask"))
    unmasked = ""
    if mask is not None and picture is not None and picture.is_dir():
        raise UserError(f"{where}: a mask belongs to one picture, and '{picture}' is a folder")
    if mask is not None and not mask.is_file():
        logger.warning("%s: no mask at '%s', so how well the background is kept cannot be measured", where, mask)
        mask, unmasked = None, f"no mask at '{mask}'"
    elif mask is None and picture is not None and node["reach"] == "local" and node["kind"] != "prior":
        unmasked = "no mask"
    case = Case(
        name=_plain(str(node["name"]), where),
        subject=subject,
        kind=node["kind"],
        reach=node["reach"],
        prompts=prompts,
        picture=picture,
        mask=mask,
        drawn=drawn,
        answer=dict(node.get("answer") or {}),
        caption_before=node.get("caption_before") or "",
        caption_after=node.get("caption_after") or "",
        hole=_hole(picture, subject),
        unmasked=unmasked,
    )
    if drawn is not None:
        from ldm.spriteworld.judging.suite_cases import check_drawn

        check_drawn(case, where)
    return case


def _check_prompt(text: Any, drawn: bool, where: str) -> str:
    known = ("identifier", "class_word") + (("animal", "where") if drawn else ())
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} is empty")
    try:
        parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    for _, name, form, conversion in parts:
        _one_of(name, known, "field", where)
        if form or conversion:
            raise UserError(f"{where}: a field is {{{name}}} alone, without a format")
    return text


def _hole(picture: Path | None, subject: Subject) -> str:
    if picture is not None and not _images_in(picture, subject.masks):
        one = picture.suffix.lower() in SUFFIXES
        return f"put the picture at '{picture}'" if one else f"put pictures into '{picture}'"
    if subject.photos is not None and not photos_of(subject):
        return f"put photos of {subject.name} into '{subject.photos}'"
    return ""


def photos_of(subject: Subject) -> list[Path]:
    """Return a subject's photos (a folder's without masks: the suite's, and files called NAME-mask), or the one file,
    sorted; none if there are none."""
    return [] if subject.photos is None else _images_in(subject.photos, subject.masks)


def _images_in(place: Path, masks: frozenset[Path]) -> list[Path]:
    """Return a folder's pictures, sorted, without masks; a file is itself; none of what is not there."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        return []
    pictures = (p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
    return sorted(p for p in pictures if p.resolve() not in masks and not p.stem.endswith("-mask"))


def prompt_of(case: Case, method: str, **scene: str) -> str:
    """Return what a method is told; scene: {animal} and {where} of a drawn scene."""
    words = {"identifier": case.subject.identifier, "class_word": case.subject.class_word, **scene}
    return " ".join(case.prompts[method].format(**words).split())
