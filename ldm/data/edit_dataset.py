"""EditDataset: instruction triplets for InstructPix2Pix, in the published folder format or as a list of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ldm.data.augment import JointCrop, Size, to_common_aspect
from ldm.data.entries import EntryDataset
from ldm.data.images import open_rgb, to_tensor
from ldm.data.pairs import Pair, find_pairs
from ldm.errors import MissingFileError, UserError

ROWS = "metadata.jsonl"
SPLITS = (0.9, 0.05, 0.05)  # upstream's shares of train, val and test
# The column names of public triplet sets, the project's own first.
COLUMNS = {
    "input": ("input", "input_image", "original_image", "source_image", "input_file_name", "original_image_file_name"),
    "edited": ("edited", "edited_image", "target_image", "output_image", "edited_file_name", "edited_image_file_name"),
    "instruction": ("instruction", "edit", "edit_prompt", "prompt", "text"),
}


class EditDataset(EntryDataset):
    """Triplets: ``input`` and ``edited`` under one flip and crop, and the instruction. Upstream's parameter names."""

    def __init__(
        self,
        path: str,
        split: str = "train",
        splits: Sequence[float] = SPLITS,
        min_resize_res: int = 256,
        max_resize_res: int = 256,
        crop_res: int = 256,
        flip_prob: float = 0.0,
        seed: int = 0,
        repeats: int = 1,
    ):
        """path: a folder with InstructPix2Pix's ``seeds.json``, or with ``metadata.jsonl`` (a row for each triplet:
        the two files and the sentence, see ``COLUMNS``). split: "train", "val" or "test", by ``splits`` of the sorted
        list. A picture covers min_resize_res to max_resize_res pixels before crop_res are cut out at random (in the
        centre where both are crop_res).

        Raises UserError for what is missing or makes no sense.
        """
        triplets = read_triplets(Path(path))
        chosen = split_triplets(triplets, split, splits)
        if not chosen:
            raise UserError(f"split '{split}' of '{path}' holds none of its {len(triplets)} triplets")
        crop = "center" if min_resize_res == max_resize_res == crop_res else "random"
        view = JointCrop(crop_res, min_resize_res, max_resize_res, crop, flip_prob)
        super().__init__(chosen, [t.photo or t.id for t in chosen], view, False, repeats, seed, 0.0, None)

    def sentence(self, triplet: Pair, rng: np.random.Generator) -> str:
        """Return the triplet's instruction."""
        return triplet.instruction

    def pictures(
        self, triplet: Pair, flip: bool, rng: np.random.Generator, size: Size | None = None
    ) -> dict[str, torch.Tensor]:
        """Return ``input`` and ``edited`` as one view shows them, each ``3 h w`` in [-1, 1]."""
        before, after = to_common_aspect(open_rgb(triplet.input), open_rgb(triplet.edited))
        view = self.view.draw(before.width / before.height, rng, flip, size)
        sides = {"input": before, "edited": after}
        return {name: to_tensor(self.view.apply(image, view))[0] for name, image in sides.items()}

    def files(self, triplet: Pair) -> list[Path]:
        """Return the triplet's two paths."""
        return [triplet.input, triplet.edited]


def split_triplets(triplets: list[Pair], split: str, splits: Sequence[float] = SPLITS) -> list[Pair]:
    """Return the "train", "val" or "test" part of a sorted list, by shares; it may be empty. Raises UserError for
    another name or shares that do not add up to 1."""
    names = ("train", "val", "test")
    if split not in names:
        raise UserError(f"unknown split '{split}'; known: {', '.join(names)}")
    if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise UserError(f"splits are {list(splits)}; three shares that add up to 1 are expected")
    ends = [round(sum(splits[: i + 1]) * len(triplets)) for i in range(3)]
    first = names.index(split)
    return triplets[ends[first - 1] if first else 0 : ends[first]]


def read_triplets(folder: Path) -> list[Pair]:
    """Return a folder's triplets, sorted. Raises MissingFileError for none, UserError for a row that cannot be read
    or a pair without its instruction."""
    if not folder.is_dir():
        raise MissingFileError(f"folder of triplets '{folder}' does not exist")
    if (folder / ROWS).is_file():
        return _rows(folder)
    triplets = find_pairs(folder)
    bare = next((triplet.id for triplet in triplets if triplet.instruction is None), None)
    if bare is not None:
        raise UserError(
            f"'{folder}' holds pairs without instructions, such as '{bare}'; a seeds.json or a {ROWS} is expected"
        )
    return triplets


def _rows(folder: Path) -> list[Pair]:
    triplets = []
    for number, line in enumerate((folder / ROWS).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of '{folder / ROWS}'"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is no mapping of columns to values")
        fields = {}
        for name, columns in COLUMNS.items():
            column = next((c for c in columns if isinstance(row.get(c), str) and row[c].strip()), None)
            if column is None:
                raise UserError(f"{where} lacks the {name}; a column {', '.join(columns[:3])} ... is expected")
            fields[name] = row[column]
        for name in ("input", "edited"):
            if not (folder / fields[name]).is_file():
                raise MissingFileError(f"{where} names '{fields[name]}', which does not exist")
        paths = (folder / fields["input"], folder / fields["edited"])
        triplets.append(Pair(f"{number:08d}", *paths, instruction=fields["instruction"], photo=fields["input"]))
    if not triplets:
        raise MissingFileError(f"'{folder / ROWS}' is empty")
    return triplets
