"""What ``check_dataset.py`` does: the findings as lines, and a sheet of pairs as the model will see them."""

from __future__ import annotations

import argparse

from ldm.data.check import check_identifier, check_pairs
from ldm.data.images import save_image, to_images
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.inference.sheets import contact_sheet
from ldm.modules.text import encode_words


def check_dataset(args: argparse.Namespace) -> tuple[list[str], int]:
    """Return report lines and the number of errors; write the sheet where there are none.

    Raises FileNotFoundError for a folder that is not there, ValueError for words that are missing.
    """
    folders = [args.folder / name for name in ("training", "regularization") if (args.folder / name).is_dir()]
    lines, errors, rows, labels = [], 0, [], []
    for folder in folders or [args.folder]:
        found = check_pairs(folder)
        sizes = ", ".join(f"{w} x {h} ({n})" for (w, h), n in sorted(found.sizes.items(), key=lambda i: -i[1])[:4])
        lines.append(f"{folder}: {len(found.pairs)} pairs; pictures of {sizes or 'no size'}")
        lines += [f"  error: {line}" for line in found.errors] + [f"  look at this: {line}" for line in found.warnings]
        errors += len(found.errors)
        if not found.errors:
            more_rows, more_labels = _seen(folder, args, reg=folder.name == "regularization")
            rows, labels = rows + more_rows, labels + more_labels
    warnings = check_identifier(args.identifier, encode_words)
    lines += [f"look at this: {line}" for line in warnings]
    if not warnings:
        lines.append(f"identifier '{args.identifier}': one rare token ({encode_words(args.identifier)[0]})")
    if rows:
        path = args.sheet or args.folder / "training-view.png"
        save_image(contact_sheet(rows, labels, ["input", "edited"] * 3, "what training sees", cell=128), path)
        lines.append(f"what training sees: {path}")
    return lines, errors


def _seen(folder, args: argparse.Namespace, reg: bool, rows: int = 3, columns: int = 3) -> tuple[list, list[str]]:
    dataset = PersonalizedEdit(str(folder), args.identifier, args.class_word, args.source_word, reg=reg, size=args.size)
    pictures, labels = [], []
    for r in range(rows):
        row = []
        for c in range(columns):
            item = dataset.item((r * columns + c) % len(dataset), visit=r)
            row += [to_images(item[side][None])[0] for side in ("input", "edited")]
        pictures.append(row)
        labels.append(item["text"][:48])
    return pictures, labels
