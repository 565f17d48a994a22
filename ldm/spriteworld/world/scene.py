"""Draw the sprite world: scenes with an animal in a place, of which every field is known.

A scene is drawn `supersample` times too large without antialiasing and averaged down, so that the mask of the animal is
exact, and the same scene gives the same bytes in every process.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from ldm.errors import UserError
from ldm.spriteworld.world.animals import ANIMALS, STANCES, Figure, Part, figure
from ldm.spriteworld.world.places import PLACES, RGB, glow, paint

__all__ = [
    "ANIMALS", "BACKDROPS", "COATS", "COAT_WORDS", "COLOURS", "FACINGS", "FIGURES", "PATTERNS", "PLACES", "SCALES",
    "STANCES", "STANDS_X", "STANDS_Y", "STYLES", "SUBJECTS",
    "Coat", "Pose", "Scene", "Subject", "coloured", "draw", "random_scene", "subject_mask", "subject_scene", "swap",
]  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """Hold where and how the animal stands; x, y and scale are in picture widths and heights."""

    stance: str  # "stand", "walk" or "sit" (a horse lies)
    facing: str  # "left" or "right"
    x: float  # the animal's middle, about 0.38 to 0.62; random scenes take one of STANDS_X
    y: float  # the ground under its feet, about 0.80 to 0.94; one of STANDS_Y
    scale: float  # about 0.8 to 1.15; one of SCALES


@dataclass(frozen=True)
class Coat:
    """Hold two colours (0 to 255) and how they are laid out."""

    main: RGB
    second: RGB
    pattern: str


@dataclass(frozen=True)
class Scene:
    """Hold everything that decides a picture; `seed` decides only which of its layouts the place has."""

    animal: str
    pose: Pose
    coat: Coat
    place: str
    style: str
    hat: str | None
    collar: str | None
    seed: int


@dataclass(frozen=True)
class Subject:
    """Hold one particular animal: what pre-training never shows and personalising teaches."""

    name: str
    class_word: str
    coat: Coat
    collar: str | None


FACINGS = ("left", "right")
# Animals stand on a grid of half a latent's cell (4 of 64 pixels) and come in three sizes, as sprites do: what has to
# be learned is a finite number of pictures, not where an edge lies to a fraction of a pixel.
STANDS_X = (0.4375, 0.5, 0.5625)
STANDS_Y = (0.8125, 0.875, 0.9375)
SCALES = (0.86, 0.97, 1.08)
STYLES = ("day", "night", "grey", "sunset")

# Which regions take the second colour under a pattern; markings that no pattern names are not drawn.
PATTERNS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "belly": ("belly", "chest", "face", "tail_tip", "inner_ear"),
    "patches": ("patch", "eye_patch", "ear", "tail_tip"),
    "saddle": ("saddle", "ear", "far_ear", "tail"),
    "socks": ("near_sock", "far_sock", "bib", "blaze", "tail_tip"),
    "stripes": ("stripe", "tail_tip"),
    "mask": ("mask", "face", "ear", "far_ear", "near_sock", "far_sock", "tail", "tail_tip"),
    "spots": ("spot", "ear"),
}
# Markings lie on the animal and never widen it; ears and tails are drawn under every pattern.
MARKINGS = frozenset(region for regions in PATTERNS.values() for region in regions) - {
    *("ear", "far_ear", "inner_ear", "tail")
}

COATS: dict[str, tuple[Coat, ...]] = {
    "dog": (Coat((222, 178, 108), (176, 126, 66), "plain"), Coat((128, 82, 52), (88, 54, 36), "plain")),
    "wolf": (Coat((122, 130, 144), (206, 210, 214), "belly"),),
    "cat": (Coat((236, 152, 66), (252, 226, 186), "belly"), Coat((58, 56, 66), (92, 88, 98), "plain")),
    "horse": (Coat((164, 88, 46), (62, 38, 30), "plain"), Coat((206, 200, 192), (116, 110, 112), "plain")),
    "bear": (Coat((108, 72, 50), (190, 150, 110), "plain"),),
    "rabbit": (Coat((244, 240, 236), (250, 250, 250), "plain"), Coat((172, 144, 118), (248, 242, 234), "plain")),
}
NATURAL_WORDS = {
    "dog": ("golden", "brown"),
    "wolf": ("grey",),
    "cat": ("ginger", "black"),
    "horse": ("brown", "grey"),
    "bear": ("brown",),
    "rabbit": ("white", "brown"),
}
COAT_WORDS: dict[Coat, str] = {
    coat: word for animal in ANIMALS for coat, word in zip(COATS[animal], NATURAL_WORDS[animal], strict=True)
}
COLOURS: dict[str, RGB] = {
    "red": (214, 44, 44),
    "yellow": (248, 214, 40),
    "green": (52, 160, 66),
    "blue": (44, 96, 222),
    "purple": (124, 58, 178),
    "pink": (246, 128, 182),
    "white": (248, 248, 248),
    "black": (40, 38, 44),
}
SUBJECTS: dict[str, Subject] = {
    "biscuit": Subject("biscuit", "dog", Coat((240, 124, 30), (252, 250, 246), "socks"), "blue"),
    "domino": Subject("domino", "dog", Coat((250, 250, 250), (34, 32, 38), "patches"), "red"),
    "mochi": Subject("mochi", "cat", Coat((246, 230, 200), (84, 54, 42), "mask"), "green"),
    "storm": Subject("storm", "dog", Coat((92, 122, 172), (244, 246, 250), "saddle"), "yellow"),
}

# Rows of r, g, b, constant: linear functions of the colours as painted, one of what stands behind the animal and one of
# the animal. Backdrops are calm and figures stand out from them, as in picture books: paler by day, in grey and at
# sunset, darker at night.
Grade = tuple[float, ...]
BACKDROPS: dict[str, Grade] = {
    "day": (0.68, 0, 0, 66, 0, 0.68, 0, 70, 0, 0, 0.68, 74),
    "night": (0.28, 0.05, 0.00, 2, 0.05, 0.28, 0.04, 8, 0.08, 0.14, 0.32, 36),
    "grey": (0.10, 0.205, 0.035, 156) * 3,
    "sunset": (0.17, 0.04, 0.04, 190, 0.05, 0.26, 0.03, 118, 0.04, 0.10, 0.24, 84),
}
FIGURES: dict[str, Grade] = {
    "day": (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0),
    "night": (0.82, 0.03, 0.00, 14, 0.03, 0.76, 0.03, 22, 0.04, 0.08, 0.70, 36),
    "grey": (0.24, 0.47, 0.09, -8) * 3,
    "sunset": (0.88, 0.06, 0.05, 4, 0.06, 0.78, 0.02, 4, 0.05, 0.10, 0.66, 6),
}
EYES: dict[str, RGB] = {"wolf": (250, 206, 84), "cat": (150, 220, 110)}
NOSES: dict[str, RGB] = {"cat": (226, 128, 128), "rabbit": (232, 132, 142)}
SHADOW = 0.34
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of 64 x 64
# An eye is a dark pupil of 2 x 2 pixels and the light ball's column behind it, on the grid of the picture: at this size
# an oval is a smudge, a cross or a square, as it falls.
EYE_WIDTH, EYE_HEIGHT = 3, 2


def _shade(colour: RGB, factor: float) -> RGB:
    return tuple(min(255, round(v * factor)) for v in colour)


def _lift(colour: RGB, amount: float) -> RGB:
    return tuple(round(v + (255 - v) * amount) for v in colour)


def _known(what: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise UserError(f"unknown {what} {value!r}: expected one of {', '.join(names)}")


def coloured(coat: Coat, name: str) -> Coat:
    """Dye a coat: the whole animal in a named colour, with a shade of it as the second colour.

    Raises UserError for an unknown colour, naming the known ones.
    """
    _known("colour", name, tuple(COLOURS))
    main = COLOURS[name]
    shade = _lift(main, 0.22) if name == "black" else _shade(main, 0.74)
    return Coat(main, shade, "plain")


def _palette(scene: Scene) -> dict[str, RGB | None]:
    """Say which colour every region of the animal has; None leaves a region out."""
    coat, animal = scene.coat, scene.animal
    _known("pattern", coat.pattern, tuple(PATTERNS))
    main, second = coat.main, coat.second
    dark = sum(main) < 220
    palette: dict[str, RGB | None] = dict.fromkeys((*MARKINGS, "muzzle"))
    far = _lift(main, 0.12) if dark else _shade(main, 0.76)
    ear = _lift(main, 0.16) if dark else _shade(main, 0.72 if animal == "dog" else 0.92)
    palette |= dict.fromkeys(("torso", "near_leg", "haunch", "skull", "tail"), main)
    palette |= {"far_leg": far, "far_ear": far, "ear": ear, "mane": second, "hoof": (58, 48, 46)}
    palette |= {"inner_ear": (240, 172, 172), "nose": NOSES.get(animal, (36, 30, 34))}
    palette |= {"eye": EYES.get(animal, (255, 255, 255)), "pupil": (24, 20, 24)}
    if animal == "bear":
        palette |= {"muzzle": second, "inner_ear": second}
    if animal in ("horse", "rabbit"):
        palette |= {"tail": second}
    palette |= dict.fromkeys(PATTERNS[coat.pattern], second)
    if palette["far_sock"]:
        palette["far_sock"] = _shade(second, 0.82)
    palette["collar"] = COLOURS[scene.collar] if scene.collar else None
    return palette


def _check(scene: Scene, size: int, supersample: int) -> None:
    _known("style", scene.style, STYLES)
    _known("facing", scene.pose.facing, FACINGS)
    for what, colour in (("hat colour", scene.hat), ("collar colour", scene.collar)):
        if colour is not None:
            _known(what, colour, tuple(COLOURS))
    if size < 1 or supersample < 1:
        raise UserError(f"found size {size} and supersample {supersample}: both must be 1 or more")
    if not scene.pose.scale > 0:
        raise UserError(f"found scale {scene.pose.scale}: expected a positive number, about 0.8 to 1.15")


def _figure(scene: Scene) -> Figure:
    return figure(scene.animal, scene.pose.stance, scene.hat is not None)


def _place_parts(parts: tuple[Part, ...], pose: Pose, side: int) -> list[list[float]]:
    """Carry outlines from the animal's frame to pixels: a flat list x0, y0, x1, y1 ... per part."""
    points = np.concatenate([part.outline for part in parts])
    flip = 1 if pose.facing == "right" else -1
    points = points * (flip * pose.scale * side, -pose.scale * side) + (pose.x * side, pose.y * side)
    cuts = np.cumsum([len(part.outline) for part in parts])[:-1]
    return [piece.ravel().tolist() for piece in np.split(points, cuts)]


