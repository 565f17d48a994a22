"""PersonalizedEdit: instance pairs that show the subject, or regularization pairs that keep the class what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ldm.data import instructions as words
from ldm.data.augment import JointCrop, Size, to_common_aspect
from ldm.data.entries import EntryDataset
from ldm.data.images import open_rgb, to_tensor
from ldm.data.pairs import Pair, find_pairs, read_manifest
from ldm.errors import UserError


class PersonalizedEdit(EntryDataset):
    """Pairs of one stream: ``input`` and ``edited`` under one flip and crop, and an instruction."""

    def __init__(
        self,
        data_root: str,
        identifier: str = "sks",
        class_word: str | None = None,
        source_word: str | None = None,
        templates: Sequence[str] | None = None,
        reg: bool = False,
        repeats: int = 1,
        size: int = 256,
        min_resize: int | None = None,
        max_resize: int | None = None,
        crop: str = "center",
        flip: float = 0.5,
        seed: int = 0,
        held_out: float = 0.0,
        limit: int | None = None,
        aspect_buckets: int | None = None,
    ):
        """data_root: a folder of pairs (see ``ldm.data.pairs``).

        class_word, source_word: default: the manifest's; a pair's own source word in the manifest wins. templates:
        sentences with {identifier} {class_word} {source_word}; default upstream's. reg: these are regularization
        pairs: no identifier in their sentences. size, min_resize, max_resize, crop, flip, aspect_buckets: see
        ``JointCrop``; repeats, held_out, limit: see ``EntryDataset``.
        Raises UserError for what is missing or makes no sense.
        """
        pairs, known = find_pairs(data_root), read_manifest(Path(data_root))
        self.class_word = class_word or known.get("class_word")
        self.identifier, self.source_word = "" if reg else identifier, source_word
        default = words.REGULARIZATION_TEMPLATES if reg else words.INSTANCE_TEMPLATES
        self.templates = words.check_templates(templates or default, () if reg else ("identifier",))
        if not reg and not identifier.strip():
            raise UserError("the identifier is empty; give a rare word such as sks")
        self._check_words(pairs, data_root)
        view = JointCrop(size, min_resize, max_resize, crop, flip, aspect_buckets)
        super().__init__(pairs, [p.photo or p.id for p in pairs], view, reg, repeats, seed, held_out, limit)

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that are trained on."""
        return self.entries

    def _check_words(self, pairs: list[Pair], root: str) -> None:
        for pair in pairs:
            if pair.instruction is not None:
                continue
            for name, value in (
                ("class_word", self.class_word),
                ("source_word", pair.source_word or self.source_word),
            ):
                if not value and any("{" + name + "}" in template for template in self.templates):
                    raise UserError(f"'{root}' has no manifest that says the {name} of pair '{pair.id}'; give {name}")

    def sentence(self, pair: Pair, rng: np.random.Generator) -> str:
        """Return an instruction for a pair: its own, with the identifier in its place, or one of the templates."""
        if pair.instruction is not None:
            return words.with_identifier(pair.instruction, self.identifier)
        template = self.templates[int(rng.random() * len(self.templates))]
        return words.fill(template, self.identifier, self.class_word or "", pair.source_word or self.source_word or "")

    def pictures(
        self, pair: Pair, flip: bool, rng: np.random.Generator, size: Size | None = None
    ) -> dict[str, torch.Tensor]:
        """Return a pair's ``input`` and ``edited`` as one view shows them, each ``3 h w`` in [-1, 1]."""
        before, after = to_common_aspect(open_rgb(pair.input), open_rgb(pair.edited))
        view = self.view.draw(before.width / before.height, rng, flip, size)
        return {
            name: to_tensor(self.view.apply(image, view))[0] for name, image in (("input", before), ("edited", after))
        }

    def files(self, pair: Pair) -> list[Path]:
        """Return the pair's two paths."""
        return [pair.input, pair.edited]
