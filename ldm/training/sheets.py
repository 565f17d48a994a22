"""Sheets of diffusion models in training: what they make of fixed scenes and sentences."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.contact_sheet import contact_sheet
from ldm.data.edit_dataset import SPLITS, read_triplets, split_triplets
from ldm.data.images import check_aspect, find_photos, open_rgb, small
from ldm.data.instructions import INSTANCE_TEMPLATES, REGULARIZATION_TEMPLATES, fill
from ldm.data.pairs import find_pairs, read_manifest, replacement_pairs
from ldm.errors import UserError
from ldm.inference.editor import ImageEditor
from ldm.inference.generator import ImageGenerator
from ldm.inference.settings import EditSettings, TextSettings
from ldm.typed import settings as typed_settings

logger = logging.getLogger(__name__)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} of a sheet is {count}; a whole number from 1 is expected")


class PromptSheet:
    """Pictures of fixed sentences, several seeds each."""

    def __init__(self, prompts: Sequence[str], settings: dict[str, Any] | None = None, seeds: int = 4, cell: int = 128):
        """prompts: a column each; settings: of the sampling, see ``TextSettings``; seeds: rows."""
        if not prompts:
            raise UserError("a sheet of pictures from text needs at least one prompt")
        _check_counts(seeds=seeds, cell=cell)
        self.prompts, self.settings, self.seeds, self.cell = (
            list(prompts),
            typed_settings(TextSettings, settings, "training.sheet.params.settings"),
            seeds,
            cell,
        )

    def __call__(self, model: Any) -> Image.Image:
        """Return the sheet. model: a LatentDiffusion that makes pictures from text."""
        generator = ImageGenerator(model)
        columns = [generator.generate([text] * self.seeds, self.settings) for text in self.prompts]
        return contact_sheet(list(zip(*columns, strict=True)), column_labels=self.prompts, cell=self.cell)


class TripletSheet:
    """Triplets that training holds out: the input, what the model makes of it by the instruction, what was wanted."""

    def __init__(
        self,
        path: str,
        split: str = "val",
        splits: Sequence[float] = SPLITS,
        settings: dict[str, Any] | None = None,
        rows: int = 4,
        cell: int = 192,
    ):
        """path, split, splits: of an ``EditDataset``; where the split holds nothing (few triplets), triplets that are
        trained on are shown, with a warning. settings: of the edits, see ``EditSettings``; rows: how many triplets.
        The pictures are read now.

        Raises UserError for what is missing, damaged or too narrow to edit.
        """
        _check_counts(rows=rows, cell=cell)
        triplets = read_triplets(Path(path))
        chosen = split_triplets(triplets, split, splits)
        if not chosen:
            logger.warning("split '%s' of '%s' is empty: its sheets show triplets that are trained on", split, path)
        chosen = chosen or triplets
        rows = min(rows, len(chosen))
        self.settings, self.cell = typed_settings(EditSettings, settings, "training.sheet.params.settings"), cell
        self.triplets = [chosen[i * len(chosen) // rows] for i in range(rows)]
        self.pictures = [
            [small(open_rgb(path), self.settings.resolution) for path in (triplet.input, triplet.edited)]
            for triplet in self.triplets
        ]
        for before, _ in self.pictures:
            check_aspect(before.size)

    def __call__(self, model: Any) -> Image.Image:
        """Return the sheet. model: a LatentDiffusion that edits."""
        editor, rows = ImageEditor(model), []
        for i, (triplet, (before, wanted)) in enumerate(zip(self.triplets, self.pictures, strict=True)):
            rows.append([before, *editor.edit(before, triplet.instruction, self.settings, [i]), wanted])
        sentences = [triplet.instruction[:40] for triplet in self.triplets]
        return contact_sheet(rows, sentences, ["input", "edited", "wanted"], cell=self.cell)


class SubjectSheet:
    """Pictures of the source class to the left, then edited into the subject (with the identifier) and into the plain
    class (without it)."""

    def __init__(
        self,
        pictures: str,
        identifier: str,
        class_word: str | None = None,
        source_word: str | None = None,
        settings: dict[str, Any] | None = None,
        rows: int = 4,
        cell: int = 128,
    ):
        """pictures: a folder of regularization pairs, whose inputs are edited, or of any pictures; class_word,
        source_word: default the manifest's; settings: of the edits, see ``EditSettings``; rows: how many pictures.

        Raises UserError for what is missing.
        """
        _check_counts(rows=rows, cell=cell)
        folder = Path(pictures)
        manifest = read_manifest(folder)
        self.class_word = class_word or manifest.get("class_word")
        if not self.class_word:
            raise UserError(f"'{folder}' has no manifest that says the class_word; give dataset.class_word")
        try:
            pairs = find_pairs(folder)
            known = [(pair.input, pair.source_word) for pair in replacement_pairs(pairs)]
        except FileNotFoundError:
            known = [(path, None) for path in find_photos([str(folder)])]
        chosen = [known[i * len(known) // min(rows, len(known))] for i in range(min(rows, len(known)))]
        self.words = [word or source_word or "picture" for _, word in chosen]
        self.settings = typed_settings(EditSettings, settings, "training.sheet.params.settings")
        self.pictures = [small(open_rgb(path), self.settings.resolution) for path, _ in chosen]
        self.identifier, self.cell = identifier, cell

    def __call__(self, model: Any) -> Image.Image:
        """Return the sheet. model: a LatentDiffusion that edits."""
        editor = ImageEditor(model)
        rows = []
        for picture, word in zip(self.pictures, self.words, strict=True):
            texts = [
                fill(template, self.identifier, self.class_word, word)
                for template in (INSTANCE_TEMPLATES[0], REGULARIZATION_TEMPLATES[0])
            ]
            rows.append([picture, *editor.edit(picture, texts, self.settings, [0])])
        columns = ["input", f"a {self.identifier} {self.class_word}", f"a {self.class_word}"]
        return contact_sheet(rows, column_labels=columns, cell=self.cell)
