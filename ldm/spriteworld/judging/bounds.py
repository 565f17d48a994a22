"""What the measures say of answers that need no editor: the bounds between which every other figure is to be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ldm.spriteworld.judging.editor import WORN, Figures, draw_edits, figures_of, kept_figures, worn_edits
from ldm.spriteworld.judging.recogniser import Recogniser
from ldm.spriteworld.world.sentences import KINDS, Edit
from ldm.spriteworld.world.tensors import pictures


def calibration(
    reconstruct: Callable[[torch.Tensor], torch.Tensor],
    recogniser: Recogniser,
    twin: Recogniser,
    n: int = 200,
    seed: int = 1,
) -> dict[str, dict[str, Figures]]:
    """Return what every measure says of answers that need no editor, kind by kind: the true picture, the true picture
    through a first stage, the input copied, and noise.

    reconstruct: a first stage, there and back, of pictures ``b 3 h w`` in [-1, 1].
    """

    def of_answers(edits: list[Edit], figures: Callable[[list[Edit], torch.Tensor], Figures]) -> dict[str, Figures]:
        before, truth = (pictures([getattr(e, side) for e in edits]) for side in ("source", "target"))
        answers = {
            "truth": truth,
            "truth through the first stage": torch.cat([reconstruct(part) for part in truth.split(50)]).clamp(-1, 1),
            "input copied": before,
            "noise": torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1,
        }
        return {name: figures(edits, x) for name, x in answers.items()}

    judge = partial(figures_of, recogniser=recogniser, twin=twin)
    results = {kind: of_answers(draw_edits(n, seed, kind), judge) for kind in KINDS}
    for item in WORN:
        results[f"class, in a {item}"] = of_answers(worn_edits(item, n, seed), partial(kept_figures, item=item))
    return results


def calibration_table(results: dict[str, dict[str, Figures]]) -> str:
    """Return what ``calibration`` returns as a Markdown table: a row a measure, a column an answer."""
    answers = list(next(iter(results.values())))
    lines = [f"| edit | measure | {' | '.join(answers)} |", "|---|---|" + "---|" * len(answers)]
    for kind, by_answer in results.items():
        for name in by_answer[answers[0]]:
            cells = " | ".join(str(by_answer[answer][name]) for answer in answers)
            lines.append(f"| {kind} | {name} | {cells} |")
    return "\n".join(lines)
