"""Measures of pictures that answer drawn scenes, by the scenes' exact answers and by the shipped recogniser.

Pictures are ``n 3 h w`` in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab

from ldm.evaluation.measures import Measure, similarity
from ldm.evaluation.sources import PRIOR, repeated
from ldm.project import SPRITEWORLD
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging.recogniser import Recogniser, load_recogniser
from ldm.spriteworld.judging.surroundings import surroundings
from ldm.spriteworld.world.scene import COLOURS, SUBJECTS, Scene
from ldm.spriteworld.world.tensors import masks, pictures

_FIRST, _MIDDLE, _LAST = (
    "background kept (dB)",
    "DINO",
    "PRES",
)  # columns of the field's measures that ours stand before
COLUMNS: dict[str, Measure] = {
    "subject recognised": Measure("sprite world: the recogniser sees this very subject", before=_FIRST),
    "instruction done": Measure("sprite world: what was asked can be seen in the picture", before=_FIRST),
    "second subject": Measure(
        "sprite world: something new stands elsewhere in an edited picture", "low", before=_MIDDLE
    ),
    "exact (dB)": Measure("sprite world: PSNR against the exact answer", digits=1, before=_MIDDLE),
    "cleanness": Measure("sprite world: total variation over the exact answer's; 1 is as clean", "one", before=_MIDDLE),
    "leak": Measure(
        "sprite world: the subject is recognised though only its class was asked for", "low", prior=True, before=_LAST
    ),
    "PRES (recogniser)": Measure(
        "sprite world: cosine of the recogniser's features of plain class samples to the subject's photos",
        "low",
        3,
        prior=True,
        likeness=True,
        before=_LAST,
    ),
    "class right": Measure("sprite world: the class that was asked for is recognised", prior=True, before=_LAST),
    "DIV (recogniser)": Measure(
        "sprite world: 1 - cosine of the recogniser's features between class samples: higher keeps the prior",
        digits=3,
        pairs=True,
        prior=True,
        before=_LAST,
    ),
    "variety": Measure(
        "sprite world: mean CIELAB distance between class samples (8 x 8 averages)",
        digits=1,
        pairs=True,
        prior=True,
        before=_LAST,
    ),
}
COLOUR_NEAR = 20.0  # CIELAB: a pixel that near to a shade of a colour has the colour
TELLABLE = ("red", "yellow", "blue", "purple", "pink")  # no place has as much of them as a hat
COLOUR_ENOUGH = 0.4  # of the true picture's share of such pixels


@dataclass(frozen=True)
class Asked:
    """What a case asks of its scenes.

    kind, reach: as in ``Task``. class_word: what the subject is. subject: its name in the sprite world, None if it is
    not of it. answer: what the exact answer changes.
    """

    kind: str
    reach: str
    class_word: str
    subject: str | None = None
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """Scenes before and after. x, truth: their pictures. was, will: where the animal stands, ``n 1 h w`` in [0, 1]."""

    before: Sequence[Scene]
    after: Sequence[Scene]
    x: torch.Tensor
    truth: torch.Tensor
    was: torch.Tensor
    will: torch.Tensor

    @classmethod
    def of(cls, before: list[Scene], after: list[Scene]) -> Drawn:
        """Draw the scenes."""
        return cls(before, after, pictures(before), pictures(after), masks(before), masks(after))

    def times(self, n: int) -> Drawn:
        """Return the scenes in turn until there are n; n: a multiple of their number."""
        k = n // len(self.x)
        tensors = (repeated(of, n) for of in (self.x, self.truth, self.was, self.will))
        return Drawn(list(self.before) * k, list(self.after) * k, *tensors)


@lru_cache
def recogniser() -> Recogniser:
    """Return the shipped recogniser, read once. Raises UserError if it is not there."""
    return load_recogniser(SPRITEWORLD / "recogniser.safetensors")


def exact_measures(
    asked: Asked, scenes: Drawn, x: torch.Tensor, photos: torch.Tensor | None = None, edited: bool = True
) -> dict[str, torch.Tensor]:
    """Return the measures of pictures that answer drawn scenes, one figure a picture each.

    asked: what the case asks for. x: ``n 3 h w``, the scenes in turn. photos: the subject's, ``k 3 h w``, None for
    none. edited: False for pictures made from text alone, where everything stands elsewhere and a second subject cannot
    be told.

    What is asked of the whole class ("prior") is measured by leak, by how alike the subject's photos it is, and by how
    much its samples differ; everything else by what was asked.
    """
    scenes = scenes.times(len(x))
    measures = _of_class(asked, x, photos) if asked.kind == PRIOR else _of_subject(asked, scenes, x, edited)
    if asked.reach == "local":
        measures["background kept (dB)"] = m.background_psnr(x, scenes.x, scenes.was, scenes.will)
        measures["background L1"] = m.background_l1(x, scenes.x, scenes.was, scenes.will)
        if edited:
            measures["second subject"] = m.second_subject(x, scenes.x, scenes.was, scenes.will)
    if asked.kind != PRIOR:
        measures["exact (dB)"] = m.exact_psnr(x, scenes.truth)
    measures["cleanness"] = m.roughness(x, scenes.truth)
    return measures


def _of_class(asked: Asked, x: torch.Tensor, photos: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the measures of plain class samples."""
    judge, measures = recogniser(), {}
    if asked.subject:
        measures["leak"] = judge.is_subject(x, asked.subject).float()
        if photos is not None:
            measures["PRES (recogniser)"] = similarity(judge.described(x), judge.described(photos))
    measures["class right"] = torch.tensor([a == asked.class_word for a in judge.animals(x)]).float()
    measures["DIV (recogniser)"] = apartness(judge.described(x))
    measures["variety"] = variety(x)
    return measures


