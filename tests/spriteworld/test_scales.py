"""Weights, sheets and drift are looked at by one pair of guidance scales."""

from pathlib import Path

from ldm.checkpoint.read import read_checkpoint
from ldm.config import load_config
from ldm.inference.settings import EditSettings
from ldm.project import CONFIGS, SPRITEWORLD
from ldm.spriteworld.world.grids import EditSheet

ROOT = Path(__file__).resolve().parents[2]


def test_training_looks_at_itself_at_the_scales_that_its_weights_recommend():
    """Those of the frozen editor, of what has learned from it, of the sheets and the drift are one pair."""
    editor, personal = (
        load_config(CONFIGS / "spriteworld" / name).training
        for name in ("instruct-pix2pix.yaml", "instruct2dream.yaml")
    )
    shown = [
        EditSheet(**(editor.sheet.params or {})).settings,
        EditSettings(**personal.sheet.params.settings),
        EditSettings(**personal.drift.params.settings),
        EditSettings(**personal.edit_defaults),
        EditSettings.of_checkpoint(read_checkpoint(SPRITEWORLD / "editor.safetensors").metadata),
    ]
    wanted = (editor.edit_defaults.text_scale, editor.edit_defaults.image_scale)
    assert [(settings.text_scale, settings.image_scale) for settings in shown] == [wanted] * len(shown)
