"""Cases of a suite that the sprite world draws: scenes and their exact answers.

A suite names ``DrawnScenes`` as a case's source, and ``SpriteSubject`` as a subject's judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from ldm.checkpoint.save import weights_hash
from ldm.data.images import to_images, to_tensor
from ldm.errors import UserError
from ldm.evaluation.measures import leave_one_out
from ldm.evaluation.sources import Inputs, Judge, PictureCache, Source, Task
from ldm.spriteworld.judging.measures import edited_region
from ldm.spriteworld.judging.suite_measures import COLUMNS, Asked, Drawn, exact_measures, recogniser
from ldm.spriteworld.world.scene import (
    ANIMALS,
    COATS,
    COLOURS,
    PLACES,
    STANCES,
    STYLES,
    SUBJECTS,
    Scene,
    coloured,
    random_scene,
    subject_scene,
    swap,
)
from ldm.spriteworld.world.sentences import WHERE
from ldm.typed import check_keys

KNOWN: dict[str, tuple[str, ...]] = {
    "animal": ANIMALS,
    "subject": tuple(SUBJECTS),
    "place": PLACES,
    "style": STYLES,
    "stance": STANCES,
    "hat": tuple(COLOURS),
    "collar": tuple(COLOURS),
    "colour": tuple(COLOURS),
}
DRAWN = tuple(key for key in KNOWN if key != "colour")  # what can be fixed of the scenes that are drawn


class SpriteSubject(Judge):
    """A subject of the sprite world, as the recogniser knows it."""

    columns: ClassVar = {name: COLUMNS[name] for name in ("subject recognised", "PRES (recogniser)")}

    def __init__(self, name: str):
        """name: of the subject in the sprite world. Raises UserError for an unknown one."""
        if name not in SUBJECTS:
            raise UserError(f"unknown sprite-world subject '{name}'; known: {', '.join(SUBJECTS)}")
        self.name = name

    def recognised(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1 where this very subject is seen, ``(n,)``."""
        return recogniser().is_subject(x, self.name).float()

    def of_photos(self, photos: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return whether each photo shows the subject, and how like the others it is (of two photos or more)."""
        x = to_tensor(photos)
        found = {"subject recognised": self.recognised(x)}
        if len(photos) > 1:
            found["PRES (recogniser)"] = leave_one_out(recogniser().described(x))
        return found

    def made_with(self) -> dict[str, str]:
        """Return the recogniser's hash."""
        return {"recogniser": weights_hash(recogniser())}


class DrawnScenes(Source):
    """Scenes of the sprite world, never seen in training, whose exact answers are known."""

    words = ("animal", "where")
    columns = COLUMNS

    def __init__(
        self,
        task: Task,
        draw: dict[str, Any],
        answer: dict[str, Any] | None = None,
        scenes: int = 1,
        seed: int = 0,
    ):
        """task: what the case asks for. draw: what is fixed of the scenes (``DRAWN``; a hat or collar may be null for
        none), an animal or a subject at least. answer: what the exact answer changes (``KNOWN``), None for nothing.
        scenes: how many. seed: from 0.

        Nothing is drawn yet. Raises UserError for what cannot be drawn.
        """
        self.draw, self.answer = dict(draw), dict(answer or {})
        self.count, self.seed = scenes, seed
        subject = task.judge.name if isinstance(task.judge, SpriteSubject) else None
        self.asked = Asked(task.kind, task.reach, task.class_word, subject, self.answer)
        if scenes < 1:
            raise UserError(f"scenes is {scenes}; at least 1 is needed")
        if seed < 0:
            raise UserError(f"seed is {seed}; a whole number from 0 is expected")
        check_keys(self.draw, DRAWN, "draw")
        check_keys(self.answer, KNOWN, "answer")
        if ("animal" in self.draw) == ("subject" in self.draw):
            raise UserError("draw names either an animal or a subject")
        for where, node in (("draw", self.draw), ("answer", self.answer)):
            for key, value in node.items():
                bare = where == "draw" and key in ("hat", "collar") and value is None
                if value not in KNOWN[key] and not bare:
                    raise UserError(f"unknown {key} '{value}' in {where}; known: {', '.join(KNOWN[key])}")
        if is_idle(self.draw, self.answer):
            raise UserError(f"answer {self.answer} changes nothing in scenes that are drawn with {self.draw}")

    def load(self, opened: PictureCache) -> DrawnInputs:
        """Return the scenes, drawn the same every time; none of them is as the answer wants it already.

        Raises UserError if the answer changes nothing in the scenes that are drawn.
        """
        fixed = dict(self.draw)
        name = fixed.pop("subject", None)
        before: list[Scene] = []
        attempt = 0
        while len(before) < self.count:
            if attempt == 100 * self.count:
                raise UserError(f"answer {self.answer} changes nothing in the scenes that are drawn")
            rng = np.random.default_rng([self.seed, attempt, 84, 0])  # four parts: no seed of training has as many
            scene = random_scene(rng, **fixed) if name is None else subject_scene(rng, name, **fixed)
            if answered(scene, self.answer) != scene or not self.answer:  # there must be something to do
                before.append(scene)
            attempt += 1
        return self._inputs(Drawn.of(before, [answered(scene, self.answer) for scene in before]))

    def _inputs(self, scenes: Drawn) -> DrawnInputs:
        return DrawnInputs(
            pictures=to_images(scenes.x),
            words=[{"animal": scene.animal, "where": WHERE[scene.place]} for scene in scenes.before],
            truth=to_images(scenes.truth),
            region=edited_region(scenes.was, scenes.will) if self.asked.reach == "local" else None,
            asked=self.asked,
            scenes=scenes,
        )

    def about(self, opened: PictureCache) -> Any:
        """Return what is drawn and how it is answered."""
        return {"scenes": self.count, "seed": self.seed, "draw": self.draw, "answer": self.answer}

    def made_with(self) -> dict[str, str]:
        """Return the recogniser's hash."""
        return {"recogniser": weights_hash(recogniser())}


@dataclass(frozen=True, kw_only=True)
class DrawnInputs(Inputs):
    """The pictures of drawn scenes. asked: what the case asks of them. scenes: before and after."""

    asked: Asked
    scenes: Drawn

    def measure(
        self, pictures: Sequence[Image.Image], photos: Sequence[Image.Image], edited: bool
    ) -> dict[str, torch.Tensor]:
        """Return the measures of pictures that answer the scenes; see ``exact_measures``."""
        near = to_tensor(photos) if photos else None
        return exact_measures(self.asked, self.scenes, self.as_tensor(pictures), near, edited)


def is_idle(draw: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
    """Whether an answer asks for nothing but what every scene has that is drawn so.

    draw, answer: as ``DrawnScenes`` has them. What depends on the scene is left to ``DrawnScenes.load``.
    """
    has = dict(draw)
    if "subject" in draw:
        has = _look(draw["subject"]) | has
    asked: dict[str, Any] = {}
    for key, value in answer.items():
        asked |= _look(value) if key == "subject" else {key: value}
    if len(COATS.get(asked.get("animal", ""), ())) > 1:  # the same animal, but it may get another coat
        return False
    return bool(asked) and all(key in has and has[key] == value for key, value in asked.items())


def _look(name: str) -> dict[str, Any]:
    """Return what a scene with a subject has, unless it is fixed otherwise."""
    return {"subject": name, "collar": SUBJECTS[name].collar, "hat": None}


def answered(scene: Scene, changes: Mapping[str, Any]) -> Scene:
    """Return the scene with a case's exact answer applied."""
    for key, value in changes.items():
        if key == "subject":
            known = SUBJECTS[value]
            scene = replace(swap(scene, known.class_word, known.coat), collar=known.collar, hat=None)
        elif key == "animal":
            scene = swap(scene, value, np.random.default_rng(scene.seed))
        elif key == "colour":
            scene = replace(scene, coat=coloured(scene.coat, value))
        elif key == "stance":
            scene = replace(scene, pose=replace(scene.pose, stance=value))
        else:
            scene = replace(scene, **{key: value})
    return scene
