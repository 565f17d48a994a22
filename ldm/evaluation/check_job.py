"""What ``check_dataset.py`` does: the findings as lines, and a sheet of pairs as the model will see them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.data.check import Findings, check_identifier, check_pairs
from ldm.data.images import save_image, to_images
from ldm.data.pairs import read_manifest
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.inference.sheets import contact_sheet
from ldm.modules.text import encode_words


def check_dataset(args: argparse.Namespace) -> tuple[list[str], int]:
    """Return report lines and the number of errors; write the sheet of the folders that have none.

    Where nothing says what the pairs show, the sheet's sentences have a placeholder, and a line names the flag to
    give. Raises FileNotFoundError if ``args.folder`` is not there.
    """
    if not args.folder.is_dir():
        raise FileNotFoundError(f"folder of pairs '{args.folder}' does not exist")
    folders = [args.folder / name for name in ("training", "regularization") if (args.folder / name).is_dir()]
    lines, errors, rows, labels = [], 0, [], []
    missing: dict[str, str] = {}
    for folder in folders or [args.folder]:
        try:
            found = check_pairs(folder)
        except (ValueError, FileNotFoundError) as error:
            found = Findings(errors=[str(error)])
        if not found.errors:
            words = _missing_words(folder, found, args)
            try:
                more_rows, more_labels = _seen(folder, args, words, reg=folder.name == "regularization")
                rows, labels, missing = rows + more_rows, labels + more_labels, {**missing, **words}
            except (ValueError, FileNotFoundError) as error:
                found.errors.append(str(error))
        sizes = ", ".join(f"{w} x {h} ({n})" for (w, h), n in sorted(found.sizes.items(), key=lambda i: -i[1])[:4])
        lines.append(f"{folder}: {len(found.pairs)} pairs; pictures of {sizes or 'no size'}")
        lines += [f"  error: {line}" for line in found.errors] + [f"  look at this: {line}" for line in found.warnings]
        errors += len(found.errors)
    if missing:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        lines.append(f"look at this: no manifest says what the pairs show, and training must know; give {flags}")
    warnings = check_identifier(args.identifier, encode_words)
    lines += [f"look at this: {line}" for line in warnings]
    if not warnings:
        lines.append(f"identifier '{args.identifier}': one rare token ({encode_words(args.identifier)[0]})")
    if rows:
        path = args.sheet or args.folder / "training-view.png"
        save_image(contact_sheet(rows, labels, ["input", "edited"] * 3, "what training sees", cell=128), path)
        lines.append(f"what training sees: {path}")
    return lines, errors


def _missing_words(folder: Path, found: Findings, args: argparse.Namespace) -> dict[str, str]:
    """The words that a folder's sentences need and nobody gave, each with what stands for it on the sheet."""
    bare = [pair for pair in found.pairs if pair.instruction is None]
    missing = {}
    if bare and not (args.class_word or read_manifest(folder).get("class_word")):
        missing["class_word"] = "[class]"
    if not args.source_word and any(not pair.source_word for pair in bare):
        missing["source_word"] = "[source]"
    return missing


def _seen(
    folder: Path, args: argparse.Namespace, words: dict[str, str], reg: bool, rows: int = 3, columns: int = 3
) -> tuple[list, list[str]]:
    given = {"class_word": args.class_word, "source_word": args.source_word, **words}
    dataset = PersonalizedEdit(str(folder), args.identifier, **given, reg=reg, size=args.size)
    pictures, labels = [], []
    for r in range(rows):
        row = []
        for c in range(columns):
            item = dataset.item((r * columns + c) % len(dataset), visit=r)
            row += [to_images(item[side][None])[0] for side in ("input", "edited")]
        pictures.append(row)
        labels.append(item["text"][:48])
    return pictures, labels
