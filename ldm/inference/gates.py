"""Gates that a made picture has to pass: not blank, not the input again, not something else altogether."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

LOOK = 32  # pixels of a side at which two pictures are compared: fine texture does not count
PASSED = ""


@dataclass(frozen=True)
class Gates:
    """Thresholds of pictures in [0, 1], compared at 32 x 32 pixels.

    blank: least standard deviation of the brightness. unchanged: least root mean square difference from the input.
    destroyed: greatest root mean square difference from the input, over the pixels that differ least (three quarters
    of them: the subject may change as it likes). attempts: how often a picture is made before it is set aside.
    Each further attempt takes another seed; after "unchanged" the text scale grows by ``step``, after "destroyed" the
    image scale does.
    """

    blank: float = 0.03
    unchanged: float = 0.02
    destroyed: float = 0.15
    attempts: int = 4
    step: float = 1.15

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            kinds = int if name == "attempts" else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool):
                wanted = "a whole number" if name == "attempts" else "a number"
                raise ValueError(f"gates.{name} is {value!r}; {wanted} is expected")
        if self.attempts < 1:
            raise ValueError(f"gates.attempts is {self.attempts}; at least 1 is needed")
        if not 0 <= self.blank < 1 or not 0 <= self.unchanged <= self.destroyed:
            raise ValueError(
                f"gates make no sense: blank {self.blank}, unchanged {self.unchanged}, destroyed {self.destroyed}"
            )
        if self.step < 1:
            raise ValueError(f"gates.step is {self.step}; 1 or more is expected")


@dataclass(frozen=True)
class Verdict:
    """Why a picture is refused ("" if it is not), and the figures."""

    reason: str
    figures: dict[str, float] = field(default_factory=dict)


def judge(before: Image.Image, after: Image.Image, gates: Gates) -> Verdict:
    """Return the verdict on an edit of a picture. The two may differ in size, not in what they show of the scene."""
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
    return Verdict(PASSED, figures)


def _look(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((LOOK, LOOK), Image.Resampling.BOX), dtype=np.float64) / 255
