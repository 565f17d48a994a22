"""How the animals of the drawn world are built: outlines in a frame of their own, without colours and without pixels.

An animal stands at the origin, looks to the right, and y points up; one unit is the width of the picture. A figure is
a list of parts from back to front. A part names a region ("torso", "near_leg", "eye" ...); the coat says later which
colour a region has, or that it is not drawn at all (a marking such as "saddle" exists only in some coats).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from ldm.errors import UserError

ANIMALS = ("dog", "wolf", "cat", "horse", "bear", "rabbit")
STANCES = ("stand", "walk", "sit")

Chain = tuple[tuple[float, float, float], ...]  # (x, y, radius) from one end of a limb to the other


@dataclass(frozen=True)
class Part:
    """Hold one filled outline (n 2); `on` names the group it is clipped to, `group` the groups it belongs to."""

    region: str
    outline: np.ndarray
    group: str = ""
    on: str = ""


@dataclass(frozen=True)
class Figure:
    """Hold an animal in one stance: its parts back to front, its height and the reach of its shadow."""

    parts: tuple[Part, ...]
    eye: tuple[float, float]  # x, y of its middle
    hat: tuple[Part, ...]
    height: float
    shadow: tuple[float, float]  # x centre, half width


@dataclass(frozen=True)
class Frame:
    """Hold the chains of an animal in one stance; legs are (hip, knee, foot) chains."""

    torso: Chain
    neck: Chain
    head: tuple[float, float, float]  # x, y, angle in degrees (positive looks up)
    tail: Chain
    front: Chain
    hind: Chain
    paw: float  # how far a paw reaches forward
    stride: float = 0.0
    haunch: tuple[float, float, float, float] | None = None


FRAMES: dict[str, tuple[Frame, Frame]] = {
    "dog": (
        Frame(
            torso=((-0.165, 0.265, 0.080), (-0.03, 0.262, 0.078), (0.09, 0.262, 0.098)),
            neck=((0.085, 0.29, 0.085), (0.165, 0.43, 0.062)),
            head=(0.185, 0.465, 0),
            tail=((-0.215, 0.30, 0.030), (-0.275, 0.36, 0.026), (-0.295, 0.46, 0.016)),
            front=((0.105, 0.24, 0.058), (0.108, 0.12, 0.040), (0.105, 0.032, 0.034)),
            hind=((-0.165, 0.25, 0.074), (-0.192, 0.13, 0.044), (-0.175, 0.032, 0.034)),
            paw=0.030,
            stride=0.075,
        ),
        Frame(
            torso=((-0.11, 0.115, 0.105), (-0.03, 0.21, 0.098), (0.045, 0.30, 0.088)),
            neck=((0.045, 0.30, 0.085), (0.09, 0.43, 0.062)),
            head=(0.105, 0.475, 0),
            tail=((-0.18, 0.06, 0.030), (-0.255, 0.075, 0.026), (-0.305, 0.155, 0.016)),
            front=((0.055, 0.27, 0.058), (0.085, 0.14, 0.038), (0.088, 0.032, 0.034)),
            hind=((-0.12, 0.03, 0.032), (-0.07, 0.03, 0.032), (-0.015, 0.03, 0.032)),
            paw=0.030,
            haunch=(-0.105, 0.115, 0.105, 0.108),
        ),
    ),
    "wolf": (
        Frame(
            torso=((-0.17, 0.268, 0.078), (-0.04, 0.268, 0.078), (0.085, 0.272, 0.104)),
            neck=((0.075, 0.30, 0.098), (0.150, 0.40, 0.076)),
            head=(0.165, 0.435, -3),
            tail=((-0.215, 0.285, 0.034), (-0.275, 0.225, 0.058), (-0.315, 0.13, 0.050), (-0.33, 0.075, 0.014)),
            front=((0.105, 0.24, 0.054), (0.110, 0.12, 0.034), (0.105, 0.028, 0.029)),
            hind=((-0.165, 0.25, 0.074), (-0.200, 0.13, 0.038), (-0.175, 0.028, 0.029)),
            paw=0.032,
            stride=0.08,
        ),
        Frame(
            torso=((-0.12, 0.115, 0.103), (-0.04, 0.21, 0.100), (0.035, 0.30, 0.098)),
            neck=((0.035, 0.30, 0.096), (0.085, 0.42, 0.074)),
            head=(0.095, 0.455, -3),
            tail=((-0.19, 0.06, 0.034), (-0.26, 0.055, 0.054), (-0.33, 0.065, 0.046), (-0.375, 0.085, 0.012)),
            front=((0.055, 0.27, 0.058), (0.085, 0.14, 0.034), (0.088, 0.028, 0.029)),
            hind=((-0.12, 0.028, 0.028), (-0.07, 0.028, 0.028), (-0.015, 0.028, 0.028)),
            paw=0.032,
            haunch=(-0.115, 0.115, 0.103, 0.106),
        ),
    ),
    "cat": (
        Frame(
            torso=((-0.120, 0.180, 0.066), (-0.02, 0.178, 0.064), (0.070, 0.182, 0.068)),
            neck=((0.065, 0.20, 0.060), (0.115, 0.275, 0.050)),
            head=(0.130, 0.310, 0),
            tail=((-0.165, 0.205, 0.022), (-0.235, 0.25, 0.022), (-0.235, 0.36, 0.021), (-0.175, 0.425, 0.019)),
            front=((0.080, 0.17, 0.042), (0.085, 0.09, 0.028), (0.082, 0.024, 0.025)),
            hind=((-0.125, 0.17, 0.054), (-0.148, 0.09, 0.031), (-0.130, 0.024, 0.025)),
            paw=0.022,
            stride=0.055,
        ),
        Frame(
            torso=((-0.06, 0.095, 0.086), (-0.015, 0.17, 0.078), (0.025, 0.235, 0.062)),
            neck=((0.025, 0.235, 0.058), (0.050, 0.31, 0.050)),
            head=(0.055, 0.350, 0),
            tail=((-0.12, 0.04, 0.022), (-0.205, 0.05, 0.022), (-0.245, 0.135, 0.021), (-0.205, 0.215, 0.019)),
            front=((0.035, 0.20, 0.042), (0.058, 0.10, 0.028), (0.060, 0.024, 0.025)),
            hind=((-0.06, 0.024, 0.024), (-0.03, 0.024, 0.024), (0.005, 0.024, 0.024)),
            paw=0.022,
            haunch=(-0.060, 0.092, 0.086, 0.086),
        ),
    ),
    "horse": (
        Frame(
            torso=((-0.165, 0.318, 0.086), (-0.04, 0.305, 0.080), (0.075, 0.318, 0.090)),
            neck=((0.070, 0.335, 0.086), (0.130, 0.45, 0.056), (0.175, 0.535, 0.046)),
            head=(0.190, 0.550, 0),
            tail=((-0.225, 0.36, 0.026), (-0.285, 0.31, 0.036), (-0.290, 0.21, 0.038), (-0.285, 0.13, 0.012)),
            front=((0.085, 0.29, 0.056), (0.092, 0.15, 0.030), (0.090, 0.025, 0.026)),
            hind=((-0.165, 0.30, 0.078), (-0.198, 0.16, 0.034), (-0.185, 0.025, 0.026)),
            paw=0.010,
            stride=0.085,
        ),
        Frame(  # a horse does not sit: it lies
            torso=((-0.165, 0.125, 0.102), (-0.04, 0.112, 0.092), (0.075, 0.125, 0.094)),
            neck=((0.070, 0.145, 0.086), (0.130, 0.26, 0.056), (0.175, 0.345, 0.046)),
            head=(0.190, 0.360, 0),
            tail=((-0.245, 0.16, 0.026), (-0.300, 0.12, 0.034), (-0.330, 0.06, 0.032), (-0.365, 0.025, 0.012)),
            front=((0.085, 0.075, 0.048), (0.155, 0.045, 0.030), (0.235, 0.026, 0.026)),
            hind=((-0.14, 0.030, 0.030), (-0.08, 0.030, 0.030), (-0.015, 0.028, 0.026)),
            paw=0.010,
            haunch=(-0.160, 0.112, 0.104, 0.104),
        ),
    ),
    "bear": (
        Frame(
            torso=((-0.165, 0.250, 0.128), (-0.03, 0.258, 0.138), (0.085, 0.262, 0.128)),
            neck=((0.085, 0.28, 0.120), (0.165, 0.325, 0.098)),
            head=(0.195, 0.345, 0),
            tail=((-0.275, 0.30, 0.026), (-0.300, 0.30, 0.030)),
            front=((0.105, 0.21, 0.078), (0.110, 0.11, 0.062), (0.108, 0.048, 0.050)),
            hind=((-0.175, 0.21, 0.088), (-0.185, 0.11, 0.066), (-0.180, 0.048, 0.050)),
            paw=0.035,
            stride=0.06,
        ),
        Frame(
            torso=((-0.07, 0.140, 0.140), (-0.03, 0.23, 0.135), (0.005, 0.31, 0.108)),
            neck=((0.005, 0.31, 0.105), (0.045, 0.41, 0.085)),
            head=(0.060, 0.445, 0),
            tail=((-0.195, 0.07, 0.028), (-0.220, 0.07, 0.030)),
            front=((0.020, 0.29, 0.068), (0.085, 0.17, 0.056), (0.100, 0.050, 0.048)),
            hind=((-0.07, 0.045, 0.046), (0.0, 0.045, 0.046), (0.045, 0.045, 0.046)),
            paw=0.030,
            haunch=(-0.080, 0.130, 0.125, 0.120),
        ),
    ),
    "rabbit": (
        Frame(
            torso=((-0.075, 0.135, 0.098), (0.00, 0.135, 0.088), (0.055, 0.140, 0.066)),
            neck=((0.050, 0.15, 0.060), (0.095, 0.215, 0.052)),
            head=(0.110, 0.245, 0),
            tail=((-0.170, 0.120, 0.040), (-0.178, 0.122, 0.040)),
            front=((0.070, 0.12, 0.036), (0.082, 0.07, 0.026), (0.080, 0.022, 0.023)),
            hind=((-0.12, 0.026, 0.027), (-0.07, 0.026, 0.027), (-0.02, 0.026, 0.026)),
            paw=0.018,
            stride=0.045,
            haunch=(-0.085, 0.105, 0.085, 0.085),
        ),
        Frame(
            torso=((-0.045, 0.105, 0.098), (-0.01, 0.16, 0.086), (0.018, 0.205, 0.066)),
            neck=((0.018, 0.205, 0.062), (0.038, 0.265, 0.052)),
            head=(0.050, 0.300, 4),
            tail=((-0.142, 0.060, 0.040), (-0.150, 0.062, 0.040)),
            front=((0.030, 0.18, 0.038), (0.055, 0.09, 0.026), (0.060, 0.022, 0.023)),
            hind=((-0.06, 0.026, 0.027), (-0.02, 0.026, 0.027), (0.025, 0.026, 0.026)),
            paw=0.018,
            haunch=(-0.050, 0.095, 0.086, 0.086),
        ),
    ),
}

# How much larger than its frame an animal is drawn.
SIZES = {"cat": 1.12, "rabbit": 1.12}

# Where a hat sits: x and y of its cuff's middle from the head's, and its size.
HATS = {
    "dog": (0.004, 0.088, 0.92),
    "wolf": (0.016, 0.076, 0.92),
    "cat": (0.010, 0.072, 0.88),
    "horse": (0.018, 0.066, 0.80),
    "bear": (0.014, 0.102, 1.00),
    "rabbit": (0.016, 0.066, 0.84),
}

# How far the near ear lies back under a hat, in degrees about the middle of the head. The far one is under the hat.
EARS_BACK = {"wolf": 34, "cat": 46, "horse": 34, "bear": 28, "rabbit": 34}


def _spline(points: np.ndarray, closed: bool, steps: int = 6) -> np.ndarray:
    """Run a Catmull-Rom curve through points (n d)."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.arange(steps)[None, :, None] / steps
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, points.shape[1])
    return curve if closed else np.concatenate([curve, points[-1:]])


