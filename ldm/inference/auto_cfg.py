"""Choose the two guidance scales of an edit by the model's own judgement: no other network is needed.

A candidate ``z`` is good if the unguided model, given picture and instruction, believes in it: with noise added it
denoises back to ``z`` (the diffusion model's bound on log p(z | picture, instruction)). And it does what was asked if
the instruction helped: without it the model believes less (log p(instruction | z, picture), as in "Your diffusion model
is secretly a zero-shot classifier", arXiv 2303.16203). Too little guidance fails the second, too much the first.

And it leaves alone what the instruction is not about: where the model, shown the input, predicts the same with and
without the instruction (the difference that DiffEdit takes its mask from, arXiv 2210.11427), the candidate should be
the input.

The score is ``-given + 0.25 (without - given) - 0.25 background``: the errors of the model with and without the
instruction, always with the input picture, and the candidate's squared distance from the input, weighted by how little
the instruction matters at a position; each averaged over the latent, the errors over four noise levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from ldm.data.contact_sheet import PAPER, contact_sheet
from ldm.data.images import resize, to_tensor
from ldm.diffusion.conditioning import Conditioning
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings

TEXT_FACTORS = (0.5, 0.75, 1.0, 1.3, 1.7)
IMAGE_FACTORS = (0.8, 1.0, 1.25)
NOISE_LEVELS = (0.3, 0.7, 1.5, 3.0)
INSTRUCTION_WEIGHT = 0.25  # measured in the sprite world: flat between 0.1 and 0.5
# The best region of the about 100 pairs of weight and mask tried on 80 edits (an earlier editor, drafts): 0.42 dB over
# the fixed scales, 0.30 without the term; chosen on those edits, so optimistic.
BACKGROUND_WEIGHT = 0.25
WHOLLY_EDITED = 0.1  # the share of positions, of those where the instruction matters most, that are no background
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


class ScaleJudge:
    """Scores edits of one picture by one instruction, by the editor's own model."""

    @torch.no_grad()
    def __init__(self, editor: ImageEditor, input: Image.Image, instruction: str):
        """input: the picture before, at the working size. It is encoded here, once; ``condition`` is its latent
        ``1 4 h w``, ``background`` how little the instruction matters at a position, ``h w`` in [0, 1]."""
        self.editor, self.input = editor, input
        self.condition = editor.model.picture_condition(to_tensor(input).to(editor.device)).float()
        states = [editor.text_states(text) for text in (instruction, "")]
        self._both = Conditioning.cat([Conditioning(state, self.condition) for state in states])
        difference = torch.stack([(given - without).square().mean(0) for given, without in self._predicted(self._z)])
        difference = difference.mean(0)
        most = difference.flatten().quantile(1 - WHOLLY_EDITED).clamp(min=1e-12)
        self.background = 1 - (difference / most).clamp(max=1)

    @property
    def _z(self) -> torch.Tensor:
        return self.condition * self.editor.model.scale_factor

    def _predicted(self, z: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield what the model makes of a latent ``1 c h w`` under noise, given and without the
        instruction (``c h w``), by noise level. The noise is the same for every latent of one size."""
        denoise, generator = self.editor.model.denoiser(), torch.Generator().manual_seed(0)
        for level in NOISE_LEVELS:
            noised = z + level * torch.randn(z.shape, generator=generator).to(z)
            given, without = denoise(noised.repeat(2, 1, 1, 1), torch.full((2,), level, device=z.device), self._both)
            yield given, without

    @torch.no_grad()
    def score(self, picture: Image.Image) -> float:
        """Return how good an edited picture is; higher is better."""
        x = to_tensor(resize(picture, self.input.size)).to(self.editor.device)
        z = self.editor.model.picture_condition(x).float() * self.editor.model.scale_factor
        errors = [[(p - z).square().mean().item() for p in (given, without)] for given, without in self._predicted(z)]
        given, without = (sum(values) / len(NOISE_LEVELS) for values in zip(*errors, strict=True))
        background = ((z - self._z).square().mean((0, 1)) * self.background).mean().item()
        return -given + INSTRUCTION_WEIGHT * (without - given) - BACKGROUND_WEIGHT * background


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
    judge = ScaleJudge(editor, input, instruction)
    drafts = replace(settings, steps=min(settings.steps, DRAFT_STEPS))

    def tried(chosen: EditSettings) -> Candidate:
        picture = editor.edit(photo, instruction, chosen, [seed], mask, progress, judge.condition)[0]
        return Candidate(chosen, picture, judge.score(picture))

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
