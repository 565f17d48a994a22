"""Measure a first stage in the sprite world: what its reconstructions lose, also inside animals and subjects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ldm.evaluation.statistics import bootstrap
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging.editor import Figures
from ldm.spriteworld.world.scene import SUBJECTS, random_scene, subject_scene
from ldm.spriteworld.world.tensors import masks, pictures


def first_stage_figures(reconstruct: Callable[[torch.Tensor], torch.Tensor], n: int = 200, seed: int = 2) -> Figures:
    """Return what a first stage loses: PSNR of everything, inside the animals, and inside the subjects."""
    plain = [random_scene(np.random.default_rng([seed, i, 78])) for i in range(n)]
    names = list(SUBJECTS)
    subjects = [subject_scene(np.random.default_rng([seed, i, 79]), names[i % len(names)]) for i in range(n)]
    figures = {}
    for title, scenes in (("animals", plain), ("subjects", subjects)):
        x, mask = pictures(scenes), masks(scenes)
        back = torch.cat([reconstruct(part) for part in x.split(50)]).clamp(-1, 1)
        figures[f"{title}: inside the mask (dB)"] = bootstrap(m.masked_psnr(back, x, mask))
        figures[f"{title}: whole picture (dB)"] = bootstrap(m.exact_psnr(back, x))
        figures[f"{title}: roughness inside"] = bootstrap(m.roughness(back, x, mask))
    return figures