def tube(chain: Chain) -> np.ndarray:
    """Outline a limb: the envelope of the circles (x, y, radius) along a curve."""
    curve = _spline(np.array(chain), closed=False)
    centre, radius = curve[:, :2], np.maximum(curve[:, 2], 0.004)
    step = np.gradient(centre, axis=0)
    length = np.linalg.norm(step, axis=1)
    along = step / length[:, None]
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    touch = np.arccos(np.clip(-np.gradient(radius) / length, -0.9, 0.9))  # where the envelope touches each circle

    def rim(index: int | slice, angle: np.ndarray) -> np.ndarray:
        angle = angle[:, None]
        spread = np.atleast_1d(radius[index])[:, None]
        return centre[index] + spread * (np.cos(angle) * along[index] + np.sin(angle) * normal[index])

    every = slice(None)
    end = rim(-1, np.linspace(touch[-1], -touch[-1], 10)[1:-1])
    start = rim(0, np.linspace(-touch[0], touch[0] - 2 * math.pi, 10)[1:-1])
    return np.concatenate([rim(every, touch), end, rim(every, -touch)[::-1], start])


def oval(x: float, y: float, rx: float, ry: float, angle: float = 0) -> np.ndarray:
    """Outline an ellipse turned by `angle` degrees."""
    turn = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    return move(np.stack([rx * np.cos(turn), ry * np.sin(turn)], axis=1), x, y, angle)


