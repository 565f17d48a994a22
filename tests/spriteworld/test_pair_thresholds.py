"""The thresholds of the small world's pairs, against true answers."""

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from ldm.config import load_config
from ldm.dataset_generation.gates import PASSED, Gates, judge
from ldm.project import CONFIGS
from ldm.spriteworld.judging.editor import draw_edits
from ldm.spriteworld.world.scene import draw


def test_the_sprite_worlds_thresholds_pass_true_answers_and_refuse_copies_and_other_scenes():
    config = OmegaConf.to_container(load_config(CONFIGS / "spriteworld" / "pairs.yaml"))
    gates = Gates(**config["gates"])
    edits = draw_edits(150, 71, "class")
    before, after = [draw(e.source) for e in edits], [draw(e.target) for e in edits]
    noise = np.random.default_rng(0).normal(0, 8, (64, 64, 3))
    copies = [Image.fromarray(np.clip(np.asarray(b, float) + noise, 0, 255).astype(np.uint8)) for b in before]
    others = after[1:] + after[:1]
    reasons = {
        name: [judge(a, b, gates).reason for a, b in zip(before, pictures, strict=True)]
        for name, pictures in (("true", after), ("copies", copies), ("others", others))
    }
    assert set(reasons["true"]) == {PASSED}
    assert set(reasons["copies"]) == {"unchanged"}
    assert reasons["others"].count("destroyed") >= 0.88 * len(others)
