"""A suite's cases with their pictures: what each method is to make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.methods import Method, PictureToMake
from ldm.evaluation.sources import Inputs, PictureCache, fingerprint_of
from ldm.evaluation.suites import TEXT_METHODS, Case


@dataclass(frozen=True)
class Prepared:
    """A case with its input pictures, all of them once for each seed of the suite: ``n`` in all.

    inputs: what the source gives, each picture once. pictures, prints, names, words, seeds: n each, the inputs in turn.
    """

    case: Case
    inputs: Inputs
    pictures: list[Image.Image]
    prints: list[str]
    names: list[str]
    words: list[dict[str, str]]
    seeds: list[int]

    @property
    def different(self) -> int:
        """The number of pictures before each is repeated for every seed."""
        return len(self.inputs.pictures)

    @property
    def truth(self) -> list[Image.Image] | None:
        """The n true answers, None if they are not known."""
        return None if self.inputs.truth is None else self.inputs.truth * (len(self.pictures) // self.different)


def prepare(case: Case, seeds: Sequence[int], opened: PictureCache) -> Prepared:
    """Return a case with its pictures: every one once for every seed of the suite.

    opened: gives the pictures of files. Raises UserError for what the source cannot use.
    """
    try:
        inputs = case.source.load(opened)
    except UserError as error:
        raise UserError(f"case '{case.name}': {error}") from error
    n, k = len(inputs.pictures), len(seeds)
    return Prepared(
        case=case,
        inputs=inputs,
        pictures=inputs.pictures * k,
        prints=[fingerprint_of(picture) for picture in inputs.pictures] * k,
        names=(inputs.names or [f"{case.name} {i}" for i in range(n)]) * k,
        words=(inputs.words or [{} for _ in range(n)]) * k,
        seeds=[seed + 1000 * i for seed in seeds for i in range(n)],
    )


def answers(method: Method, case: Case) -> bool:
    """Whether a method has a part in a case: a prompt, and weights for its subject."""
    return method.name in case.prompts and method.subject in ("", case.subject.name)


def pictures_to_make(prepared: Prepared, method: Method, output: Path) -> list[PictureToMake]:
    """Return the pictures that one method makes of one case. output: folder of the results."""
    folder = output / "pictures" / prepared.case.folder / method.name
    text = method.name in TEXT_METHODS
    return [
        PictureToMake(
            prompt=prepared.case.prompt(method.name, words),
            seed=seed,
            input=None if text else picture,
            input_name="" if text else f"{name} {mark}",
            path=folder / f"{i:03d}-{seed}.png",
        )
        for i, (picture, mark, name, words, seed) in enumerate(
            zip(prepared.pictures, prepared.prints, prepared.names, prepared.words, prepared.seeds, strict=True)
        )
    ]