def _fill(pen: ImageDraw.ImageDraw, box: Box, side: int, colour: RGB | int) -> None:
    """Fill left, top, right, bottom in pixels of 64 x 64; what is smaller than a dot is not drawn."""
    left, top, right, bottom = (round(edge * side / 64) for edge in box)
    if left < right and top < bottom:
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)


def _eye_and_pupil(eye: tuple[float, float], pose: Pose) -> tuple[Box, Box]:
    """Place an eye's ball and its pupil, of whole pixels: the pupil looks ahead, the ball shows behind it."""
    flip = 1 if pose.facing == "right" else -1
    left = round(64 * (pose.x + flip * eye[0] * pose.scale) - EYE_WIDTH / 2)
    top = round(64 * (pose.y - eye[1] * pose.scale) - EYE_HEIGHT / 2)
    right, bottom = left + EYE_WIDTH, top + EYE_HEIGHT
    pupil = (left + 1, top, right, bottom) if flip > 0 else (left, top, right - 1, bottom)
    return (left, top, right, bottom), pupil


def _place_hat(parts: tuple[Part, ...], pose: Pose, side: int) -> list[list[float]]:
    """Carry a hat to pixels and shift it by less than one of 64 x 64, so that its lowest row and its left are whole."""
    outlines = [np.array(outline).reshape(-1, 2) for outline in _place_parts(parts, pose, side)]
    points, cell = np.concatenate(outlines), side / 64
    corner = np.array([points[:, 0].min(), points[:, 1].max() + 1])  # a polygon fills the pixels it ends in, too
    shift = np.rint(corner / cell) * cell - corner + (0, 0.2)  # rounding must not leave the lowest row out
    return [(outline + shift).ravel().tolist() for outline in outlines]