def _of_subject(asked: Asked, scenes: Drawn, x: torch.Tensor, edited: bool) -> dict[str, torch.Tensor]:
    """Return whether the subject is there (where its colours are meant to stay) and what was asked is done."""
    measures = {}
    if asked.subject and "colour" not in asked.answer and asked.answer.get("style") != "grey":
        measures["subject recognised"] = recogniser().is_subject(x, asked.subject).float()
    done = instruction_done(asked.answer, scenes, x, edited)
    if done is not None:
        measures["instruction done"] = done
    return measures


def instruction_done(
    answer: Mapping[str, Any], scenes: Drawn, x: torch.Tensor, edited: bool = True
) -> torch.Tensor | None:
    """Return 1 where what was asked can be seen, wherever it stands in the picture; None if that cannot be told.

    answer: what the exact answer changes. scenes: as many as there are pictures ``x``, ``n 3 h w``. edited: False for
    pictures made from text alone, where everything stands elsewhere, so that a stance cannot be told.

    A replacement is done when the animal is of the class that was asked for: which one of its class it is, a frozen
    editor was not told, and "subject recognised" says it. A stance is taken up when the picture is nearer to the true
    one than to the input where those two differ.
    """
    if answer.get("subject") or answer.get("animal"):
        wanted = answer.get("animal") or SUBJECTS[answer["subject"]].class_word
        return torch.tensor([animal == wanted for animal in recogniser().animals(x)]).float()
    if answer.get("place"):
        return torch.tensor([place == answer["place"] for place, _ in surroundings(x)]).float()
    if answer.get("style"):
        return torch.tensor([style == answer["style"] for _, style in surroundings(x)]).float()
    for key in ("colour", "hat", "collar"):
        if answer.get(key) in TELLABLE:
            colour = answer[key]
            return (colour_share(x, colour) >= COLOUR_ENOUGH * colour_share(scenes.truth, colour)).float()
    if answer.get("stance") and edited:
        return m.nearer_to_truth(x, scenes.x, scenes.truth)
    return None


def colour_share(x: torch.Tensor, colour: str) -> torch.Tensor:
    """Return the share of a picture's pixels that have a named colour, or its shade, ``(n,)``."""
    lab = rgb_to_lab(((x + 1) / 2).clamp(0, 1))
    base = torch.tensor(COLOURS[colour], dtype=torch.float32) / 255
    shades = rgb_to_lab(torch.stack([base * f for f in (1.0, 0.9, 0.8)])[:, :, None, None])
    distance = torch.stack([(lab - shade).norm(dim=1) for shade in shades]).amin(0)
    return (distance < COLOUR_NEAR).float().flatten(1).mean(1)


def apartness(features: torch.Tensor) -> torch.Tensor:
    """Return each picture's mean distance (1 - cosine) to the others by unit features ``n d``, ``(n,)``."""
    n = len(features)
    if n < 2:
        return torch.zeros(n)
    return 1 - ((features @ features.T).sum(1) - 1) / (n - 1)


def variety(x: torch.Tensor) -> torch.Tensor:
    """Return each picture's mean distance to the others: CIELAB, root mean square over 8 x 8 averages, ``(n,)``."""
    if len(x) < 2:
        return torch.zeros(len(x))
    coarse = F.adaptive_avg_pool2d(rgb_to_lab(((x + 1) / 2).clamp(0, 1)), 8).flatten(1)
    distances = torch.cdist(coarse, coarse) / 8
    return distances.sum(1) / (len(x) - 1)
