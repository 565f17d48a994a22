"""Measure text to image in the sprite world: whether pictures made from captions show what the captions say."""

from __future__ import annotations

import numpy as np
import torch

from ldm.evaluation.statistics import bootstrap
from ldm.spriteworld.judging.editor import Figures
from ldm.spriteworld.judging.recogniser import Recogniser
from ldm.spriteworld.judging.surroundings import surroundings
from ldm.spriteworld.world.scene import Scene, random_scene
from ldm.spriteworld.world.sentences import caption


def draw_captions(n: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Return n random scenes that no training run draws, with a caption each."""
    captioned = []
    for i in range(n):
        rng = np.random.default_rng([seed, i, 84])
        scene = random_scene(rng)
        captioned.append((scene, caption(scene, rng, rare_share=0)))
    return [scene for scene, _ in captioned], [text for _, text in captioned]


def text_figures(x: torch.Tensor, scenes: list[Scene], recogniser: Recogniser, twin: Recogniser) -> Figures:
    """Return the measures of pictures made from captions: whether animal, place and style are those of the scenes.
    x: the pictures, ``n 3 h w`` in [-1, 1]."""
    looks, right = surroundings(x), {}
    for name, judge in (("animal recognised", recogniser), ("animal recognised (colour-blind)", twin)):
        right[name] = [a == scene.animal for a, scene in zip(judge.animals(x), scenes, strict=True)]
    right["place recognised"] = [place == scene.place for (place, _), scene in zip(looks, scenes, strict=True)]
    right["style recognised"] = [style == scene.style for (_, style), scene in zip(looks, scenes, strict=True)]
    return {name: bootstrap(torch.tensor(values).float()) for name, values in right.items()}
