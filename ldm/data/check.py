"""Look over a folder of pairs before it is trained on: files, sizes, near-duplicates, alignment, and the identifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import open_rgb, save_image, to_images
from ldm.data.pairs import Pair, find_pairs, loose_pictures, read_manifest
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.errors import MissingFileError, UserError
from ldm.modules.text import encode_words

SMALL = 64  # pixels of a side below which a picture has little to teach at full size
LOOK = 32  # pixels of a side at which pictures are compared
DUPLICATE = 0.015  # root mean square difference below which two pictures are taken for the same
MIRRORED = 0.15  # how much better the mirrored picture has to fit
UNRELATED = 0.1  # correlation below which the two pictures of a pair show different things
RARE_TOKEN = 40_000
COMMON_TOKEN = 20_000  # CLIP's vocabulary is sorted by frequency: whole words below this are common


@dataclass
class Findings:
    """What was found: errors stop a training, warnings are worth a look."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)


def check_pairs(folder: Path) -> Findings:
    """Return what is wrong with a folder of pairs. Raises MissingFileError without such a folder, or pictures."""
    findings = Findings()
    if not folder.is_dir():
        raise MissingFileError(f"folder of pairs '{folder}' does not exist")
    if not (folder / "seeds.json").is_file():
        _, wrong = loose_pictures(folder)
        if wrong:
            findings.errors += [line for line in wrong if "named neither" not in line]
            findings.warnings += [line for line in wrong if "named neither" in line]
    try:
        findings.pairs = find_pairs(folder)
    except ValueError as error:
        findings.errors.append(str(error))
        return findings
    looks: dict[str, list[tuple[Path, np.ndarray]]] = {"input": [], "edited": []}
    for pair in findings.pairs:
        sides = {}
        for name, path in (("input", pair.input), ("edited", pair.edited)):
            try:
                image = open_rgb(path)
            except ValueError as error:
                findings.errors.append(str(error))
                continue
            findings.sizes[image.size] = findings.sizes.get(image.size, 0) + 1
            if min(image.size) < SMALL:
                findings.warnings.append(f"'{path.name}' is only {image.width} x {image.height} pixels")
            sides[name] = image
            looks[name].append((path, look(image)))
        if len(sides) == 2:
            findings.warnings += misaligned(pair, sides["input"], sides["edited"])
    for name, pictures in looks.items():
        findings.warnings += duplicates(name, pictures)
    return findings


def look(image: Image.Image) -> np.ndarray:
    """Return a picture at 32 x 32, ``(32, 32, 3)`` in [0, 1]."""
    return np.asarray(image.resize((LOOK, LOOK), Image.Resampling.BOX), dtype=np.float64) / 255


def misaligned(pair: Pair, before: Image.Image, after: Image.Image) -> list[str]:
    """Return warnings about a pair whose pictures do not lie over each other: another shape, mirrored, unrelated."""
    ratio = (before.width / before.height) / (after.width / after.height)
    if not 0.8 < ratio < 1.25:
        return [
            f"pair {pair.id}: the input is {before.width} x {before.height}, the edited picture {after.width} x "
            f"{after.height}; both are cropped to one shape"
        ]
    a, b = look(before).mean(-1), look(after).mean(-1)
    straight, mirrored = correlation(a, b), correlation(a, b[:, ::-1])
    if mirrored > straight + MIRRORED:
        return [f"pair {pair.id}: the edited picture fits the mirrored input better; was one of them flipped?"]
    if max(straight, mirrored) < UNRELATED:
        return [f"pair {pair.id}: the two pictures show nothing in common"]
    return []


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of two arrays; 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size > 1e-9 else 0.0


def duplicates(side: str, pictures: list[tuple[Path, np.ndarray]], most: int = 10) -> list[str]:
    """Return warnings about pictures of one side that look alike. Edited pictures of the same photo, made twice on
    purpose, have equal pixels and are not named."""
    alike = []
    for i, (path, a) in enumerate(pictures):
        for other, b in pictures[i + 1 :]:
            difference = np.sqrt(np.square(a - b).mean())
            if 0 < difference < DUPLICATE or (side == "input" and difference == 0):
                alike.append(f"'{path.name}' and '{other.name}' ({side}) look alike")
    more = len(alike) - most
    return [*alike[:most], f"and {more} more that look alike ({side})"] if more > 0 else alike


def check_identifier(identifier: str, encode: Callable[[str], list[int]]) -> list[str]:
    """Return warnings about an identifier: of several tokens, or a common word; with rare single tokens instead.

    encode: from a text to CLIP's token ids, without start and end. "sks", the usual choice, is one rare token (48136).
    """
    ids = encode(identifier)
    if len(ids) == 1 and ids[0] >= COMMON_TOKEN:
        return []
    what = f"is {len(ids)} tokens" if len(ids) != 1 else "is a common word"
    return [
        f"the identifier '{identifier}' {what}; a rare single one is easier to teach: {', '.join(rare_tokens(encode))}"
    ]


