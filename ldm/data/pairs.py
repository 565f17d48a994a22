"""Find pairs of pictures: ``<id>_0`` is the input, ``<id>_1`` the edited picture.

Three layouts are read as they are: such files in one folder (with or without the ``manifest.json`` that
generate_dataset.sh writes, there or in the folder above), and InstructPix2Pix's folders under a ``seeds.json``. A
``metadata.jsonl`` of triplets is read in ``edit_dataset``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.images import SUFFIXES
from ldm.errors import MissingFileError, UserError

MANIFEST = "manifest.json"
SIDES = {"0": "input", "1": "edited"}


@dataclass(frozen=True)
class Pair:
    """Two files that belong together, and what is known of them.

    instruction: the pair's own sentence, or None to make one from templates. source_word: what the input shows.
    photo: which photo the pair was made from (its name), or the id.
    """

    id: str
    input: Path
    edited: Path
    instruction: str | None = None
    source_word: str | None = None
    photo: str = ""


def missing_pairs(folder: Path) -> MissingFileError:
    """Return the error for a folder of pairs that is not there; it says so where there are photos instead."""
    root = folder.parent
    beside = list(root.iterdir()) if root.is_dir() else []
    made_here = any(p.is_dir() or p.name == "manifest.json" for p in beside)
    if not made_here and any(p.suffix.lower() in SUFFIXES for p in beside):
        return MissingFileError(
            f"'{root}' holds pictures, but no pairs ('{folder}'): make them with generate_dataset.sh --photos "
            f"'{root}', and train on its --output"
        )
    return MissingFileError(f"folder of pairs '{folder}' does not exist; generate_dataset.sh makes one")


def find_pairs(folder: str | Path) -> list[Pair]:
    """Return a folder's pairs, sorted by id. Raises MissingFileError for no folder or no pairs, and UserError for a
    picture without its partner or with two."""
    folder = Path(folder)
    if not folder.is_dir():
        raise missing_pairs(folder)
    if (folder / "seeds.json").is_file():
        pairs = list(_seeds_layout(folder))
    else:
        pairs = _flat_layout(folder)
    if not pairs:
        raise MissingFileError(f"'{folder}' holds no pairs; <id>_0.png (input) and <id>_1.png (edited) are expected")
    return sorted(pairs, key=lambda pair: _natural(pair.id))


def replacement_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs that ask for no other edit than the subject; all of them where each has its own sentence."""
    return [pair for pair in pairs if pair.instruction is None] or list(pairs)


def loose_pictures(folder: Path) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Return the pictures of a flat folder by id and side ("0", "1"), and what is wrong, one line each."""
    pictures: dict[str, dict[str, Path]] = {}
    wrong = []
    files = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    for path in sorted(p for p in files if p.suffix.lower() in SUFFIXES):
        match = re.fullmatch(r"(.+)_([01])", path.stem)
        if match is None:
            wrong.append(f"'{path.name}' is named neither <id>_0 nor <id>_1")
            continue
        sides = pictures.setdefault(match[1], {})
        if match[2] in sides:
            wrong.append(f"'{path.name}' and '{sides[match[2]].name}' are the same side of one pair")
        sides.setdefault(match[2], path)
    for name, sides in pictures.items():
        for side in SIDES.keys() - sides.keys():
            wrong.append(f"'{next(iter(sides.values())).name}' has no partner {name}_{side} ({SIDES[side]})")
    return pictures, wrong


def _flat_layout(folder: Path) -> list[Pair]:
    pictures, wrong = loose_pictures(folder)
    wrong = [line for line in wrong if "named neither" not in line]
    if wrong:
        raise UserError(f"in '{folder}': {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    known = {entry["id"]: entry for entry in manifest_entries(folder)}
    return [
        Pair(
            name,
            sides["0"],
            sides["1"],
            instruction=_own_instruction(known.get(name, {}), folder),
            source_word=known.get(name, {}).get("source_word"),
            photo=known.get(name, {}).get("photo", name),
        )
        for name, sides in pictures.items()
    ]


def _own_instruction(entry: dict[str, Any], folder: Path) -> str | None:
    text = entry.get("instruction")
    if text is not None and not (isinstance(text, str) and text.strip()):
        raise UserError(f"the manifest of '{folder}' has the instruction {text!r} for pair '{entry['id']}'")
    return text


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the ``manifest.json`` of a folder of pairs (there, or in the folder above), {} without one.

    Raises UserError for a file that is no manifest.
    """
    folder = folder.resolve()
    for place in (folder, folder.parent):
        path = place / MANIFEST
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                pairs = content["pairs"]
                if not isinstance(pairs, list) or not all(isinstance(e, dict) and "id" in e for e in pairs):
                    raise UserError("no list of pairs in it")
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise UserError(f"'{path}' is no manifest that can be read ({error})") from error
            return content
    return {}


def manifest_entries(folder: Path) -> list[dict[str, Any]]:
    """Return the manifest's entries about this folder's pairs."""
    folder = folder.resolve()
    entries = read_manifest(folder).get("pairs", [])
    return [entry for entry in entries if entry.get("folder", folder.name) == folder.name]


def _seeds_layout(folder: Path) -> Iterator[Pair]:
    try:
        listed = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
        rows = [(str(name), [str(seed) for seed in seeds]) for name, seeds in listed]
    except (ValueError, TypeError) as error:
        raise UserError(f"'{folder / 'seeds.json'}' is no list of [folder, seeds] ({error})") from error
    for name, seeds in rows:
        prompt = folder / name / "prompt.json"
        try:
            instruction = json.loads(prompt.read_text(encoding="utf-8"))["edit"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{prompt}' has no instruction under 'edit' ({error})") from error
        for seed in seeds:
            sides = [_picture(folder / name, f"{seed}_{side}") for side in SIDES]
            yield Pair(f"{name}/{seed}", *sides, instruction=instruction, photo=name)


def _picture(folder: Path, stem: str) -> Path:
    for suffix in SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise UserError(f"'{folder}' lacks the picture {stem} that seeds.json names")


def _natural(text: str) -> tuple:
    """Sort "2" before "10"."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text))
