"""What ``scripts/spriteworld.py auto-cfg`` does: scales chosen for each picture against a checkpoint's own."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoint.read import read_checkpoint
from ldm.data.images import to_images, to_tensor
from ldm.evaluation.statistics import bootstrap
from ldm.inference.auto_cfg import choose_scales, scale_grid
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.spriteworld.judging import editor as judging
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging.recogniser import load_recogniser
from ldm.spriteworld.world.sentences import KINDS


def measure_auto_cfg(ckpt: Path, data: Path, scenes: int, seed: int) -> str:
    """Return a Markdown table of auto-cfg against the checkpoint's own scales: fresh scenes of every kind of edit, the
    same seeds; means, and the paired difference with its 95 % interval."""
    checkpoint = read_checkpoint(ckpt)
    editor = ImageEditor.from_checkpoint(checkpoint)
    settings = EditSettings.of_checkpoint(checkpoint.metadata)
    recogniser = load_recogniser(data / "recogniser.safetensors")
    grid = scale_grid(settings)
    lines = ["| edits | measure | fixed scales | auto-cfg | difference | n |", "|---|---|---|---|---|---|"]
    totals: list[torch.Tensor] = []
    for kind in KINDS:
        edits = judging.draw_edits(scenes, seed, kind)
        before, truth = (judging.pictures([getattr(e, side) for e in edits]) for side in ("source", "target"))
        texts = [e.instruction for e in edits]
        fixed = judging.editing(editor, settings)(before, texts)
        chosen = torch.cat(
            [
                to_tensor(choose_scales(editor, photo, text, settings, i, grid)[0].picture)
                for i, (photo, text) in enumerate(zip(to_images(before), texts, strict=True))
            ]
        )
        pair = [m.exact_psnr(x, truth) for x in (fixed, chosen)]
        totals.append(torch.stack(pair))
        lines.append(_compared(kind, "exact (dB)", *pair))
        if kind == "class":
            wanted = [e.target.animal for e in edits]
            right = [
                torch.tensor([a == b for a, b in zip(recogniser.animals(x), wanted, strict=True)]).float()
                for x in (fixed, chosen)
            ]
            lines.append(_compared(kind, "recognised", *right))
    lines.append(_compared("all", "exact (dB)", *torch.cat(totals, dim=1)))
    return "\n".join(lines)


def _compared(kind: str, name: str, fixed: torch.Tensor, chosen: torch.Tensor) -> str:
    change = bootstrap(chosen - fixed)
    span = f" [{change.low:+.2f}, {change.high:+.2f}]" if change.known else ""
    return f"| {kind} | {name} | {fixed.mean():.2f} | {chosen.mean():.2f} | {change.mean:+.2f}{span} | {change.n} |"