def _clip_groups(parts: tuple[Part, ...], outlines: list[list[float]], side: int) -> dict[str, Image.Image]:
    groups: dict[str, Image.Image] = {}
    for part, outline in zip(parts, outlines, strict=True):
        for group in part.group.split():
            mask = groups.setdefault(group, Image.new("L", (side, side)))
            ImageDraw.Draw(mask).polygon(outline, fill=255)
    return groups


def _animal(scene: Scene, shape: Figure, side: int) -> tuple[Image.Image, Image.Image]:
    """Draw the animal with collar and hat: RGB, and its coverage (L, only 0 and 255)."""
    palette = _palette(scene)
    parts = tuple(part for part in shape.parts if palette[part.region] is not None)
    outlines = _place_parts(parts, scene.pose, side)
    ink, mask = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    pen, cover = ImageDraw.Draw(ink), ImageDraw.Draw(mask)
    clips = _clip_groups(parts, outlines, side) if any(part.on for part in parts) else {}
    for part, outline in zip(parts, outlines, strict=True):
        if part.region == "eye":
            for region, box in zip(("eye", "pupil"), _eye_and_pupil(shape.eye, scene.pose), strict=True):
                _fill(pen, box, side, palette[region])
        elif part.on:
            marking = Image.new("L", (side, side))
            ImageDraw.Draw(marking).polygon(outline, fill=255)
            ink.paste(palette[part.region], mask=ImageChops.multiply(marking, clips[part.on]))
        else:
            pen.polygon(outline, fill=palette[part.region])
            if part.region not in MARKINGS:
                cover.polygon(outline, fill=255)
    ink = ImageChops.multiply(ink, _shading(scene.pose, shape.height, side))
    if scene.hat is not None:
        colour = COLOURS[scene.hat]
        inks = {"hat": colour, "hat_trim": _lift(colour, 0.42) if sum(colour) < 500 else _shade(colour, 0.72)}
        pen = ImageDraw.Draw(ink)
        for part, outline in zip(shape.hat, _place_hat(shape.hat, scene.pose, side), strict=True):
            pen.polygon(outline, fill=inks[part.region])
            cover.polygon(outline, fill=255)
    return ink, mask