def blob(*points: tuple[float, float]) -> np.ndarray:
    """Outline a smooth closed shape through points."""
    return _spline(np.array(points), closed=True)


def corners(*points: tuple[float, float]) -> np.ndarray:
    """Outline a shape with sharp corners."""
    return np.array(points)


def move(outline: np.ndarray, x: float, y: float, angle: float = 0) -> np.ndarray:
    """Turn an outline about the origin by `angle` degrees, then shift it to (x, y)."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return outline @ np.array([[c, s], [-s, c]]) + (x, y)


def _eye(x: float, y: float) -> Part:
    """Say where an eye lies; it is drawn of whole pixels, which only the picture has, whatever this outline is."""
    return Part("eye", oval(x, y, 0.02, 0.02))


def _dog_head() -> list[Part]:
    blaze = blob((0.0, 0.11), (0.09, 0.09), (0.16, 0.04), (0.20, -0.03), (0.13, -0.1), (0.03, -0.09))
    ear = blob((-0.055, 0.072), (-0.012, 0.062), (-0.002, -0.01), (-0.022, -0.105), (-0.065, -0.105), (-0.088, 0.0))
    return [
        Part("skull", oval(0, 0, 0.088, 0.085), "head"),
        Part("skull", tube(((0.03, -0.022, 0.058), (0.115, -0.034, 0.043))), "head"),
        Part("face", oval(0.09, -0.03, 0.075, 0.055, -8), on="head"),
        Part("blaze", blaze, on="head"),
        Part("eye_patch", oval(0.035, 0.035, 0.055, 0.062), on="head"),
        Part("nose", oval(0.152, -0.014, 0.021, 0.018)),
        _eye(0.038, 0.022),
        Part("ear", ear),
    ]


def _wolf_head() -> list[Part]:
    ear = corners((-0.062, 0.03), (-0.050, 0.155), (0.022, 0.055))
    inner = corners((-0.045, 0.055), (-0.043, 0.122), (0.000, 0.060))
    ruff = corners((-0.06, 0.04), (-0.105, -0.045), (-0.065, -0.04), (-0.06, -0.095), (0.03, -0.07))
    cheek = blob((0.02, -0.02), (0.10, -0.03), (0.18, -0.045), (0.1, -0.1), (-0.05, -0.12), (-0.07, -0.05))
    return [
        Part("far_ear", corners((-0.02, 0.05), (0.026, 0.152), (0.062, 0.035))),
        Part("skull", oval(0, 0, 0.082, 0.076), "head"),
        Part("skull", tube(((0.02, -0.016, 0.056), (0.09, -0.03, 0.040), (0.165, -0.040, 0.024))), "head"),
        Part("skull", ruff, "head"),
        Part("face", cheek, on="head"),
        Part("nose", oval(0.178, -0.030, 0.019, 0.016)),
        _eye(0.042, 0.020),
        Part("ear", ear),
        Part("inner_ear", inner),
    ]


def _cat_head() -> list[Part]:
    ear = corners((-0.066, 0.025), (-0.058, 0.118), (0.012, 0.055))
    inner = corners((-0.050, 0.045), (-0.049, 0.092), (-0.008, 0.056))
    return [
        Part("far_ear", corners((0.005, 0.05), (0.050, 0.122), (0.074, 0.020))),
        Part("skull", oval(0, 0, 0.080, 0.071), "head"),
        Part("skull", oval(0.05, -0.024, 0.040, 0.036), "head"),
        Part("face", oval(0.058, -0.026, 0.042, 0.034), on="head"),
        Part("mask", oval(0.055, -0.005, 0.062, 0.058), on="head"),
        Part("nose", oval(0.086, -0.012, 0.013, 0.011)),
        _eye(0.030, 0.014),
        Part("ear", ear),
        Part("inner_ear", inner),
    ]


def _horse_head() -> list[Part]:
    ear = corners((-0.036, 0.025), (-0.026, 0.100), (0.012, 0.040))
    return [
        Part("far_ear", move(ear, 0.026, 0.0, -10)),
        Part("skull", tube(((-0.005, -0.002, 0.056), (0.055, -0.045, 0.048), (0.115, -0.098, 0.038))), "head"),
        Part("muzzle", oval(0.118, -0.102, 0.044, 0.040, -45), on="head"),
        Part("blaze", tube(((0.04, 0.03, 0.02), (0.15, -0.06, 0.02))), on="head"),
        Part("nose", oval(0.138, -0.092, 0.009, 0.008)),
        _eye(0.018, -0.010),
        Part("ear", ear),
        Part("mane", blob((-0.02, 0.062), (0.022, 0.066), (0.062, 0.008), (0.030, 0.024), (-0.01, 0.028))),
    ]


def _bear_head() -> list[Part]:
    return [
        Part("far_ear", oval(0.040, 0.078, 0.033, 0.033)),
        Part("skull", oval(0, 0, 0.102, 0.092), "head"),
        Part("ear", oval(-0.058, 0.075, 0.037, 0.037)),
        Part("inner_ear", oval(-0.055, 0.072, 0.020, 0.020)),
        Part("muzzle", tube(((0.075, -0.030, 0.050), (0.112, -0.034, 0.042))), "head"),
        Part("nose", oval(0.145, -0.014, 0.023, 0.019)),
        _eye(0.048, 0.026),
    ]


def _rabbit_head() -> list[Part]:
    ear = tube(((-0.022, 0.045, 0.018), (-0.046, 0.125, 0.030), (-0.062, 0.200, 0.014)))
    inner = tube(((-0.030, 0.075, 0.006), (-0.046, 0.125, 0.014), (-0.056, 0.175, 0.005)))
    return [
        Part("far_ear", move(ear, 0.030, 0.006, -14)),
        Part("skull", oval(0, 0, 0.070, 0.064), "head"),
        Part("skull", oval(0.035, -0.018, 0.046, 0.042), "head"),
        Part("face", oval(0.05, -0.03, 0.04, 0.034), on="head"),
        Part("nose", oval(0.078, -0.008, 0.012, 0.010)),
        _eye(0.030, 0.014),
        Part("ear", ear),
        Part("inner_ear", inner),
    ]


HEADS = {
    "dog": _dog_head,
    "wolf": _wolf_head,
    "cat": _cat_head,
    "horse": _horse_head,
    "bear": _bear_head,
    "rabbit": _rabbit_head,
}


def _leg(side: str, chain: Chain, paw: float, hoofed: bool) -> list[Part]:
    """Build a leg from hip to paw; its lower half is a marking of its own (socks)."""
    (kx, ky, kr), (fx, fy, fr) = chain[1:]
    foot = tube(((fx, fy, fr), (fx + max(paw, 0.004), fy - 0.002, fr * 0.94)))
    end = Part("hoof", tube(((fx, fy, fr), (fx + 0.006, fy - 0.003, fr * 1.06)))) if hoofed else None
    sock = tube((((kx + fx) / 2, (ky + fy) / 2 + 0.016, (kr + fr) / 2 + 0.003), (fx, fy, fr + 0.002)))
    group = "body" if side == "near" else ""
    parts = [Part(f"{side}_leg", tube(chain), group), Part(f"{side}_leg", foot, group)]
    parts += [Part(f"{side}_sock", sock), Part(f"{side}_sock", foot)]
    return [*parts, end] if end else parts


def _step(chain: Chain, shift: float, lift: float = 0.0) -> Chain:
    """Swing a leg: the foot moves by `shift`, the knee by half of it, the hip stays."""
    (hx, hy, hr), (kx, ky, kr), (fx, fy, fr) = chain
    return ((hx, hy, hr), (kx + 0.5 * shift, ky, kr), (fx + shift, fy + lift, fr))


def _legs(animal: str, frame: Frame, stance: str) -> tuple[list[Part], list[Part]]:
    """Build the far legs and the near legs."""
    hoofed = animal == "horse"
    stride = frame.stride if stance == "walk" else 0.0
    apart = 0.058 if animal != "rabbit" else 0.035
    front_near, front_far = _step(frame.front, -stride), _step(frame.front, stride + (0 if stride else apart))
    if frame.haunch is not None:  # a folded hind leg: the foot lies on the ground
        near = [Part("haunch", oval(*frame.haunch), "body"), *_leg("near", frame.hind, 0.012, False)]
        far = _leg("far", tuple((x + apart, y, r) for x, y, r in frame.hind), 0.012, False)
        return _leg("far", front_far, frame.paw, hoofed) + far, near + _leg("near", front_near, frame.paw, hoofed)
    hind_near, hind_far = _step(frame.hind, stride), _step(frame.hind, -stride + (0 if stride else apart))
    far = _leg("far", hind_far, frame.paw, hoofed) + _leg("far", front_far, frame.paw, hoofed)
    near = _leg("near", hind_near, frame.paw, hoofed) + _leg("near", front_near, frame.paw, hoofed)
    return far, near


def _markings(torso: Chain) -> tuple[list[Part], list[Part]]:
    """Lay the markings on the body, in coordinates along (u) and across (v) the torso: under and over the near legs."""
    curve = _spline(np.array(torso), closed=False, steps=16)
    along = np.gradient(curve[:, :2], axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)

    def at(u: float, v: float) -> tuple[float, float]:
        i = min(max(round(u * (len(curve) - 1)), 0), len(curve) - 1)
        x, y, r = curve[i]
        return x - along[i, 1] * v * r, y + along[i, 0] * v * r

    radius = float(np.mean(curve[:, 2]))
    low = tuple((*at(u, -1.0), 0.62 * radius) for u in (0.1, 0.5, 1.0))
    back = tuple((*at(u, 0.95), 0.75 * radius) for u in (0.05, 0.4, 0.7))
    patches = ((-0.05, 0.20, 1.05), (0.68, 0.40, 0.85))
    spots = ((0.08, 0.35), (0.36, 0.45), (0.64, 0.40), (0.50, -0.35), (0.90, -0.10))
    stripes = [((*at(u, 1.1), 0.018), (*at(u - 0.04, 0.1), 0.012)) for u in (0.1, 0.38, 0.66, 0.94)]
    over = [
        Part("saddle", tube(back), on="body"),
        *(Part("patch", oval(*at(u, v), s * radius, s * radius * 0.9), on="body") for u, v, s in patches),
        *(Part("spot", oval(*at(u, v), 0.32 * radius, 0.30 * radius), on="body") for u, v in spots),
        *(Part("stripe", tube(stripe), on="body") for stripe in stripes),
    ]
    return [Part("belly", tube(low), on="torso")], over


def _neck(animal: str, frame: Frame) -> tuple[list[Part], list[Part]]:
    """Build what lies over the neck: a chest marking and a mane, and the collar."""
    (ax, ay, ar), (bx, by, br) = frame.neck[0], frame.neck[-1]
    length = math.hypot(bx - ax, by - ay)
    ux, uy = (bx - ax) / length, (by - ay) / length
    chest = Part("chest", oval(ax + 0.055, ay - 0.025, 0.075, 0.12, -12), on="torso")
    bib = Part("bib", oval(ax + 0.065, ay - 0.015, 0.062, 0.115, -6), on="body")
    over = [chest]
    if animal == "horse":
        curve = [(x - uy * r * 0.80 - 0.006, y + ux * r * 0.80, 0.030) for x, y, r in frame.neck]
        over.append(Part("mane", tube((*curve, (bx + 0.015, by + 0.060, 0.020)))))
    where = {"horse": 0.62, "bear": 0.55, "wolf": 0.55, "rabbit": 0.45}.get(animal, 0.48)
    cx, cy, r = ax + (bx - ax) * where, ay + (by - ay) * where, (ar + (br - ar) * where) * 0.98
    middle = (cx - 0.014 * ux, cy - 0.014 * uy, 0.024)
    collar = tube(((cx - uy * r, cy + ux * r, 0.022), middle, (cx + uy * r, cy - ux * r, 0.022)))
    return over, [bib, Part("collar", collar)]


def _head(animal: str, hat: bool) -> list[Part]:
    """Build the head about the origin; under a hat the near ear lies back, so that neither cuts through the other."""
    parts = HEADS[animal]()
    if not hat or animal not in EARS_BACK:
        return parts
    back = EARS_BACK[animal]
    turned = [replace(p, outline=move(p.outline, 0, 0, back)) if p.region in ("ear", "inner_ear") else p for p in parts]
    return [p for p in turned if p.region != "far_ear"]


def _hat(animal: str) -> list[Part]:
    """Build a bobble hat about the middle of its cuff, upright: its edges are rows of pixels."""
    turn = np.linspace(0, math.pi, 20)
    x, y = np.cos(turn), np.sin(turn)
    dome = np.stack([0.082 * np.sign(x) * np.abs(x) ** 0.83, 0.105 * y**0.83], axis=1)  # a little squarer than round
    cuff = tube(((-0.078, 0.006, 0.024), (0.078, 0.006, 0.024)))
    shapes = (("hat_trim", oval(0, 0.118, 0.030, 0.030)), ("hat", dome), ("hat_trim", cuff))
    return [Part(region, HATS[animal][2] * outline) for region, outline in shapes]


@cache
def figure(animal: str, stance: str, hat: bool = False) -> Figure:
    """Build an animal in a stance; one with a hat lays its ears back, and is else the same.

    Raises UserError for an unknown animal or stance, naming the known ones.
    """
    if animal not in FRAMES:
        raise UserError(f"unknown animal {animal!r}: expected one of {', '.join(ANIMALS)}")
    if stance not in STANCES:
        raise UserError(f"unknown stance {stance!r}: expected one of {', '.join(STANCES)}")
    frame = FRAMES[animal][stance == "sit"]
    far, near = _legs(animal, frame, stance)
    over, collar = _neck(animal, frame)
    cut = len(frame.tail) - 2
    tip = tuple((a + b) / 2 for a, b in zip(frame.tail[cut], frame.tail[cut + 1], strict=True)), frame.tail[-1]
    tail = [Part("tail", tube(frame.tail)), Part("tail_tip", tube(tip))]
    body = [Part("torso", tube(chain), "torso body") for chain in (frame.torso, frame.neck)]
    head = [replace(p, outline=move(p.outline, *frame.head)) for p in _head(animal, hat)]
    under, markings = _markings(frame.torso)
    size = SIZES.get(animal, 1.0)
    parts = (*tail, *far, *body, *under, *over, *near, *markings, *collar, *head)
    parts = tuple(replace(p, outline=size * p.outline) for p in parts)
    if hat:
        bare = figure(animal, stance)
        seat = move(np.array([HATS[animal][:2]]), *frame.head)
        worn = tuple(replace(p, outline=size * (seat + p.outline)) for p in _hat(animal))
        return replace(bare, parts=parts, hat=worn)
    solid = np.concatenate([p.outline for p in parts if not p.on])
    ground = size * np.concatenate([p.outline for p in (*far, *near, *body)])
    left, right = float(ground[:, 0].min()), float(ground[:, 0].max())
    eye = next(part.outline for part in parts if part.region == "eye").mean(axis=0)
    return Figure(parts, tuple(eye.tolist()), (), float(solid[:, 1].max()), ((left + right) / 2, (right - left) / 2))
