"""Gates that a made picture has to pass: not blank, not the input again, not something else altogether."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ldm.errors import UserError

LOOK = 32  # pixels of a side at which two pictures are compared: fine texture does not count
PASSED = ""
UNLIKE, ANOTHER = "unlike its input (CLIP)", "not what was asked (CLIP)"
NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Gates:
    """Thresholds of pictures in [0, 1], compared at 32 x 32 pixels.

    blank: least standard deviation of the brightness. unchanged: least root mean square difference from the input.
    destroyed: greatest root mean square difference from the input, over the pixels that differ least (three quarters
    of them: the subject may change as it likes). attempts: how often a picture is made before it is set aside.
    Each further attempt takes another seed; after "unchanged" the text scale grows by ``step``, after "destroyed" the
    image scale does. clip_picture, clip_direction: least cosines where a CLIP is given: of the two pictures, and of the
    change in pictures to the change in words (InstructPix2Pix filtered its training pairs so; its paper, section 3.1).
    """

    blank: float = 0.03
    unchanged: float = 0.02
    destroyed: float = 0.15
    attempts: int = 4
    step: float = 1.15
    clip_picture: float = 0.7
    clip_direction: float = 0.2

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            kinds = int if name == "attempts" else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool):
                wanted = "a whole number" if name == "attempts" else "a number"
                raise UserError(f"gates.{name} is {value!r}; {wanted} is expected")
        if self.attempts < 1:
            raise UserError(f"gates.attempts is {self.attempts}; at least 1 is needed")
        if not 0 <= self.blank < 1 or not 0 <= self.unchanged <= self.destroyed:
            raise UserError(
                f"gates make no sense: blank {self.blank}, unchanged {self.unchanged}, destroyed {self.destroyed}"
            )
        for name in ("clip_picture", "clip_direction"):
            if not -1 <= getattr(self, name) <= 1:
                raise UserError(f"gates.{name} is {getattr(self, name)}; a cosine from -1 to 1 is expected")
        if self.step < 1:
            raise UserError(f"gates.step is {self.step}; 1 or more is expected")


@dataclass(frozen=True)
class Verdict:
    """Why a picture is refused ("" if it is not), and the figures."""

    reason: str
    figures: dict[str, float] = field(default_factory=dict)


def judge(
    before: Image.Image, after: Image.Image, gates: Gates, clip: Any = None, words: tuple[str, str] = ("", "")
) -> Verdict:
    """Return the verdict on an edit of a picture. The two may differ in size, not in what they show of the scene.

    clip: a ``Clip`` for its two gates; words: what the picture shows before and after, like ("dog", "wolf").
    """
    a, b = _look(before), _look(after)
    difference = np.sort(np.square(a - b).mean(axis=-1).ravel())
    kept = difference[: len(difference) * 3 // 4]
    figures = {
        "contrast": float(b.mean(axis=-1).std()),
        "change": float(np.sqrt(difference.mean())),
        "background change": float(np.sqrt(kept.mean())),
    }
    figures = {name: round(value, 4) for name, value in figures.items()}
    if figures["contrast"] < gates.blank:
        return Verdict("blank", figures)
    if figures["change"] < gates.unchanged:
        return Verdict("unchanged", figures)
    if figures["background change"] > gates.destroyed:
        return Verdict("destroyed", figures)
    if clip is not None:
        pictures, texts = clip.images([before, after]), clip.texts([f"a photo of a {word}" for word in words])
        change, wish = pictures[1] - pictures[0], texts[1] - texts[0]
        figures["CLIP picture"] = round(float(pictures[0] @ pictures[1]), 4)
        figures["CLIP direction"] = round(float(change @ wish / (change.norm() * wish.norm()).clamp(min=1e-6)), 4)
        if figures["CLIP picture"] < gates.clip_picture:
            return Verdict(UNLIKE, figures)
        if figures["CLIP direction"] < gates.clip_direction:
            return Verdict(ANOTHER, figures)
    return Verdict(PASSED, figures)


def _look(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((LOOK, LOOK), Image.Resampling.BOX), dtype=np.float64) / 255
