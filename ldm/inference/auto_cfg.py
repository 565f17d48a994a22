"""Choose the two guidance scales of an edit by the model's own judgement: no other network is needed.

A candidate ``z`` is good if the unguided model, told picture and instruction, believes in it: with noise added it
denoises back to ``z`` (the diffusion model's bound on log p(z | picture, instruction)). And it does what was asked if
the instruction helped: without it the model believes less (log p(instruction | z, picture), as in "Your diffusion model
is secretly a zero-shot classifier", arXiv 2303.16203). Too little guidance fails the second, too much the first.

The score is ``-told + 0.25 (untold - told)``: the errors of the model with and without the instruction, always with the
input picture, each averaged over four noise levels and the whole latent. No term of it is about the background: a
background that was not kept lowers the score only as far as the model, shown the input, does not expect it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from ldm.data.images import resize, to_tensor
from ldm.diffusion.conditioning import Conditioning
from ldm.inference.editor import EditSettings, ImageEditor
from ldm.inference.sheets import PAPER, contact_sheet

TEXT_FACTORS = (0.5, 0.75, 1.0, 1.3, 1.7)
IMAGE_FACTORS = (0.8, 1.0, 1.25)
NOISE_LEVELS = (0.3, 0.7, 1.5, 3.0)
INSTRUCTION_WEIGHT = 0.25  # measured in the sprite world: flat between 0.1 and 0.5
DRAFT_STEPS, FINALISTS = 10, 3


@dataclass(frozen=True)
class Candidate:
    """One pair of scales with what it gave. score: higher is better."""

    settings: EditSettings
    picture: Image.Image
    score: float


def scale_grid(
    settings: EditSettings, texts: Sequence[float] = (), images: Sequence[float] = ()
) -> list[tuple[float, float]]:
    """Return the pairs of scales to try: those given, or else around the settings' own."""
    texts = texts or [round(settings.text_scale * f, 3) for f in TEXT_FACTORS]
    images = images or [max(1.0, round(settings.image_scale * f, 3)) for f in IMAGE_FACTORS]
    return list(itertools.product(dict.fromkeys(texts), dict.fromkeys(images)))


@torch.no_grad()
def encoded(editor: ImageEditor, input: Image.Image) -> torch.Tensor:
    """Return a picture at the working size as an editor's condition, ``1 4 h w``."""
    return editor.model.picture_condition(to_tensor(input).to(editor.device)).float()


@torch.no_grad()
def believed(
    editor: ImageEditor,
    picture: Image.Image,
    input: Image.Image,
    instruction: str,
    condition: torch.Tensor | None = None,
) -> float:
    """Return how much the model believes in an edited picture and in the instruction's part in it; higher is better.

    input: the picture before, at the working size; condition: the same ``encoded``, if that is known. The noise is the
    same for every picture of one size.
    """
    model = editor.model
    x = to_tensor(resize(picture, input.size)).to(editor.device)
    condition = encoded(editor, input) if condition is None else condition
    told = Conditioning(editor.text_states(instruction), condition)
    untold = Conditioning(editor.text_states(""), condition)
    z = model.picture_condition(x).float() * model.scale_factor
    denoise, generator = model.denoiser(), torch.Generator().manual_seed(0)
    with_text = without = 0.0
    for level in NOISE_LEVELS:
        noise = torch.randn(z.shape, generator=generator).to(z)
        noised, sigma = z + level * noise, torch.full((2,), level, device=z.device)
        both = denoise(noised.repeat(2, 1, 1, 1), sigma, Conditioning.cat([told, untold]))
        errors = (both - z).square().mean((1, 2, 3)).tolist()
        with_text, without = with_text + errors[0], without + errors[1]
    n = len(NOISE_LEVELS)
    return (-with_text + INSTRUCTION_WEIGHT * (without - with_text)) / n


def choose_scales(
    editor: ImageEditor,
    photo: Image.Image,
    instruction: str,
    settings: EditSettings,
    seed: int,
    grid: Sequence[tuple[float, float]],
    mask: Image.Image | None = None,
    progress: Callable[[], None] | None = None,
) -> list[Candidate]:
    """Return the candidates, best first: all pairs of scales in few steps, then the best few in full; the first of the
    result is to be used, and the full ones stand before the drafts. The photo is encoded once for all of them."""
    input = editor.prepared(photo, settings)
    condition = encoded(editor, input)
    drafts = replace(settings, steps=min(settings.steps, DRAFT_STEPS))

    def tried(chosen: EditSettings) -> Candidate:
        picture = editor.edit(photo, instruction, chosen, [seed], mask, progress, condition)[0]
        return Candidate(chosen, picture, believed(editor, picture, input, instruction, condition))

    first = [tried(replace(drafts, text_scale=text, image_scale=image)) for text, image in grid]
    first.sort(key=lambda c: -c.score)
    best = first[:FINALISTS]
    if drafts.steps < settings.steps:
        best = sorted((tried(replace(c.settings, steps=settings.steps)) for c in best), key=lambda c: -c.score)
    return [*best, *first[FINALISTS:]]


def total_steps(settings: EditSettings, grid: Sequence[tuple[float, float]]) -> int:
    """Return how many sampling steps ``choose_scales`` takes, for a progress bar."""
    draft = min(settings.steps, DRAFT_STEPS)
    full = min(FINALISTS, len(grid)) * settings.steps if draft < settings.steps else 0
    return len(grid) * draft + full


def candidates_sheet(photo: Image.Image, instruction: str, candidates: Sequence[Candidate]) -> Image.Image:
    """Return the photo and every candidate with its scales and score, best first."""
    cells = [photo, *(c.picture for c in candidates)]
    labels = ["input", *(_label(c) for c in candidates)]
    labels[1] = f"chosen: {labels[1]}"
    columns = 4
    parts = [
        contact_sheet([cells[i : i + columns]], column_labels=labels[i : i + columns])
        for i in range(0, len(cells), columns)
    ]
    width = max(part.width for part in parts)
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def _label(candidate: Candidate) -> str:
    s = candidate.settings
    return f"text {s.text_scale:g}, image {s.image_scale:g}, {s.steps} steps ({candidate.score:.4f})"
