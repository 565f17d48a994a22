"""A folder of pairs in the making: one note a finished pair, so that stopping and going on lose nothing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data import images
from ldm.data.contact_sheet import contact_sheet
from ldm.data.pairs import MANIFEST, SIDES
from ldm.dataset_generation.plan import INSTANCE, REGULARIZATION, PlannedPair
from ldm.errors import UserError
from ldm.files import file_hash, read_json, replacing, write_json

logger = logging.getLogger(__name__)

NOTES = ".progress"  # one note for each finished pair
SETTINGS = "settings.json"
SHEET = "contact-sheet.png"

Note = dict[str, Any]


class PairStore:
    """The pairs of one dataset: ``training/``, ``regularization/``, their notes, the manifest and the sheets."""

    def __init__(self, output: Path, key: Mapping[str, Any]):
        """output: the folder; key: how its pairs are made, which must not change from call to call.

        Raises UserError if the folder holds pairs made in another way.
        """
        self.output, self.key = output, dict(key)
        self._hashes: dict[Path, str] = {}
        self._check()

    def _check(self) -> None:
        path = self.output / NOTES / SETTINGS
        wanted = json.loads(json.dumps(self.key))
        if path.is_file():
            recorded = read_json(path)
            other = [name for name in {**wanted, **recorded} if recorded.get(name, "") != wanted.get(name, "")]
            if other:
                raise UserError(
                    f"'{self.output}' was begun with other {' and '.join(other)}; choose another --output, "
                    "or delete it to make them anew"
                )
        elif any((self.output / folder).is_dir() for folder in (INSTANCE, REGULARIZATION)):
            raise UserError(f"'{self.output}' holds pairs that were not made here; choose another --output")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, wanted)

    def check_plan(self, plan: Sequence[PlannedPair]) -> None:
        """Raise UserError if the folder holds notes of pairs that are not planned."""
        notes = {path.name for path in (self.output / NOTES).glob("*.json")} - {SETTINGS}
        more = notes - {self._note_path(pair).name for pair in plan}
        if more:
            raise UserError(
                f"'{self.output}' holds {len(more)} more pairs than are asked for; choose another --output or delete it"
            )

    def missing(self, plan: Sequence[PlannedPair]) -> list[PlannedPair]:
        """Return the planned pairs that are still to be made, those whose pictures are gone among them."""
        there = self._pictures()
        missing = [pair for pair in plan if self._note(pair, there) is None]
        gone = [pair.id for pair in missing if self._note_path(pair).is_file()]
        if gone:
            logger.info("a picture of pair %s is gone: made anew, as it was", ", ".join(gone))
        return missing

    def finished(self, plan: Sequence[PlannedPair]) -> list[Note] | None:
        """Return the notes of all planned pairs, or None while one is missing."""
        there = self._pictures()
        notes = [self._note(pair, there) for pair in plan]
        return None if any(note is None for note in notes) else [note for note in notes if note is not None]

    def photo_hash(self, path: Path) -> str:
        """Return a photo's content hash; computed once for each."""
        if path not in self._hashes:
            self._hashes[path] = file_hash(path)
        return self._hashes[path]

    def _note_path(self, pair: PlannedPair) -> Path:
        return self.output / NOTES / f"{pair.folder}-{pair.id}.json"

    def _pictures(self) -> set[tuple[str, str]]:
        """The pictures that are there for training: (folder, name without its ending)."""
        files = (path for name in (INSTANCE, REGULARIZATION) for path in (self.output / name).glob("*_[01].*"))
        return {(path.parent.name, path.stem) for path in files if path.suffix.lower() in images.SUFFIXES}

    def _note(self, pair: PlannedPair, there: set[tuple[str, str]]) -> Note | None:
        """What is known of a finished pair; None for one that is to be made, also where a picture of it is gone."""
        path = self._note_path(pair)
        if not path.is_file():
            return None
        note = read_json(path)
        recorded = [note["photo_hash"], note["seed"], note["source_word"], note["direction"]]
        planned = [self.photo_hash(pair.photo), pair.seed, pair.source_word, pair.direction]
        if [*recorded, note.get("instruction", "")] != [*planned, pair.instruction]:
            raise UserError(
                f"'{self.output}' was begun from other photos, source words, seeds or sentences (pair {pair.id} of "
                f"{pair.folder}); choose another --output, or delete it"
            )
        whole = all((pair.folder, f"{pair.id}_{side}") in there for side in SIDES)
        return note if whole or "set_aside" in note else None

    def keep(
        self, pair: PlannedPair, made: Sequence[Note], pictures: Sequence[Image.Image | None], reason: str
    ) -> None:
        """Write a pair's pictures and its note, or the note alone if it is set aside.

        made: how each picture was made; pictures: one, or two of a round trip; reason: why it is set aside, "" if not.
        """
        note: Note = {
            "id": pair.id,
            "folder": pair.folder,
            "direction": pair.direction,
            "photo": pair.photo.name,
            "photo_hash": self.photo_hash(pair.photo),
            "source_word": pair.source_word,
            "seed": pair.seed,
            "made": list(made),
        }
        if pair.instruction:
            note["instruction"] = pair.instruction
        if reason:
            note["set_aside"] = reason
        else:
            note |= self._write_pictures(pair, pictures)
        write_json(self._note_path(pair), note)

    def _write_pictures(self, pair: PlannedPair, pictures: Sequence[Image.Image | None]) -> Note:
        folder = self.output / pair.folder
        folder.mkdir(parents=True, exist_ok=True)
        note: Note = {}
        side = {"reverse": "1", "forward": "0", "edit": "0"}.get(pair.direction)  # of the photo itself
        ending = None if side is None else _ending(pair.photo)
        if ending:
            with replacing(folder / f"{pair.id}_{side}{ending}") as temporary:
                shutil.copyfile(pair.photo, temporary)
        elif side is not None:
            images.save_image(images.open_rgb(pair.photo), folder / f"{pair.id}_{side}.png")
            note["photo_saved_as"] = "PNG: training does not read the photo's own format"
        sides = {"reverse": "0", "forward": "1", "edit": "1", "round trip": "01"}[pair.direction]
        for side, picture in zip(sides, pictures, strict=True):
            if picture is not None:
                images.save_image(picture, folder / f"{pair.id}_{side}.png")
        return note

    def finish(self, notes: Sequence[Note]) -> dict[str, Any]:
        """Write the manifest and the contact sheets of all pairs; return the manifest."""
        manifest = {
            "version": 1,
            **self.key,
            "source_words": list(dict.fromkeys(n["source_word"] for n in notes if n["direction"] != "edit")),
            "pairs": [note for note in notes if "set_aside" not in note],
            "set_aside": [note for note in notes if "set_aside" in note],
        }
        write_json(self.output / MANIFEST, manifest)
        for folder in (INSTANCE, REGULARIZATION):
            sheet = sheet_of(self.output, [pair for pair in manifest["pairs"] if pair["folder"] == folder])
            if sheet is not None:
                images.save_image(sheet, self.output / f"{folder}-{SHEET}")
        return manifest


def sheet_of(output: Path, notes: list[Note], limit: int = 32, columns: int = 4) -> Image.Image | None:
    """Return a sheet of pairs, input and edited side by side, several to a row; None for no pairs.

    A picture that is gone leaves a hole.
    """
    if not notes:
        return None
    rows: list[list[Image.Image | None]] = []
    for k, note in enumerate(notes[:limit]):
        if k % columns == 0:
            rows.append([])
        sides = [next((output / note["folder"]).glob(f"{note['id']}_{side}.*"), None) for side in SIDES]
        rows[-1] += [None if path is None else images.open_rgb(path) for path in sides]
    shown = f"the first {limit} of {len(notes)}" if len(notes) > limit else f"{len(notes)}"
    title = f"{shown} pairs of {notes[0]['folder']}/: input, edited"
    return contact_sheet(rows, column_labels=["input", "edited"] * columns, title=title, cell=128)


def _ending(path: Path) -> str | None:
    """The photo's own ending, or its format's where the ending is none that training looks for; None if neither is."""
    if path.suffix.lower() in images.SUFFIXES:
        return path.suffix.lower()
    with Image.open(path) as image:
        ending = f".{image.format.lower()}"
    return ending if ending in images.SUFFIXES else None
