"""The automatic choice of scales against true answers: what is believed, and where the background is."""

from pathlib import Path

import pytest
import torch

from ldm.data.images import to_images
from ldm.inference.auto_cfg import ScaleJudge
from ldm.inference.editor import ImageEditor
from ldm.spriteworld.judging.editor import draw_edits, pictures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def editor():
    return ImageEditor.from_checkpoint(ROOT / "data/spriteworld/editor.safetensors", device="cpu", precision="fp32")


def test_the_true_answer_is_believed_more_than_the_input_another_answer_and_noise(editor):
    edits = draw_edits(16, 61, "class") + draw_edits(8, 62, "style")
    before, truth = pictures([e.source for e in edits]), pictures([e.target for e in edits])
    noisy = truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    candidates = {"truth": truth, "input": before, "other": truth.roll(1, 0), "noise": noisy.clamp(-1, 1)}
    scores = {
        name: torch.tensor(
            [
                ScaleJudge(editor, b, e.instruction).score(a)
                for a, b, e in zip(to_images(x), to_images(before), edits, strict=True)
            ]
        )
        for name, x in candidates.items()
    }
    for name in ("input", "other", "noise"):
        better = (scores["truth"] > scores[name]).float().mean()
        assert better >= 0.9, (name, float(better))


def test_the_background_is_where_the_true_pictures_agree(editor):
    shares = []
    for edit in draw_edits(12, 63, "colour"):
        before, truth = pictures([edit.source]), pictures([edit.target])
        judge = ScaleJudge(editor, to_images(before)[0], edit.instruction)
        changed = (before - truth).abs().amax(1)[0].unfold(0, 8, 8).unfold(1, 8, 8).amax((2, 3)) > 0.05
        assert judge.background.shape == changed.shape
        assert 0 <= judge.background.min() <= judge.background.max() <= 1
        shares.append([judge.background[changed].mean().item(), judge.background[~changed].mean().item()])
    inside, outside = torch.tensor(shares).T
    assert (outside > inside + 0.2).all()
    assert outside.mean() > 0.85


def test_a_lost_background_costs_more_than_the_models_doubt_alone(editor):
    (edit,) = draw_edits(1, 64, "colour")
    before, truth = to_images(pictures([edit.source]))[0], pictures([edit.target])
    judge = ScaleJudge(editor, before, edit.instruction)
    spoiled = truth.clone()
    spoiled[..., :16, :] = -spoiled[..., :16, :]  # the sky, which the instruction does not name
    kept, lost = (judge.score(to_images(x)[0]) for x in (truth, spoiled))
    judge.background = torch.zeros_like(judge.background)
    unseen = [judge.score(to_images(x)[0]) for x in (truth, spoiled)]
    assert kept - lost > 1.2 * (unseen[0] - unseen[1]) > 0