def rare_tokens(encode: Callable[[str], list[int]], count: int = 5) -> list[str]:
    """Return short words without meaning that are one rare token each."""
    letters, tokens = "bcdfghjklmnpqrstvwxz", []
    for first in "sxzqvkjwbh"[: 2 * count]:
        words = (first + b + c for b in letters for c in letters)
        rare = next((word for word in words if len(ids := encode(word)) == 1 and ids[0] > RARE_TOKEN), None)
        if rare is not None:
            tokens.append(rare)
    return tokens[:count]


@dataclass(frozen=True)
class CheckRequest:
    """What ``check_dataset.py`` is asked for.

    folder: what generate_dataset.sh made, or one folder of pairs. identifier: the rare word. class_word, source_word:
    default: the manifest's. size: pixels that training sees. sheet: where the sheet goes (default: in the folder).
    """

    folder: Path
    identifier: str = "sks"
    class_word: str | None = None
    source_word: str | None = None
    size: int = 256
    sheet: Path | None = None


def check_dataset(request: CheckRequest) -> tuple[list[str], int]:
    """Return report lines and the number of errors; write the sheet of the folders that have none.

    Where nothing says what the pairs show, the sheet's sentences have a placeholder, and a line names the flag to
    give. Raises MissingFileError if the folder is not there.
    """
    root = request.folder
    if not root.is_dir():
        raise MissingFileError(f"folder of pairs '{root}' does not exist")
    folders = [root / name for name in ("training", "regularization") if (root / name).is_dir()]
    lines, errors, rows, labels = [], 0, [], []
    missing: dict[str, str] = {}
    for folder in folders or [root]:
        try:
            findings = check_pairs(folder)
        except UserError as error:
            findings = Findings(errors=[str(error)])
        if not findings.errors:
            words = _missing_words(folder, findings, request)
            try:
                more_rows, more_labels = _training_view(folder, request, words)
                rows, labels, missing = rows + more_rows, labels + more_labels, {**missing, **words}
            except UserError as error:
                findings.errors.append(str(error))
        lines += _lines(folder, findings)
        errors += len(findings.errors)
    if missing:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        lines.append(f"look at this: no manifest says what the pairs show, and training must know; give {flags}")
    warnings = check_identifier(request.identifier, encode_words)
    lines += [f"look at this: {line}" for line in warnings]
    if not warnings:
        lines.append(f"identifier '{request.identifier}': one rare token ({encode_words(request.identifier)[0]})")
    if rows:
        path = request.sheet or root / "training-view.png"
        save_image(contact_sheet(rows, labels, ["input", "edited"] * 3, "what training sees", cell=128), path)
        lines.append(f"what training sees: {path}")
    return lines, errors


def _lines(folder: Path, findings: Findings) -> list[str]:
    """The report of one folder."""
    sizes = ", ".join(f"{w} x {h} ({n})" for (w, h), n in sorted(findings.sizes.items(), key=lambda i: -i[1])[:4])
    return [
        f"{folder}: {len(findings.pairs)} pairs; pictures of {sizes or 'no size'}",
        *(f"  error: {line}" for line in findings.errors),
        *(f"  look at this: {line}" for line in findings.warnings),
    ]


def _missing_words(folder: Path, findings: Findings, request: CheckRequest) -> dict[str, str]:
    """The words that a folder's sentences need and nobody gave, each with what stands for it on the sheet."""
    bare = [pair for pair in findings.pairs if pair.instruction is None]
    missing = {}
    if bare and not (request.class_word or read_manifest(folder).get("class_word")):
        missing["class_word"] = "[class]"
    if not request.source_word and any(not pair.source_word for pair in bare):
        missing["source_word"] = "[source]"
    return missing


def _training_view(
    folder: Path, request: CheckRequest, words: dict[str, str], rows: int = 3, columns: int = 3
) -> tuple[list, list[str]]:
    """Rows of a folder's pairs as training sees them, and a sentence of each row."""
    known = {"class_word": request.class_word, "source_word": request.source_word, **words}
    reg = folder.name == "regularization"
    dataset = PersonalizedEdit(str(folder), request.identifier, **known, reg=reg, size=request.size)
    pictures, labels = [], []
    for r in range(rows):
        row = []
        for c in range(columns):
            item = dataset.item((r * columns + c) % len(dataset), visit=r)
            row += [to_images(item[side][None])[0] for side in ("input", "edited")]
        pictures.append(row)
        labels.append(item["text"][:48])
    return pictures, labels
