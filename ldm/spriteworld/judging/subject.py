"""Measure what an editor knows of one sprite-world subject, and what it has forgotten or confuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import open_rgb, to_images, to_tensor
from ldm.data.instructions import INSTANCE_TEMPLATES, REGULARIZATION_TEMPLATES, fill
from ldm.evaluation.statistics import bootstrap
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging.editor import Figures, measure
from ldm.spriteworld.judging.recogniser import Recogniser
from ldm.spriteworld.world.scene import ANIMALS, SUBJECTS, Scene, draw, random_scene, swap
from ldm.spriteworld.world.tensors import masks, pictures

Edit = Callable[[torch.Tensor, list[str]], torch.Tensor]

# The figure of each kind of edit that stands for the kind in comparisons with the frozen editor.
KEPT = {"class": "recognised", "place": "done", "style": "done", "colour": "right colour"}


def source_scenes(source: str, n: int, seed: int) -> list[Scene]:
    """Return n fresh scenes with an animal of the source class, by day, without hat or collar."""
    fixed = {"animal": source, "style": "day", "hat": None, "collar": None}
    return [random_scene(np.random.default_rng([seed, i, 82]), **fixed) for i in range(n)]


def true_scene(scene: Scene, subject: str) -> Scene:
    """Return the exact answer to "replace it with the subject"."""
    known = SUBJECTS[subject]
    return replace(swap(scene, known.class_word, known.coat), collar=known.collar, hat=None)


def unseen_sources(subject: str, trained: Sequence[str]) -> list[str]:
    """Return the animals that are neither the subject's class nor among the trained source words."""
    return [animal for animal in ANIMALS if animal != SUBJECTS[subject].class_word and animal not in trained]


def subject_figures(
    edit: Edit,
    subject: str,
    recogniser: Recogniser,
    photos: torch.Tensor,
    trained: Sequence[str] = ("wolf",),
    identifier: str = "sks",
    n: int = 100,
    seed: int = 1,
) -> tuple[Figures, float]:
    """Return an editor's figures about one subject, and the diversity of its plain class pictures.

    photos: the training photos, ``k 3 h w``. trained: source words of the training pairs. identifier: "" asks for the
    plain class only. n: fresh scenes of every figure.
    """
    figures: Figures = {}
    for title, sources in (("trained source", trained), ("unseen source", unseen_sources(subject, trained))):
        scenes = _scenes_of(sources, n, seed)
        replaced = _replaced_figures(edit, scenes, subject, recogniser, photos, identifier)
        figures |= {f"{title}: {name}": value for name, value in replaced.items()}
    plain, diversity = _plain_class_figures(edit, _scenes_of(trained, n, seed + 50), subject, recogniser)
    return figures | {f"plain class: {name}": value for name, value in plain.items()}, diversity


def _scenes_of(sources: Sequence[str], n: int, seed: int) -> list[Scene]:
    """Return n scenes, about as many of each source class."""
    each = -(-n // len(sources))
    return [scene for k, source in enumerate(sources) for scene in source_scenes(source, each, seed + k)][:n]


def _replaced_figures(
    edit: Edit, scenes: list[Scene], subject: str, recogniser: Recogniser, photos: torch.Tensor, identifier: str
) -> Figures:
    """Return how well the animals of scenes are replaced with the subject."""
    true = [true_scene(scene, subject) for scene in scenes]
    before, truth, was, will = pictures(scenes), pictures(true), masks(scenes), masks(true)
    empty = to_tensor([draw(scene, empty=True) for scene in scenes])
    word = SUBJECTS[subject].class_word
    x = edit(before, [fill(INSTANCE_TEMPLATES[0], identifier, word, scene.animal) for scene in scenes])
    return {
        "subject recognised": bootstrap(recogniser.is_subject(x, subject).float()),
        "colour distance": bootstrap(m.colour_distance(x, truth, will)),
        "pattern distance": bootstrap(m.pattern_distance(x, truth, will)),
        "background kept (dB)": bootstrap(m.background_psnr(x, before, was, will)),
        "training background": bootstrap(m.training_background(x, before, photos, was, will)),
        "second subject": bootstrap(m.second_subject(x, before, was, will)),
        "incomplete edit": bootstrap(m.incomplete(x, empty, was, will)),
        "roughness": bootstrap(m.roughness(x, truth)),
    }


def _plain_class_figures(
    edit: Edit, scenes: list[Scene], subject: str, recogniser: Recogniser
) -> tuple[Figures, float]:
    """Return what becomes of the subject's class without the identifier, and the diversity of those pictures."""
    word = SUBJECTS[subject].class_word
    before, was, will = pictures(scenes), masks(scenes), masks([true_scene(s, subject) for s in scenes])
    x = edit(before, [fill(REGULARIZATION_TEMPLATES[0], "", word, scene.animal) for scene in scenes])
    recognised = torch.tensor([animal == word for animal in recogniser.animals(x)]).float()
    figures = {
        "leak of the subject": bootstrap(recogniser.is_subject(x, subject).float()),
        "recognised": bootstrap(recognised),
        "background kept (dB)": bootstrap(m.background_psnr(x, before, was, will)),
    }
    return figures, m.diversity(x, will)


def kept_figures(edit: Edit, recogniser: Recogniser, twin: Recogniser, n: int = 100, seed: int = 1) -> Figures:
    """Return how well the general edits are done: one figure a kind, over n fresh scenes each."""
    figures = measure(edit, recogniser, twin, n, seed, KEPT)
    return {f"{kind}: {name}": figures[kind][name] for kind, name in KEPT.items()}


def training_photos(folder: Path) -> torch.Tensor:
    """Return a subject's photos, ``k 3 h w`` in [-1, 1]."""
    return to_tensor([open_rgb(path) for path in sorted(folder.glob("*.png"))])


def results_sheet(
    edits: dict[str, tuple[Edit, str]], subject: str, sources: Sequence[str], rows: int = 8, seed: int = 1
) -> Image.Image:
    """Return a sheet of new pictures: the input, what each editor makes of it, and the truth.

    edits: title -> (editor, identifier that it is asked with).
    """
    word = SUBJECTS[subject].class_word
    scenes = [source_scenes(sources[i % len(sources)], i // len(sources) + 1, seed + 90)[-1] for i in range(rows)]
    before = pictures(scenes)
    columns = [to_images(before)]
    for edit, identifier in edits.values():
        texts = [fill(INSTANCE_TEMPLATES[0], identifier, word, s.animal) for s in scenes]
        columns.append(to_images(edit(before, texts)))
    columns.append(to_images(pictures([true_scene(s, subject) for s in scenes])))
    labels = ["input", *edits, "truth"]
    return contact_sheet(list(zip(*columns, strict=True)), column_labels=labels, cell=128)
