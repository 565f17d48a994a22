"""Cases of a suite that the sprite world draws: scenes, their exact answers, and measures that need no alignment.

Pictures are ``n 3 h w`` in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab

from ldm.errors import UserError
from ldm.evaluation.metrics import similarity
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging.editor import masks, pictures
from ldm.spriteworld.judging.recogniser import Recogniser
from ldm.spriteworld.judging.surroundings import surroundings
from ldm.spriteworld.world.scene import (
    ANIMALS,
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

if TYPE_CHECKING:
    from ldm.evaluation.suites import Case

DRAWN_KEYS = ("scenes", "seed", "animal", "subject", "place", "style", "stance", "hat", "collar")
ANSWER_KEYS = {
    "animal": ANIMALS,
    "subject": tuple(SUBJECTS),
    "place": PLACES,
    "style": STYLES,
    "stance": STANCES,
    "hat": tuple(COLOURS),
    "collar": tuple(COLOURS),
    "colour": tuple(COLOURS),
}
COLOUR_NEAR = 20.0  # CIELAB: a pixel that near to a shade of a colour has the colour
TELLABLE = ("red", "yellow", "blue", "purple", "pink")  # no place has as much of them as a hat
COLOUR_ENOUGH = 0.4  # of the true picture's share of such pixels


@dataclass(frozen=True)
class DrawnCase:
    """A case's scenes before and after, as pictures and masks."""

    before: list[Scene]
    after: list[Scene]
    x: torch.Tensor
    truth: torch.Tensor
    was: torch.Tensor
    will: torch.Tensor


def check_drawn(case: Case, where: str) -> None:
    """Raise ValueError if a case's ``drawn`` or ``answer`` says something that cannot be drawn."""
    drawn = case.drawn or {}
    for key in drawn:
        if key not in DRAWN_KEYS:
            raise UserError(f"unknown key '{key}' in drawn of {where}; known: {', '.join(DRAWN_KEYS)}")
    n = drawn.get("scenes", 1)
    if type(n) is not int or n < 1:
        raise UserError(f"{where} draws {n!r} scenes; at least 1 is needed")
    seed = drawn.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise UserError(f"seed of {where} is {seed!r}; a whole number from 0 is expected")
    if ("animal" in drawn) == ("subject" in drawn):
        raise UserError(f"{where} draws either an animal or a subject")
    for key, value in {**{k: drawn[k] for k in ANSWER_KEYS if drawn.get(k)}, **case.answer}.items():
        if key not in ANSWER_KEYS:
            raise UserError(f"unknown key '{key}' in answer of {where}; known: {', '.join(ANSWER_KEYS)}")
        if value not in ANSWER_KEYS[key]:
            raise UserError(f"unknown {key} '{value}' in {where}; known: {', '.join(ANSWER_KEYS[key])}")


def draw_case(case: Case) -> DrawnCase:
    """Return the scenes of a case, never seen in training (their seeds have four parts), with their answers.

    Raises ValueError if the answer changes nothing in the scenes that are drawn.
    """
    drawn = dict(case.drawn or {})
    n, seed = drawn.pop("scenes", 1), drawn.pop("seed", 0)
    name = drawn.pop("subject", None)
    before = []
    attempt = 0
    while len(before) < n:
        if attempt == 100 * n:
            raise UserError(f"case '{case.name}': answer {case.answer} changes nothing in the scenes that are drawn")
        rng = np.random.default_rng([seed, attempt, 84, 0])
        scene = random_scene(rng, **drawn) if name is None else subject_scene(rng, name, **drawn)
        if answer(scene, case.answer) != scene or not case.answer:  # there must be something to do
            before.append(scene)
        attempt += 1
    after = [answer(scene, case.answer) for scene in before]
    return DrawnCase(before, after, pictures(before), pictures(after), masks(before), masks(after))


def answer(scene: Scene, changes: dict[str, Any]) -> Scene:
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


def words_of(scene: Scene) -> dict[str, str]:
    """Return what prompts may say of a scene."""
    return {"animal": scene.animal, "where": WHERE[scene.place]}


def exact_measures(
    case: Case,
    scenes: DrawnCase,
    x: torch.Tensor,
    recogniser: Recogniser,
    photos: torch.Tensor | None = None,
    edited: bool = True,
) -> dict[str, torch.Tensor]:
    """Return the measures of pictures ``x`` that answer a drawn case, one figure a picture each.

    What is asked of the whole class ("prior") is measured by leak, by how alike the subject's photos (``k 3 h w``) it
    is, and by how much its samples differ; everything else by what was asked. edited: False for pictures made from text
    alone, where everything stands elsewhere and a second subject cannot be told.
    """
    subject = case.subject.world
    measures: dict[str, torch.Tensor] = {}
    if case.kind == "prior":
        if subject:
            measures["leak"] = recogniser.is_subject(x, subject).float()
            if photos is not None:
                measures["PRES (recogniser)"] = similarity(recogniser.described(x), recogniser.described(photos))
        measures["class right"] = torch.tensor([a == case.subject.class_word for a in recogniser.animals(x)]).float()
        measures["DIV (recogniser)"] = apartness(recogniser.described(x))
        measures["variety"] = variety(x)
    elif subject and "colour" not in case.answer and case.answer.get("style") != "grey":
        measures["subject recognised"] = recogniser.is_subject(x, subject).float()
    done = None if case.kind == "prior" else instruction_done(case, scenes, x, recogniser, edited)
    if done is not None:
        measures["instruction done"] = done
    if case.reach == "local":
        measures["background kept (dB)"] = m.background_psnr(x, scenes.x, scenes.was, scenes.will)
        measures["background L1"] = m.background_l1(x, scenes.x, scenes.was, scenes.will)
        if edited:
            measures["second subject"] = m.second_subject(x, scenes.x, scenes.was, scenes.will)
    if case.kind != "prior":
        measures["exact (dB)"] = m.exact_psnr(x, scenes.truth)
    measures["cleanness"] = m.roughness(x, scenes.truth)
    return measures


def instruction_done(
    case: Case, scenes: DrawnCase, x: torch.Tensor, recogniser: Recogniser, edited: bool = True
) -> torch.Tensor | None:
    """Return 1 where what was asked can be seen, wherever it stands in the picture; None if that cannot be told.

    A replacement is done when the animal is of the class that was asked for: which one of its class it is, a frozen
    editor was not told, and "subject recognised" says it. A stance is taken up when the picture is nearer to the true
    one than to the input where those two differ; edited: False for pictures made from text alone, where everything
    stands elsewhere, so that this cannot be told.
    """
    if case.answer.get("subject") or case.answer.get("animal"):
        wanted = case.answer.get("animal") or SUBJECTS[case.answer["subject"]].class_word
        return torch.tensor([animal == wanted for animal in recogniser.animals(x)]).float()
    if case.answer.get("place"):
        return torch.tensor([place == case.answer["place"] for place, _ in surroundings(x)]).float()
    if case.answer.get("style"):
        return torch.tensor([style == case.answer["style"] for _, style in surroundings(x)]).float()
    for key in ("colour", "hat", "collar"):
        if case.answer.get(key) in TELLABLE:
            colour = case.answer[key]
            return (colour_share(x, colour) >= COLOUR_ENOUGH * colour_share(scenes.truth, colour)).float()
    if case.answer.get("stance") and edited:
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
