"""Speak about the sprite world: random edits with the instruction that asks for them, and captions of scenes.

A random rare word before the class word (in about 6 % of the captions and class instructions) changes nothing in the
picture. Without it a word the text encoder has never met acts as a colour or a pattern of its own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from ldm.errors import UserError
from ldm.spriteworld.world.scene import (
    ANIMALS,
    COAT_WORDS,
    COLOURS,
    PLACES,
    STYLES,
    Coat,
    Scene,
    coloured,
    random_scene,
    swap,
)

Choices = tuple[tuple[float, str], ...]  # (weight, wording)

RARE_SHARE = 0.06
NAMED = 3  # so that an edit may call the animal that is there by a name, too
RESERVED_WORDS = frozenset({"sks"})  # identifiers that personalising uses stay unseen
KIND_SHARES: Choices = ((0.36, "class"), (0.19, "place"), (0.10, "style"), (0.16, "colour"), (0.19, "accessory"))
KINDS = tuple(kind for _, kind in KIND_SHARES)
DEFAULT_ACCESSORY = "red"  # what "make him wear a hat" means
REMOVE_SHARE = 0.4
ALIKE = 90.0  # two coats closer than this in RGB are too much alike for a colour edit

WHERE = {
    "meadow": "in the meadow",
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "city": "in the city",
    "desert": "in the desert",
    "room": "in a room",
    "mountains": "in the mountains",
}
NAMES = {place: f"the {place}" for place in PLACES} | {"room": "a room"}
STANCE_WORDS = {"sit": "sitting", "walk": "walking", "stand": "standing"}

CLASS_WORDINGS: Choices = (
    (0.50, "replace the {source} with a {target}"),
    (0.10, "turn the {source} into a {target}"),
    (0.08, "make it a {target}"),
    (0.08, "swap the {source} for a {target}"),
    (0.08, "change the {source} to a {target}"),
    (0.05, "change the {source} into a {target}"),
    (0.05, "turn it into a {target}"),
    (0.03, "replace it with a {target}"),
    (0.03, "a {target} instead of the {source}"),
)
PLACE_WORDINGS: Choices = (
    (0.40, "put it {where}"),
    (0.15, "move it to {place}"),
    (0.15, "as if it were {where}"),
    (0.10, "put the {animal} {where}"),
    (0.10, "change the background to {place}"),
    (0.10, "make it look like it is {where}"),
)
STYLE_WORDINGS: dict[str, Choices] = {
    "day": ((0.6, "make it day"), (0.2, "make it daytime"), (0.2, "turn it into a sunny day")),
    "night": ((0.6, "make it night"), (0.2, "make it nighttime"), (0.2, "as if it were at night")),
    "grey": (
        (0.6, "make it black and white"),
        (0.2, "turn it into a black and white photo"),
        (0.2, "remove the colours"),
    ),
    "sunset": ((0.6, "make it a sunset"), (0.2, "as if it were at sunset"), (0.2, "add a sunset")),
}
COLOUR_WORDINGS: Choices = (
    (0.45, "make the {animal} {colour}"),
    (0.20, "turn the {animal} {colour}"),
    (0.10, "a {colour} {animal}"),
    (0.10, "paint the {animal} {colour}"),
    (0.15, "make it a {colour} {animal}"),
)
ADD_WORDINGS: Choices = (
    (0.40, "give the {animal} a {colour} {item}"),
    (0.25, "add a {colour} {item}"),
    (0.15, "make it wear a {colour} {item}"),
    (0.10, "put a {colour} {item} on the {animal}"),
)
PLAIN_ADD_WORDINGS: Choices = ((0.5, "make him wear a {item}"), (0.5, "add a {item}"))
PLAIN_ADD_SHARE = 0.10
REMOVE_WORDINGS: Choices = ((0.5, "remove the {item}"), (0.3, "take off the {item}"), (0.2, "take the {item} away"))


@dataclass(frozen=True)
class Edit:
    """Hold an instruction with the scene before and after it."""

    kind: str
    source: Scene
    target: Scene
    instruction: str


def _choose(rng: np.random.Generator, choices: Choices) -> str:
    u = rng.random() * sum(weight for weight, _ in choices)
    for weight, wording in choices:
        u -= weight
        if u < 0:
            return wording
    return choices[-1][1]


def _one_of(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.random() * len(names))]


def rare_word(rng: np.random.Generator) -> str:
    """Draw a word of three consonants that means nothing, such as "zwx"; never one of RESERVED_WORDS."""
    while True:
        word = "".join(_one_of(rng, tuple("bcdfghjklmnpqrstvwxz")) for _ in range(3))
        if word not in RESERVED_WORDS:
            return word


def _noun(rng: np.random.Generator, class_word: str, rare_share: float) -> str:
    """Say the class word, with a rare word before it in `rare_share` of the cases (which changes no later draw)."""
    word, u = rare_word(rng), rng.random()
    return f"{word} {class_word}" if u < rare_share else class_word


def _with_name(rng: np.random.Generator, instruction: str, animal: str, share: float) -> str:
    """Call "the dog" of an instruction "the zwx dog" in a share of the cases; what is drawn from rng later stays."""
    (own,) = rng.spawn(1)
    word, u = rare_word(own), own.random()
    return re.sub(rf"\bthe {animal}\b", f"the {word} {animal}", instruction) if u < share else instruction


def colour_word(coat: Coat) -> str | None:
    """Name the colour of a coat that `coloured` made; None for any other coat."""
    for name in COLOURS:
        if coloured(coat, name) == coat:
            return name
    return None


def _unlike(coat: Coat) -> tuple[str, ...]:
    """List the colours that clearly differ from a coat."""
    return tuple(name for name, rgb in COLOURS.items() if math.dist(rgb, coat.main) > ALIKE)


def _edit_class(rng: np.random.Generator, source: Scene, rare_share: float) -> tuple[Scene, str]:
    target = swap(source, _one_of(rng, tuple(name for name in ANIMALS if name != source.animal)), rng)
    wording = _choose(rng, CLASS_WORDINGS)
    return target, wording.format(source=source.animal, target=_noun(rng, target.animal, rare_share))


def with_word(edit: Edit, word: str) -> Edit:
    """Say a word before the new animal of a class edit: "replace the wolf with a `word` dog".

    Raises UserError for an edit of another kind.
    """
    if edit.kind != "class":
        raise UserError(f"found {edit.kind!r}: only a class edit has a new animal that a word could describe")
    return replace(edit, instruction=re.sub(r"\ba ", f"a {word} ", edit.instruction, count=1))


def with_coat(edit: Edit) -> Edit:
    """Name the new animal's natural coat in a class edit: "replace the wolf with a golden dog".

    Raises UserError for an edit of another kind, or a coat that is not natural.
    """
    if edit.target.coat not in COAT_WORDS:
        raise UserError(f"found {edit.target.coat}: only a natural coat has a word")
    return with_word(edit, COAT_WORDS[edit.target.coat])


def _edit_place(rng: np.random.Generator, source: Scene, rare_share: float) -> tuple[Scene, str]:
    place = _one_of(rng, tuple(name for name in PLACES if name != source.place))
    wording = _choose(rng, PLACE_WORDINGS)
    return replace(source, place=place), wording.format(where=WHERE[place], place=NAMES[place], animal=source.animal)


def _edit_style(rng: np.random.Generator, source: Scene, rare_share: float) -> tuple[Scene, str]:
    style = _one_of(rng, tuple(name for name in STYLES if name != "day")) if source.style == "day" else "day"
    return replace(source, style=style), _choose(rng, STYLE_WORDINGS[style])


def _edit_colour(rng: np.random.Generator, source: Scene, rare_share: float) -> tuple[Scene, str]:
    colour = _one_of(rng, _unlike(source.coat))
    wording = _choose(rng, COLOUR_WORDINGS)
    return replace(source, coat=coloured(source.coat, colour)), wording.format(animal=source.animal, colour=colour)


def _edit_accessory(rng: np.random.Generator, source: Scene, rare_share: float) -> tuple[Scene, str]:
    worn = tuple(item for item in ("hat", "collar") if getattr(source, item) is not None)
    free = tuple(item for item in ("hat", "collar") if item not in worn)
    remove = bool(worn) and (not free or rng.random() < 0.5)
    item = _one_of(rng, worn if remove else free)
    if remove:
        return replace(source, **{item: None}), _choose(rng, REMOVE_WORDINGS).format(item=item)
    if rng.random() < PLAIN_ADD_SHARE:
        plain = _choose(rng, PLAIN_ADD_WORDINGS if item == "hat" else PLAIN_ADD_WORDINGS[1:])
        return replace(source, **{item: DEFAULT_ACCESSORY}), plain.format(item=item)
    colour = _one_of(rng, _unlike(source.coat))
    wording = _choose(rng, ADD_WORDINGS)
    return replace(source, **{item: colour}), wording.format(animal=source.animal, colour=colour, item=item)


EDITORS = {
    "class": _edit_class,
    "place": _edit_place,
    "style": _edit_style,
    "colour": _edit_colour,
    "accessory": _edit_accessory,
}


def _draw_source(rng: np.random.Generator, kind: str) -> Scene:
    """Draw a scene to which the kind of edit applies, with as many removals and inverse edits as are wanted."""
    if kind == "style":
        return random_scene(rng, style=_choose(rng, ((0.66, "day"), (0.17, "night"), (0.17, "sunset"))))
    scene = random_scene(rng)
    if kind in ("colour", "accessory") and scene.style == "grey":  # a colour that is asked for should be seen
        scene = replace(scene, style="day")
    if kind == "accessory":
        worn = _one_of(rng, ("hat", "collar")) if rng.random() < 2 * REMOVE_SHARE else None
        colour = _one_of(rng, _unlike(scene.coat))
        return replace(scene, **({"hat": None, "collar": None} | ({worn: colour} if worn else {})))
    return scene


def random_edit(
    rng: np.random.Generator, kind: str | None = None, source: Scene | None = None, rare_share: float = RARE_SHARE
) -> Edit:
    """Draw an edit: a source scene (unless given), the target scene and the instruction between them.

    A class edit draws the coat of the new animal; a place edit keeps the seed; a style edit leads from day to another
    style, or from night or sunset back to day; an accessory without a colour in the instruction is red. Scenes drawn
    for a colour or an accessory are not grey (a grey source that is given may still get a hat).

    rare_share: how often (0 to 1) a rare word stands before the new class word; where another edit says "the
        dog", one does NAMED times as often.
    Raises UserError for an unknown kind, or for a style or colour edit of a grey source (what it asks for cannot
        be seen, or cannot be known).
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind of edit {kind!r}: expected one of {', '.join(KINDS)}")
    grey = source is not None and source.style == "grey"
    if grey and kind in ("style", "colour"):
        raise UserError(f"found a grey source for a {kind} edit: expected a source in colour")
    if kind is None:
        kind = _choose(rng, tuple(c for c in KIND_SHARES if not (grey and c[1] in ("style", "colour"))))
    if source is None:
        source = _draw_source(rng, kind)
    target, instruction = EDITORS[kind](rng, source, rare_share)
    if kind != "class":
        instruction = _with_name(rng, instruction, source.animal, NAMED * rare_share)
    return Edit(kind, source, target, instruction)