def _shading(pose: Pose, height: float, side: int) -> Image.Image:
    """Make the light fall from above: factors (as RGB bytes) from 1.0 at the head to 0.8 at the feet."""
    rows = (pose.y - (np.arange(side) + 0.5) / side) / (height * pose.scale)
    factors = np.rint(255 * (0.80 + 0.20 * np.clip(rows / 0.7, 0, 1))).astype(np.uint8)
    column = Image.fromarray(np.repeat(factors[:, None, None], 3, axis=2))
    return column.resize((side, side), Image.Resampling.NEAREST)


def _cast_shadow(picture: Image.Image, pose: Pose, shape: Figure, side: int) -> None:
    """Darken the ground under the animal softly."""
    centre, half = shape.shadow
    flip = 1 if pose.facing == "right" else -1
    rx, ry = 1.15 * half * pose.scale * side, 0.052 * pose.scale * side
    soft = Image.radial_gradient("L").point([round(255 * SHADOW * max(0.0, 1 - (v / 181) ** 2)) for v in range(256)])
    soft = soft.resize((max(1, round(2 * rx)), max(1, round(2 * ry))))
    left = round((pose.x + flip * centre * pose.scale) * side - rx)
    picture.paste((24, 24, 40), (left, round(pose.y * side - 1.1 * ry)), soft)


