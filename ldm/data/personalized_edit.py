"""PersonalizedEdit: instance pairs that show the subject, or regularization pairs that keep the class what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ldm.data import instructions as words
from ldm.data.augment import JointCrop, to_common_aspect
from ldm.data.images import open_rgb, to_tensor
from ldm.data.pairs import Pair, find_pairs, read_manifest


class PersonalizedEdit(Dataset):
    """Pairs of one stream. An item is a pure function of (seed, index, visit): flip, crop and wording are drawn anew at
    each visit, the same for both pictures."""

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
    ):
        """data_root: a folder of pairs (see ``ldm.data.pairs``).

        class_word, source_word: default: the manifest's; a pair's own source word in the manifest wins. templates:
        sentences with {identifier} {class_word} {source_word}; default upstream's. reg: these are regularization
        pairs: no identifier in their sentences. repeats: how often each pair counts in an epoch. size, min_resize,
        max_resize, crop, flip: see ``JointCrop``. held_out: share of the photos kept for validation (all pairs of a
        photo go together; none are kept below eight photos). limit: use the first so many pairs only.
        Raises FileNotFoundError or ValueError for what is missing or makes no sense.
        """
        if repeats < 1:
            raise ValueError(f"repeats is {repeats}; at least 1 is needed")
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out is {held_out}; a share from 0 to below 1 is expected")
        pairs, known = find_pairs(data_root), read_manifest(Path(data_root))
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; at least 1 pair is needed")
        pairs = pairs[:limit]
        self.class_word = class_word or known.get("class_word")
        self.identifier = "" if reg else identifier
        self.source_word, self.reg, self.seed, self.repeats = source_word, reg, seed, repeats
        default = words.REGULARIZATION_TEMPLATES if reg else words.INSTANCE_TEMPLATES
        self.templates = words.check_templates(templates or default, () if reg else ("identifier",))
        if not reg and not identifier.strip():
            raise ValueError("the identifier is empty; give a rare word such as sks")
        self._check_words(pairs, data_root)
        self.pairs, self.held_out = _split(pairs, held_out)
        self.view = JointCrop(size, min_resize, max_resize, crop, flip)

    def _check_words(self, pairs: list[Pair], root: str) -> None:
        for pair in pairs:
            if pair.instruction is not None:
                continue
            for name, value in (
                ("class_word", self.class_word),
                ("source_word", pair.source_word or self.source_word),
            ):
                if not value and any("{" + name + "}" in template for template in self.templates):
                    raise ValueError(f"'{root}' has no manifest that says the {name} of pair '{pair.id}'; give {name}")

    def __len__(self) -> int:
        return len(self.pairs) * self.repeats

    def sentence(self, pair: Pair, rng: np.random.Generator) -> str:
        """Return an instruction for a pair: its own, or one of the templates."""
        if pair.instruction is not None:
            return pair.instruction
        template = self.templates[int(rng.random() * len(self.templates))]
        return words.fill(template, self.identifier, self.class_word or "", pair.source_word or self.source_word or "")

    def draw(self, index: int, visit: int = 0) -> tuple[int, bool, str, np.random.Generator]:
        """Return which pair item ``index`` is at its visit, whether it is mirrored, its sentence, and the generator
        that the crop is drawn from."""
        rng = np.random.default_rng([self.seed, int(self.reg), index, visit])
        which = index % len(self.pairs)
        return which, bool(rng.random() < self.view.flip), self.sentence(self.pairs[which], rng), rng

    def item(self, index: int, visit: int = 0) -> dict[str, Any]:
        """Return ``input`` and ``edited`` (3 h w, [-1, 1]), ``text`` and ``is_reg``."""
        which, flip, text, rng = self.draw(index, visit)
        before, after = self.pictures(self.pairs[which], flip, rng)
        return {"input": before, "edited": after, "text": text, "is_reg": torch.tensor(self.reg)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.item(index)

    def pictures(self, pair: Pair, flip: bool, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pair's pictures as one view shows them, each ``3 h w`` in [-1, 1]."""
        before, after = self._opened(pair)
        view = self.view.draw(before.width / before.height, rng, flip)
        return tuple(to_tensor(self.view.apply(image, view))[0] for image in (before, after))

    def _opened(self, pair: Pair) -> tuple[Image.Image, Image.Image]:
        return to_common_aspect(open_rgb(pair.input), open_rgb(pair.edited))


def _split(pairs: list[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Return (training, held out): whole photos, spread over the list; nothing is held out below eight photos."""
    photos = list(dict.fromkeys(pair.photo or pair.id for pair in pairs))
    n = min(round(len(photos) * share), len(photos) - 1) if len(photos) >= 8 else 0
    chosen = {photos[(2 * i + 1) * len(photos) // (2 * n)] for i in range(n)}
    return (
        [p for p in pairs if (p.photo or p.id) not in chosen],
        [p for p in pairs if (p.photo or p.id) in chosen],
    )
