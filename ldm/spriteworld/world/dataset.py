"""The sprite world as training data: pictures, captioned pictures and edit triplets, each drawn when it is asked for.

Item i is a pure function of (seed, i): it does not matter which worker draws it, or when.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.spriteworld.world.scene import (
    COLOURS,
    PATTERNS,
    STYLES,
    Coat,
    Scene,
    coloured,
    draw,
    random_scene,
    subject_mask,
)
from ldm.spriteworld.world.sentences import KINDS, RARE_SHARE, Edit, caption, random_edit, with_coat

Item = dict[str, Any]
STYLED = ("class", "place", "accessory")  # the kinds of edits that a scene of any style allows
CONTRAST = 0.4  # about the standard deviation of brightness, of [-1, 1], in and around an animal by day


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"{name} is {share}; a share from 0 to 1 is expected")


def _check_kinds(kinds: dict[str, float]) -> None:
    for kind, weight in kinds.items():
        if kind not in KINDS:
            raise UserError(f"unknown kind of edit {kind!r} in kinds; known: {', '.join(KINDS)}")
        if not weight >= 0:
            raise UserError(f"kinds.{kind} is {weight}; a weight from 0 is expected")
    if not sum(kinds.values()) > 0:
        raise UserError("kinds has no weight above 0")


class SceneDataset(Dataset):
    """Items that are drawn from scenes, a pure function of the seed and their number."""

    def __init__(self, length: int, seed: int = 0, size: int = 64):
        """length: how many different items there are. seed: of all of them. size: pixels of a side."""
        if length < 1:
            raise UserError(f"length is {length}; a dataset needs at least 1 item")
        self.length, self.seed, self.size = length, seed, size

    def __len__(self) -> int:
        return self.length

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, int(index)])

    def _picture(self, scene: Scene) -> torch.Tensor:
        return to_tensor(draw(scene, self.size))[0]


class SpritePictures(SceneDataset):
    """Pictures for a first stage: ``edited`` (3 h w, [-1, 1]) and ``weight`` (1 h w, higher inside the animal).

    Many of the animals wear any two colours in any pattern, and half of those a collar, so that a subject's marks
    survive without being seen.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        size: int = 64,
        subject_weight: float = 4.0,
        crop: int | None = None,
        low_contrast: float = 1.0,
        any_coat: float = 0.5,
        any_hat: float = 0.0,
    ):
        """length, seed, size: see ``SceneDataset``.

        subject_weight: how much more a pixel of the animal counts than one of the background.
        crop: give only a window of so many pixels a side, its centre somewhere in the animal; None for whole pictures
        (a first stage is convolutional: it learns the details from windows at a fraction of the cost).
        low_contrast: how many times more a picture of no contrast in and around the animal may count (a dark animal at
        night); 1 for all alike.
        any_coat: the share of animals in any two colours and any pattern.
        any_hat: the share of animals that get a hat of any colour (an eighth of the others wear one).

        Raises UserError for a window that is larger than the picture, a factor below 1 or a share outside 0 to 1.
        """
        super().__init__(length, seed, size)
        if crop is not None and not 0 < crop <= size:
            raise UserError(f"crop is {crop} pixels; a picture has {size}")
        if low_contrast < 1:
            raise UserError(f"low_contrast is {low_contrast}; it is a factor of at least 1")
        _check_share("any_coat", any_coat)
        _check_share("any_hat", any_hat)
        self.subject_weight, self.crop, self.low_contrast = subject_weight, crop, low_contrast
        self.any_coat, self.any_hat = any_coat, any_hat

    def __getitem__(self, index: int) -> Item:
        """Return item ``index``."""
        rng = self._rng(index)
        scene = random_scene(rng)
        if rng.random() < self.any_coat:
            scene = random_scene(rng, coat=any_coat(rng), **_collar(rng))
        if self.any_hat and rng.random() < self.any_hat:
            scene = replace(scene, hat=str(rng.choice(tuple(COLOURS))))
        mask = torch.from_numpy(np.asarray(subject_mask(scene, self.size), dtype=np.float32) / 255)[None]
        picture = self._picture(scene)
        weight = pixel_weights(picture, mask, self.subject_weight, self.low_contrast)
        if self.crop is not None:
            top, left = self._window(rng, mask[0] > 0.5)
            inside = (..., slice(top, top + self.crop), slice(left, left + self.crop))
            picture, weight = picture[inside].clone(), weight[inside].clone()
        return {"edited": picture, "weight": weight}

    def _window(self, rng: np.random.Generator, mask: torch.Tensor) -> tuple[int, int]:
        rows, columns = np.nonzero(mask.numpy())
        at = rng.integers(len(rows))
        corner = (int(v) - self.crop // 2 for v in (rows[at], columns[at]))
        return tuple(min(max(v, 0), self.size - self.crop) for v in corner)


def any_coat(rng: np.random.Generator) -> Coat:
    """Return a coat of any two colours, strong and far apart more often than not, in any pattern.

    Each of red, green and blue is drawn from an arcsine law (near its ends in half of the cases), and of two second
    colours the one farther from the first is taken: an even draw hardly ever gives white marks on black.
    """
    main, *others = (np.rint(10 + 242 * np.sin(rng.random(3) * np.pi / 2) ** 2).astype(int) for _ in range(3))
    second = max(others, key=lambda other: float(np.linalg.norm(other - main)))
    return Coat(tuple(main.tolist()), tuple(second.tolist()), str(rng.choice(tuple(PATTERNS))))


def _collar(rng: np.random.Generator) -> dict[str, str]:
    return {"collar": str(rng.choice(tuple(COLOURS)))} if rng.random() < 0.5 else {}


def contrast(picture: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the standard deviation of brightness inside the animal's box. picture: ``3 h w``; mask: ``1 h w``."""
    rows, columns = torch.nonzero(mask[0] > 0.5, as_tuple=True)
    box = picture[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return max(float(box.mean(0).std()), 1e-3)


def pixel_weights(
    picture: torch.Tensor,
    mask: torch.Tensor,
    subject_weight: float,
    low_contrast: float = 1.0,
    also: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what each pixel counts, ``1 h w``: ``1 + subject_weight`` inside the animal, and up to ``low_contrast``
    times as much where it has no contrast. picture: ``3 h w``; mask, also (other places that matter): ``1 h w``."""
    inside = mask if also is None else torch.maximum(mask, also)
    return (1 + subject_weight * inside) * min(low_contrast, max(1.0, CONTRAST / contrast(picture, mask)))


class SpriteCaptions(SceneDataset):
    """Captioned pictures for text to image: ``edited`` and ``text``."""

    def __init__(self, length: int, seed: int = 0, size: int = 64, rare_share: float = RARE_SHARE):
        """rare_share: the share of captions with a meaningless rare word before the class word."""
        super().__init__(length, seed, size)
        self.rare_share = rare_share

    def __getitem__(self, index: int) -> Item:
        """Return item ``index``."""
        rng = self._rng(index)
        scene = random_scene(rng)
        if rng.random() < 0.2:
            coat = coloured(scene.coat, str(rng.choice(tuple(COLOURS))))
            scene = Scene(**{**scene.__dict__, "coat": coat, "style": "day"})
        return {"edited": self._picture(scene), "text": caption(scene, rng, self.rare_share)}


class SpriteTriplets(SceneDataset):
    """Edits: ``input`` and ``edited`` pictures (3 h w, [-1, 1]) and the instruction as ``text``."""

    def __init__(
        self,
        length: int,
        seed: int = 0,
        size: int = 64,
        rare_share: float = RARE_SHARE,
        any_coat: float = 0.0,
        any_style: float = 0.0,
        named_coat: float = 0.0,
        any_hat: float = 0.0,
        any_collar: float = 0.0,
        kinds: dict[str, float] | None = None,
    ):
        """length, seed, size: see ``SceneDataset``.

        rare_share: the share of class instructions with a meaningless rare word before the class word (of the other
        kinds, see ``random_edit``).
        any_coat: the share of inputs whose animal wears any two colours in any pattern; what does not ask for another
        coat keeps it.
        any_style: the share of class, place and accessory edits whose style is drawn evenly (three of four scenes are
        by day otherwise).
        named_coat: the share of class edits that say which coat the new animal wears ("a golden dog": nothing is left
        to luck).
        any_hat: the share of all but accessory edits whose animal gets a hat of any colour (an eighth of the others
        wear one): a head under a hat is the hardest to replace.
        any_collar: the same with a collar, which a swap else forgets.
        kinds: weights of the kinds of edits, those not named 0; None for ``KIND_SHARES``.

        Raises UserError for a share outside 0 to 1, an unknown kind or a weight below 0.
        """
        super().__init__(length, seed, size)
        shares = {"any_coat": any_coat, "any_style": any_style, "named_coat": named_coat}
        for name, share in {**shares, "any_hat": any_hat, "any_collar": any_collar}.items():
            _check_share(name, share)
        if kinds is not None:
            _check_kinds(kinds)
        self.rare_share, self.any_coat, self.any_style, self.kinds = rare_share, any_coat, any_style, kinds
        self.named_coat, self.any_hat, self.any_collar = named_coat, any_hat, any_collar

    def __getitem__(self, index: int) -> Item:
        """Return item ``index``."""
        edit = self.edit(index)
        pictures = {"input": self._picture(edit.source), "edited": self._picture(edit.target)}
        return {**pictures, "text": edit.instruction}

    def edit(self, index: int) -> Edit:
        """Return the scenes and the instruction of item ``index``."""
        rng = self._rng(index)
        kind = None
        if self.kinds is not None:
            weights = np.asarray(list(self.kinds.values()), dtype=np.float64)
            kind = str(rng.choice(list(self.kinds), p=weights / weights.sum()))
        edit, look = random_edit(rng, kind, rare_share=self.rare_share), {}
        if self.any_coat and rng.random() < self.any_coat:
            look["coat"] = any_coat(rng)
        if self.any_style and edit.kind in STYLED and rng.random() < self.any_style:
            look["style"] = str(rng.choice(STYLES))
        if self.any_hat and edit.kind != "accessory" and rng.random() < self.any_hat:
            look["hat"] = str(rng.choice(tuple(COLOURS)))
        if self.any_collar and edit.kind != "accessory" and rng.random() < self.any_collar:
            look["collar"] = str(rng.choice(tuple(COLOURS)))
        edit = random_edit(rng, edit.kind, replace(edit.source, **look), self.rare_share) if look else edit
        named = self.named_coat and edit.kind == "class" and rng.random() < self.named_coat
        return with_coat(edit) if named else edit
