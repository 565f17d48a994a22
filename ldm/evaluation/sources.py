"""Where a suite's input pictures come from, and what else is known of them: files, or a class that the suite names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from ldm.data.images import SUFFIXES, open_rgb, pictures_in, resize, to_tensor
from ldm.errors import UserError
from ldm.evaluation.measures import Measure, background
from ldm.files import content_hash

PRIOR = "prior"  # the kind of case that asks for the plain class


class PictureCache:
    """Picture files as RGB, each decoded once."""

    def __init__(self) -> None:
        self._pictures: dict[Path, Image.Image] = {}

    def __call__(self, path: Path) -> Image.Image:
        """Return the picture of a file, the same object every time. Raises UserError as ``open_rgb`` does."""
        key = path.resolve()
        if key not in self._pictures:
            self._pictures[key] = open_rgb(path)
        return self._pictures[key]


class Judge(ABC):
    """What knows a suite's subject by itself, beside the field's measures.

    columns: the measures it can give, in the order of the tables.
    """

    columns: ClassVar[Mapping[str, Measure]] = {}

    @abstractmethod
    def of_photos(self, photos: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return measures of the subject's own photos (at least one), the bound above: name -> ``(n,)``."""

    def made_with(self) -> dict[str, str]:
        """Return what two evaluations must have in common for these measures to be compared: name -> hash."""
        return {}


@dataclass(frozen=True)
class Task:
    """What a case asks for, as far as its source must know.

    kind: one of ``suites.KINDS``. reach: "global" or "local". class_word: what the subject is. judge: the subject's,
    None if it has none.
    """

    kind: str
    reach: str
    class_word: str
    judge: Judge | None = None

    @property
    def is_prior(self) -> bool:
        """Whether the plain class is asked for."""
        return self.kind == PRIOR


@dataclass(frozen=True)
class Inputs:
    """The ``n`` input pictures of a case, and what is known of them.

    pictures: n RGB pictures. names: n, of their files; none for pictures that come from no file. words: n times what
    prompts may say of the picture, by field. truth: n true answers, None if they are not known. region: where a local
    edit belongs, ``n 1 h w`` or ``1 1 h w`` of 0 and 1; None if that is not known or not asked.
    """

    pictures: list[Image.Image]
    names: list[str] = field(default_factory=list)
    words: list[dict[str, str]] = field(default_factory=list)
    truth: list[Image.Image] | None = None
    region: torch.Tensor | None = None

    def measure(
        self, pictures: Sequence[Image.Image], photos: Sequence[Image.Image], edited: bool
    ) -> dict[str, torch.Tensor]:
        """Return the source's own measures of pictures that answer the case: name -> ``(k n,)``.

        pictures: k n answers, the inputs k times in turn. photos: the subject's, may be none. edited: False for
        pictures that were made from text alone.
        """
        if self.region is None or not edited:
            return {}
        x = self.as_tensor(pictures)
        before = to_tensor(self.pictures).repeat(len(x) // len(self.pictures), 1, 1, 1)
        return background(x, before, repeated(self.region, len(x)))

    def as_tensor(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return pictures in the size of the first input, ``n 3 h w`` in [-1, 1]."""
        return to_tensor([resize(picture, self.pictures[0].size) for picture in pictures])


def repeated(of_inputs: torch.Tensor, n: int) -> torch.Tensor:
    """Return what is known of each input, ``m ...``, for n pictures that answer them in turn, ``n ...``."""
    return of_inputs.repeat(n // len(of_inputs), *[1] * (of_inputs.ndim - 1))


class Source(ABC):
    """Where a case's input pictures come from. Made when the suite is read: whatever takes time waits for ``load``.

    A class of a suite takes ``task`` (a ``Task``) beside its own parameters. words: the fields its prompts may use
    beside {identifier} and {class_word}. columns: its own measures, in the order of the tables. count: how many
    different inputs there are. files: those that are edited; none for pictures that come from no file. hole: why there
    are no pictures, "" if there are. left_out: what cannot be measured, in words.
    """

    words: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[Mapping[str, Measure]] = {}
    count: int
    files: tuple[Path, ...] = ()
    hole: str = ""
    left_out: tuple[str, ...] = ()

    @abstractmethod
    def load(self, opened: PictureCache) -> Inputs:
        """Return the pictures. opened: gives those of files. Raises UserError for what cannot be used."""

    @abstractmethod
    def about(self, opened: PictureCache) -> Any:
        """Return what tells this source from another one, as plain containers for a hash. opened: as for ``load``."""

    def made_with(self) -> dict[str, str]:
        """Return what two evaluations must have in common for these measures to be compared: name -> hash."""
        return {}


class PictureSource(Source):
    """Picture files: one, or every one of a folder; a mask may say where the edit belongs."""

    def __init__(self, place: Path, task: Task, mask: Path | None = None, masks: Iterable[Path] = ()):
        """place: a file or a folder. mask: a file, light where the edit may change the picture. masks: files
        (resolved) that are no pictures to edit.

        Raises UserError for a mask of a folder. A mask that is not there is left out.
        """
        if mask is not None and place.is_dir():
            raise UserError(f"a mask belongs to one picture, and '{place}' is a folder")
        self.files = tuple(photos_at(place, masks))
        self.count = len(self.files)
        self.mask = mask if mask is not None and mask.is_file() else None
        if not self.files:
            one = place.suffix.lower() in SUFFIXES
            self.hole = f"put the picture at '{place}'" if one else f"put pictures into '{place}'"
        if mask is not None and self.mask is None:
            self.left_out = (f"no mask at '{mask}': how well the background is kept is not measured here",)
        elif mask is None and task.reach == "local" and not task.is_prior:
            self.left_out = ("no mask: how well the background is kept is not measured here",)

    def load(self, opened: PictureCache) -> Inputs:
        """Return the pictures. Raises UserError if the mask has another size, or leaves no background."""
        pictures = [opened(path) for path in self.files]
        region = None if self.mask is None else _region(self.mask, opened(self.mask), pictures[0])
        return Inputs(pictures, [path.name for path in self.files], [{} for _ in pictures], region=region)

    def about(self, opened: PictureCache) -> Any:
        """Return the mask's fingerprint: the pictures' own are noted with every result."""
        return None if self.mask is None else fingerprint_of(opened(self.mask))


def _region(path: Path, mask: Image.Image, picture: Image.Image) -> torch.Tensor:
    """Return where a mask is light, ``1 1 h w``. Raises UserError if it does not fit the picture."""
    if mask.size != picture.size:
        raise UserError(
            f"mask '{path}' is {mask.size[0]} x {mask.size[1]}, its picture {picture.size[0]} x {picture.size[1]}; "
            "make them the same size"
        )
    region = (to_tensor(mask.convert("L").convert("RGB"))[:, :1] > 0).float()
    if bool(region.all()):
        raise UserError(f"mask '{path}' covers the whole picture: no background is left to measure")
    return region


def photos_at(place: Path, masks: Iterable[Path] = ()) -> list[Path]:
    """Return a folder's pictures, sorted, without masks (those given, resolved, and files called NAME-mask); a file is
    itself; none of what is not there."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        return []
    masks = set(masks)
    return [p for p in pictures_in(place) if p.resolve() not in masks and not p.stem.endswith("-mask")]


def fingerprint_of(picture: Image.Image) -> str:
    """Return what tells a picture's pixels from another's, 16 hex digits."""
    return content_hash(picture.tobytes())
