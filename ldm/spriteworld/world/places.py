"""The places of the drawn world: one function each, which paints the whole picture behind the animal.

A place is painted in picture units (x to the right, y down, both 0 to 1). What glows at night (a moon, lit windows, a
lamp) is listed beside the picture, so that the night style can lay it over the darkened picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from ldm.errors import UserError

RGB = tuple[int, int, int]
Light = tuple[str, tuple[float, ...], RGB]  # shape, box, colour

MOON: RGB = (240, 240, 214)
LAMP: RGB = (255, 214, 120)
WINDOW: RGB = (206, 170, 104)  # dimmer: lit houses stand behind heads


LAYOUTS = 6  # every place comes in so many: which one a picture shows tells where all else stands in another place


def _spread(seed: int, count: int) -> list[int]:
    """Spread a seed into `count` whole numbers of 64 bits: the same ones everywhere (splitmix64)."""
    mask, numbers = (1 << 64) - 1, []
    state = (seed * 0xD1342543DE82EF95 + 0x1234567) & mask
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(z ^ (z >> 31))
    return numbers


@lru_cache
def layout(seed: int, count: int) -> tuple[float, ...]:
    """Turn a seed into `count` numbers in (0, 1), those of layout `seed % LAYOUTS`.

    A Latin hypercube: over the six layouts each number takes the middles of six equal parts, each once, so that any
    two layouts differ in all of them.
    """
    ranks = (sorted(range(LAYOUTS), key=_spread(j, LAYOUTS).__getitem__) for j in range(count))
    return tuple((order.index(seed % LAYOUTS) + 0.5) / LAYOUTS for order in ranks)


class Canvas:
    """Paint in picture units on a square picture of `side` pixels."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side))
        self.pen = ImageDraw.Draw(self.image)
        self.lights: list[Light] = []

    def fade(self, top: float, bottom: float, upper: RGB, lower: RGB) -> None:
        """Fill the band from y=top to y=bottom with a vertical gradient."""
        first, last = round(top * self.side), round(bottom * self.side)
        t = np.linspace(0, 1, max(last - first, 1))[:, None]
        column = np.rint((1 - t) * np.array(upper) + t * np.array(lower)).astype(np.uint8)[:, None]
        self.image.paste(Image.fromarray(column).resize((self.side, len(column)), Image.Resampling.NEAREST), (0, first))

    def oval(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """Fill an ellipse around (x, y)."""
        s = self.side
        self.pen.ellipse([(x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: RGB) -> None:
        """Fill a rectangle."""
        s = self.side
        self.pen.rectangle([left * s, top * s, right * s, bottom * s], fill=colour)

    def shape(self, points: list[tuple[float, float]], colour: RGB) -> None:
        """Fill a polygon."""
        self.pen.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def sun(self, x: float, y: float, radius: float = 0.072) -> None:
        """Draw the sun, which is the moon at night."""
        self.oval(x, y, radius, radius, (255, 238, 132))
        self.lights.append(("oval", (x, y, radius, radius), MOON))


def _side(u: float) -> float:
    """Put something near the left or the right edge, out of the animal's way."""
    return 0.10 + 0.24 * u if u < 0.5 else 0.66 + 0.24 * u


def meadow(c: Canvas, u: tuple[float, ...]) -> None:
    """Paint a meadow on the canvas; u: numbers in [0, 1) that decide the layout."""
    c.fade(0, 0.62, (112, 184, 244), (206, 234, 252))
    c.sun(_side(u[0]), 0.14)
    c.oval(0.15 + 0.2 * u[1], 0.66, 0.48, 0.16, (150, 205, 112))
    c.oval(0.75 + 0.2 * u[2], 0.68, 0.50, 0.14, (132, 194, 100))
    c.fade(0.62, 1, (124, 192, 84), (84, 156, 62))
    x = _side((u[0] + 0.5) % 1)
    c.box(x - 0.024, 0.42, x + 0.024, 0.66, (122, 86, 58))
    c.oval(x, 0.37, 0.115, 0.135, (64, 146, 74))
    c.oval(x - 0.02, 0.34, 0.085, 0.095, (84, 166, 86))


def beach(c: Canvas, u: tuple[float, ...]) -> None:
    """Paint a beach on the canvas; u: numbers in [0, 1) that decide the layout."""
    c.fade(0, 0.46, (86, 178, 246), (198, 234, 252))
    c.sun(_side(u[0]), 0.14)
    c.fade(0.46, 0.64, (24, 112, 190), (66, 178, 206))
    x = _side((u[0] + 0.5) % 1)
    c.shape([(x, 0.33), (x, 0.47), (x + 0.09, 0.47)], (252, 250, 244))
    c.shape([(x - 0.012, 0.36), (x - 0.012, 0.47), (x - 0.06, 0.47)], (244, 240, 230))
    c.fade(0.64, 1, (252, 238, 194), (236, 206, 144))
    c.box(0, 0.625, 1, 0.65, (236, 248, 246))


def forest(c: Canvas, u: tuple[float, ...]) -> None:
    """Paint a forest on the canvas; u: numbers in [0, 1) that decide the layout."""
    c.fade(0, 0.66, (150, 196, 140), (196, 222, 160))
    for i in range(5):
        x, top = 0.02 + 0.24 * i + 0.07 * (u[i] - 0.5), 0.24 + 0.05 * u[i + 5]
        c.box(x - 0.032, top, x + 0.032, 0.68, (104, 72, 48))
    for i in range(5):
        x, top = 0.02 + 0.24 * i + 0.07 * (u[i] - 0.5), 0.20 + 0.05 * u[i + 5]
        c.oval(x, top, 0.155, 0.19, ((40, 110, 58), (58, 132, 66))[i % 2])
    c.box(0, 0, 1, 0.16, (40, 110, 58))
    c.fade(0.66, 1, (98, 148, 66), (66, 110, 52))


def snow(c: Canvas, u: tuple[float, ...]) -> None:
    """Paint the snow on the canvas; u: numbers in [0, 1) that decide the layout."""
    c.fade(0, 0.64, (128, 174, 220), (206, 222, 240))
    c.sun(0.36 + 0.28 * u[0], 0.13, 0.065)
    c.oval(0.2 + 0.15 * u[1], 0.68, 0.55, 0.16, (196, 214, 234))
    for x in (0.06 + 0.16 * u[2], 0.78 + 0.16 * u[3]):
        for i, width in enumerate((0.075, 0.10, 0.125)):
            y = 0.24 + 0.115 * i
            c.shape([(x, y - 0.06), (x - width, y + 0.13), (x + width, y + 0.13)], (44, 104, 92))
            c.shape([(x, y - 0.06), (x - width * 0.52, y + 0.038), (x + width * 0.52, y + 0.038)], (244, 248, 252))
        c.box(x - 0.02, 0.59, x + 0.02, 0.66, (94, 68, 54))
    c.fade(0.64, 1, (238, 244, 252), (196, 214, 238))


def city(c: Canvas, u: tuple[float, ...]) -> None:
    """Paint a city on the canvas; u: numbers in [0, 1) that decide the layout."""
    c.fade(0, 0.66, (146, 186, 222), (222, 228, 232))
    c.lights.append(("oval", (_side(u[0]), 0.10, 0.055, 0.055), MOON))
    left = -0.06 - 0.1 * u[1]
    for i, colour in enumerate(((204, 150, 140), (150, 160, 186), (222, 194, 154), (166, 152, 176), (152, 182, 188))):
        width, top = 0.23 + 0.03 * (i % 2), 0.16 + 0.24 * u[2 + i]
        c.box(left, top, left + width, 0.68, colour)
        for row in range(3):
            for column in range(2):
                x, y = left + width * (0.17 + 0.42 * column), top + 0.05 + 0.135 * row
                if y < 0.60:
                    c.box(x, y, x + 0.058, y + 0.07, (222, 230, 236))
                    c.lights.append(("box", (x, y, x + 0.058, y + 0.07), WINDOW))
        left += width
    c.box(0, 0.66, 1, 0.72, (196, 192, 188))
    c.fade(0.72, 1, (124, 126, 134), (92, 94, 104))


def desert(c: Canvas, u: tuple[float, ...]) -> None:
    """Paint a desert on the canvas; u: numbers in [0, 1) that decide the layout."""
    c.fade(0, 0.66, (126, 198, 226), (254, 238, 200))
    c.sun(_side(u[0]), 0.15, 0.085)
    c.oval(0.1 + 0.3 * u[1], 0.70, 0.50, 0.20, (234, 168, 122))
    c.oval(0.95 - 0.2 * u[2], 0.72, 0.48, 0.16, (222, 150, 106))
    x = _side(1 - u[0])
    for box in ((x - 0.036, 0.30, x + 0.036, 0.68), (x - 0.11, 0.46, x, 0.51), (x, 0.41, x + 0.11, 0.46)):
        c.box(*box, (66, 138, 78))
    for left, top, bottom in ((x - 0.125, 0.36, 0.49), (x + 0.075, 0.31, 0.44)):
        c.box(left, top, left + 0.05, bottom, (66, 138, 78))
    c.oval(x, 0.30, 0.036, 0.036, (66, 138, 78))
    c.fade(0.66, 1, (222, 144, 100), (190, 106, 76))


def room(c: Canvas, u: tuple[float, ...]) -> None:
    """Paint a room on the canvas; u: numbers in [0, 1) that decide the layout."""
    c.fade(0, 0.665, (172, 204, 198), (196, 220, 210))
    x = 0.22 + 0.10 * u[1] if u[0] < 0.5 else 0.68 + 0.10 * u[1]
    c.box(x - 0.17, 0.08, x + 0.17, 0.44, (250, 248, 240))
    for left in (x - 0.145, x + 0.012):
        c.box(left, 0.105, left + 0.133, 0.415, (150, 208, 246))
    c.lights.append(("oval", (x - 0.08, 0.19, 0.045, 0.045), MOON))
    lamp = 0.90 if x < 0.5 else 0.10
    c.box(lamp - 0.012, 0.34, lamp + 0.012, 0.66, (120, 92, 76))
    shade = ((lamp - 0.05, 0.24), (lamp + 0.05, 0.24), (lamp + 0.09, 0.37), (lamp - 0.09, 0.37))
    c.shape(list(shade), (242, 204, 128))
    c.lights.append(("shape", tuple(v for point in shade for v in point), LAMP))
    c.box(0, 0.63, 1, 0.665, (250, 248, 240))
    c.fade(0.665, 1, (186, 130, 88), (150, 98, 66))
    c.oval(0.5, 0.89, 0.44, 0.085, (178, 84, 84))
    c.oval(0.5, 0.89, 0.36, 0.062, (206, 122, 108))


def mountains(c: Canvas, u: tuple[float, ...]) -> None:
    """Paint the mountains on the canvas; u: numbers in [0, 1) that decide the layout."""
    c.fade(0, 0.64, (120, 176, 232), (228, 236, 244))
    c.sun(_side(u[0]), 0.12, 0.065)
    far, near = (118, 122, 158), (92, 98, 140)
    left, right, middle = 0.02 + 0.1 * u[1], 0.90 + 0.1 * u[2], 0.46 + 0.14 * u[3]
    for x, top, half, colour in ((left, 0.24, 0.40, far), (right, 0.20, 0.42, far), (middle, 0.12, 0.38, near)):
        c.shape([(x - half, 0.68), (x, top), (x + half, 0.68)], colour)
        cap = 0.30
        w, y = half * cap, top + (0.68 - top) * cap
        snowline = [(x + w, y), (x + w / 2, y - 0.03), (x, y + 0.035), (x - w / 2, y - 0.03), (x - w, y)]
        c.shape([(x, top), *snowline], (248, 250, 252))
    c.fade(0.64, 1, (150, 164, 122), (112, 128, 96))


PAINTERS: dict[str, Callable[[Canvas, tuple[float, ...]], None]] = {
    "meadow": meadow,
    "beach": beach,
    "forest": forest,
    "snow": snow,
    "city": city,
    "desert": desert,
    "room": room,
    "mountains": mountains,
}
PLACES = tuple(PAINTERS)


@lru_cache(maxsize=64)
def _paint(place: str, seed: int, side: int) -> tuple[Image.Image, tuple[Light, ...]]:
    canvas = Canvas(side)
    PAINTERS[place](canvas, layout(seed, 12))
    return canvas.image, tuple(canvas.lights)


def paint(place: str, seed: int, side: int) -> tuple[Image.Image, tuple[Light, ...]]:
    """Paint a place, before any style grades it: an RGB picture of side x side pixels, and what glows there at night.

    Raises UserError for an unknown place, naming the known ones.
    """
    if place not in PAINTERS:
        raise UserError(f"unknown place {place!r}: expected one of {', '.join(PLACES)}")
    image, lights = _paint(place, seed % LAYOUTS, side)
    return image.copy(), lights


def glow(lights: tuple[Light, ...], side: int) -> tuple[Image.Image, Image.Image]:
    """Paint the lights alone: RGB and their coverage (L), both side x side pixels."""
    colours, cover = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    pens = ((ImageDraw.Draw(colours), None), (ImageDraw.Draw(cover), 255))
    for shape, box, colour in lights:
        values = [v * side for v in box]
        for pen, fill in pens:
            ink = colour if fill is None else fill
            if shape == "oval":
                x, y, rx, ry = values
                pen.ellipse([x - rx, y - ry, x + rx, y + ry], fill=ink)
            elif shape == "box":
                pen.rectangle(values, fill=ink)
            else:
                pen.polygon(values, fill=ink)
    return colours, cover
