"""Measure an editor in the sprite world: fresh scenes, random instructions of every kind, exact answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import to_images, to_tensor
from ldm.evaluation.statistics import Interval, bootstrap
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging.recogniser import Recogniser
from ldm.spriteworld.judging.surroundings import surroundings
from ldm.spriteworld.world.grids import grid
from ldm.spriteworld.world.scene import COATS, COLOURS, Scene, draw
from ldm.spriteworld.world.sentences import KINDS, Edit, random_edit, with_coat, with_word
from ldm.spriteworld.world.tensors import masks, pictures

Figures = dict[str, Interval]
WORN = ("collar", "hat")  # what a new animal should still wear
RIGHT_COLOUR = 15.0  # CIELAB: nearer than this to the true subject's mean colour counts as the right colour
# dB against the true picture that a place or style edit needs to count as done: more in the styles whose backdrops have
# less contrast, in which any two pictures are nearer to each other.
RIGHT_PLACE = {"day": 24.0, "night": 24.0, "grey": 29.0, "sunset": 28.0}


def draw_edits(n: int, seed: int, kind: str | None = None) -> list[Edit]:
    """Return n random edits that no training run draws (their seeds have three parts)."""
    return [random_edit(np.random.default_rng([seed, i, 77]), kind, rare_share=0) for i in range(n)]


def nearest_coat(x: torch.Tensor, scenes: list[Scene], mask: torch.Tensor) -> torch.Tensor:
    """Return for each picture the true one in that of its animal's natural coats that comes nearest inside the mask: a
    class instruction names no coat, so each of them is a right answer. x: ``n 3 h w``; mask: ``n 1 h w``."""
    most = max(len(COATS[scene.animal]) for scene in scenes)
    dressed = [
        pictures([replace(s, coat=COATS[s.animal][min(k, len(COATS[s.animal]) - 1)]) for s in scenes])
        for k in range(most)
    ]
    best = torch.stack([m.masked_psnr(x, answer, mask) for answer in dressed]).argmax(0)
    return torch.stack(dressed)[best, torch.arange(len(x))]


def figures_of(edits: list[Edit], x: torch.Tensor, recogniser: Recogniser, twin: Recogniser) -> Figures:
    """Return the measures of one kind of edit. x: the edited pictures, ``n 3 h w`` in [-1, 1]."""
    kind = edits[0].kind
    sources, targets = [e.source for e in edits], [e.target for e in edits]
    before, truth, was, will = pictures(sources), pictures(targets), masks(sources), masks(targets)
    values = {"roughness": m.roughness(x, truth)}
    if kind == "class":
        wanted = [scene.animal for scene in targets]
        for name, judge in (("recognised", recogniser), ("recognised (colour-blind)", twin)):
            values[name] = torch.tensor([a == b for a, b in zip(judge.animals(x), wanted, strict=True)]).float()
        values["second subject"] = m.second_subject(x, before, was, will)
        backdrops = to_tensor([draw(scene, empty=True) for scene in targets])
        values["incomplete"] = m.incomplete(x, backdrops, was, will)
        values["roughness inside"] = m.roughness(x, truth, will)
        near = nearest_coat(x, targets, will)
        values["inside, nearest coat (dB)"] = m.masked_psnr(x, near, will)
        values["uncleanness inside"] = m.uncleanness(x, near, will)
    if kind in ("class", "colour", "accessory"):
        values["background kept (dB)"] = m.background_psnr(x, before, was, will)
        distance = m.colour_distance(x, truth, will)
        values["colour distance"] = distance
        values["pattern distance"] = m.pattern_distance(x, truth, will)
        values["right colour"] = (distance < RIGHT_COLOUR).float()
    if kind in ("place", "style"):
        exact = m.exact_psnr(x, truth)
        values["exact (dB)"] = exact
        enough = torch.tensor([RIGHT_PLACE[scene.style] for scene in targets])
        values["done"] = (exact > enough).float() * m.nearer_to_truth(x, before, truth)  # and its input left behind
        wanted = [getattr(e.target, kind) for e in edits]
        seen = [looks[kind != "place"] for looks in surroundings(x)]
        values["recognised"] = torch.tensor([a == b for a, b in zip(seen, wanted, strict=True)]).float()
    if kind == "accessory":
        # where the true pictures differ: a collar lies on the animal, so its mask hardly changes
        values["done"] = m.nearer_to_truth(x, before, truth)
    return {name: bootstrap(value) for name, value in values.items()}


def measure(
    edit: Callable[[torch.Tensor, list[str]], torch.Tensor],
    recogniser: Recogniser,
    twin: Recogniser,
    n: int = 200,
    seed: int = 1,
    kinds: Iterable[str] = KINDS,
) -> dict[str, Figures]:
    """Return each kind's figures over n fresh scenes.

    edit: from input pictures and instructions to edited pictures: an editor's, or a bound's (the input copied, the
    truth itself, noise).
    """
    results = {}
    for kind in kinds:
        edits = draw_edits(n, seed, kind)
        x = edit(pictures([e.source for e in edits]), [e.instruction for e in edits])
        results[kind] = figures_of(edits, x, recogniser, twin)
    return results


def with_rare_word(edit: Edit, word: str = "sks") -> str:
    """Return a class edit's instruction with a word that nobody has taught before the new class, "a sks dog"."""
    return with_word(edit, word).instruction