def draw(scene: Scene, size: int = 64, supersample: int = 4, empty: bool = False) -> Image.Image:
    """Draw a scene: RGB, size x size pixels, the same bytes for the same scene everywhere.

    supersample: how many times larger the scene is drawn before it is averaged down.
    empty: leave the animal and its shadow out.
    Raises UserError for an unknown animal, stance, facing, pattern, place, style or colour, naming the known ones.
    """
    _check(scene, size, supersample)
    side = size * supersample
    shape = _figure(scene)
    picture, lights = paint(scene.place, scene.seed, side)
    mask = Image.new("L", picture.size)
    if not empty:
        _cast_shadow(picture, scene.pose, shape, side)
    picture = picture.convert("RGB", BACKDROPS[scene.style])
    if not empty:
        ink, mask = _animal(scene, shape, side)
        picture.paste(ink.convert("RGB", FIGURES[scene.style]), mask=mask)
    picture = picture.reduce(supersample)
    if scene.style == "night" and lights:
        colours, cover = glow(lights, side)
        cover.paste(0, mask=mask)
        bright = Image.composite(colours, Image.new("RGB", colours.size), cover).reduce(supersample)
        dim = ImageChops.multiply(picture, Image.merge("RGB", [ImageChops.invert(cover.reduce(supersample))] * 3))
        picture = ImageChops.add(dim, bright)
    return picture


def subject_mask(scene: Scene, size: int = 64, supersample: int = 4) -> Image.Image:
    """Draw how much of each pixel the animal with its collar and hat covers, without its shadow: L, 0 to 255.

    Raises UserError as `draw` does.
    """
    _check(scene, size, supersample)
    _known("place", scene.place, PLACES)
    return _animal(scene, _figure(scene), size * supersample)[1].reduce(supersample)


def _pick(u: float, choices: tuple) -> object:
    return choices[min(int(u * len(choices)), len(choices) - 1)]


def random_scene(rng: np.random.Generator, **fixed: object) -> Scene:
    """Draw a scene: a natural coat, mostly by day, sometimes with hat or collar.

    fixed: fields of Scene or Pose that are given; the others come out as they would without them.
    Raises UserError for a name that is no field of Scene or Pose.
    """
    pose_names = {field.name for field in fields(Pose)}
    names = {field.name for field in fields(Scene)} | pose_names
    for name in fixed:
        _known("field", name, tuple(sorted(names)))
    u = rng.random(12).tolist()
    choices = (STANCES, FACINGS, STANDS_X, STANDS_Y, SCALES)
    pose = Pose(*(_pick(number, among) for number, among in zip(u, choices, strict=False)))
    pose = fixed.get("pose", replace(pose, **{k: v for k, v in fixed.items() if k in pose_names}))
    animal = fixed.get("animal", _pick(u[5], ANIMALS))
    _known("animal", animal, ANIMALS)
    values = {
        "animal": animal,
        "pose": pose,
        "coat": _pick(u[6], COATS[animal]),
        "place": _pick(u[7], PLACES),
        "style": "day" if u[8] < 0.76 else _pick((u[8] - 0.76) / 0.24, STYLES[1:]),
        "hat": _pick(u[9] / 0.12, tuple(COLOURS)) if u[9] < 0.12 else None,
        "collar": _pick(u[10] / 0.15, tuple(COLOURS)) if u[10] < 0.15 else None,
        "seed": int(u[11] * 2**31),
    }
    return Scene(**(values | {k: v for k, v in fixed.items() if k in values}))


def swap(scene: Scene, animal: str, choice: np.random.Generator | Coat) -> Scene:
    """Put another animal in the same scene; `choice` is its coat, or draws one of its natural coats.

    Raises UserError for an unknown animal, naming the known ones.
    """
    _known("animal", animal, ANIMALS)
    coat = choice if isinstance(choice, Coat) else _pick(choice.random(), COATS[animal])
    return replace(scene, animal=animal, coat=coat)


def subject_scene(rng: np.random.Generator, name: str, **fixed: object) -> Scene:
    """Draw a scene with a subject: its coat and its collar, no hat unless one is fixed.

    Raises UserError for an unknown subject, naming the known ones.
    """
    _known("subject", name, tuple(SUBJECTS))
    subject = SUBJECTS[name]
    look = {"animal": subject.class_word, "coat": subject.coat, "collar": subject.collar, "hat": None}
    return random_scene(rng, **(look | fixed))