def _wearing(rng: np.random.Generator, scene: Scene) -> str:
    items = [f"a {getattr(scene, item)} {item}" for item in ("hat", "collar") if getattr(scene, item)]
    return f" {_one_of(rng, ('with', 'wearing'))} {' and '.join(items)}" if items else ""


def caption(scene: Scene, rng: np.random.Generator, rare_share: float = RARE_SHARE) -> str:
    """Describe a scene, such as "a photo of a grey wolf in the snow at night".

    Unnatural colours, hat, collar, place and style are always said; a natural colour and the stance only sometimes.

    rare_share: how often (0 to 1) a rare word stands before the class word.
    """
    say_coat, say_stance = rng.random() < 0.4, rng.random() < 0.25
    adjective = colour_word(scene.coat) or (COAT_WORDS.get(scene.coat) if say_coat else None)
    noun = _noun(rng, scene.animal, rare_share)
    words = f"a {adjective} {noun}" if adjective else f"a {noun}"
    words += _wearing(rng, scene)
    if say_stance:
        lies = scene.animal == "horse" and scene.pose.stance == "sit"
        words += " lying" if lies else f" {STANCE_WORDS[scene.pose.stance]}"
    words += f" {WHERE[scene.place]}"
    if scene.style == "grey":
        return _choose(rng, ((0.6, "a black and white photo of {}"), (0.4, "{} in black and white"))).format(words)
    words += {"day": "", "night": " at night", "sunset": " at sunset"}[scene.style]
    return _choose(rng, ((0.5, "{}"), (0.3, "a photo of {}"), (0.2, "a picture of {}"))).format(words)