# Class edits in other words: an identifier should mean nothing until it is taught; a coat that is named should come.
REWORDED: dict[str, Callable[[Edit], str]] = {
    'class, "a sks ..."': with_rare_word,
    "class, its coat named": lambda edit: with_coat(edit).instruction,
}


def reworded_figures(
    edit: Callable[[torch.Tensor, list[str]], torch.Tensor],
    recogniser: Recogniser,
    twin: Recogniser,
    n: int = 200,
    seed: int = 1,
) -> dict[str, Figures]:
    """Return what the class edits of ``measure`` come to in each of the other words of ``REWORDED``.

    edit: as ``measure`` takes it.
    """
    edits, results = draw_edits(n, seed, "class"), {}
    before = pictures([e.source for e in edits])
    for name, words in REWORDED.items():
        figures = figures_of(edits, edit(before, [words(e) for e in edits]), recogniser, twin)
        kept = ("recognised", "recognised (colour-blind)", "inside, nearest coat (dB)", "right colour")
        results[name] = {key: figures[key] for key in kept}
    return results


def worn_edits(item: str, n: int, seed: int) -> list[Edit]:
    """Return the class edits of ``measure``, every animal in an ``item`` ("collar" or "hat") of some colour."""
    rng = np.random.default_rng([seed, WORN.index(item)])
    edits, looks = draw_edits(n, seed, "class"), [{item: str(rng.choice(tuple(COLOURS)))} for _ in range(n)]
    return [
        replace(e, source=replace(e.source, **look), target=replace(e.target, **look))
        for e, look in zip(edits, looks, strict=True)
    ]


def kept_figures(edits: list[Edit], x: torch.Tensor, item: str) -> Figures:
    """Return how often a class edit keeps the ``item`` that the animal wears: where it is, the picture is nearer to the
    true one than to the true one without it. edits: ``worn_edits``'; x: the answers, ``n 3 h w`` in [-1, 1]."""
    bare, truth = pictures([replace(e.target, **{item: None}) for e in edits]), pictures([e.target for e in edits])
    return {"kept": bootstrap(m.nearer_to_truth(x, bare, truth))}


def worn_figures(
    edit: Callable[[torch.Tensor, list[str]], torch.Tensor], n: int = 200, seed: int = 1
) -> dict[str, Figures]:
    """Return how often a class edit keeps the collar, or the hat, that the animal wears (``kept_figures``).

    edit: as ``measure`` takes it.
    """
    results = {}
    for item in WORN:
        edits = worn_edits(item, n, seed)
        x = edit(pictures([e.source for e in edits]), [e.instruction for e in edits])
        results[f"class, in a {item}"] = kept_figures(edits, x, item)
    return results


def editing(editor: ImageEditor, settings: EditSettings, batch_size: int = 50) -> Callable:
    """Return an editor as ``measure`` wants it; picture i has seed i."""

    def edit(x: torch.Tensor, texts: list[str]) -> torch.Tensor:
        parts = []
        for i in range(0, len(x), batch_size):
            part = x[i : i + batch_size]
            parts.append(editor.sample(part, texts[i : i + batch_size], settings, range(i, i + len(part))).cpu())
        return torch.cat(parts).clamp(-1, 1)

    return edit


def table(results: dict[str, Figures]) -> str:
    """Return figures as a Markdown table."""
    lines = ["| edit | measure | mean | 95 % interval | n |", "|---|---|---|---|---|"]
    for kind, figures in results.items():
        for name, v in figures.items():
            span = f"{v.low:.3g} to {v.high:.3g}" if v.known else ""
            lines.append(f"| {kind} | {name} | {v.mean:.3g} | {span} | {v.n} |")
    return "\n".join(lines)


def edit_sheet(edit: Callable, n: int = 60, seed: int = 1, columns: int = 5, size: int = 64) -> Image.Image:
    """Return uncurated edits in random order of kinds: input and result side by side, the instruction below them.

    edit: as ``measure`` takes it; size: of a picture, in pixels (the sheet shows it twice as large).
    """
    edits = [random_edit(np.random.default_rng([seed, i, 80]), rare_share=0) for i in range(n)]
    x = pictures([e.source for e in edits], size)
    texts = [e.instruction for e in edits]
    pairs = [grid([[a], [b]], scale=1, gap=2) for a, b in zip(to_images(x), to_images(edit(x, texts)), strict=True)]
    rows = [slice(i, i + columns) for i in range(0, n, columns)]
    cell = 2 * pairs[0].width
    return contact_sheet([pairs[row] for row in rows], cell=cell, captions=[texts[row] for row in rows])
