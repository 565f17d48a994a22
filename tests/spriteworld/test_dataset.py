"""The world as training data: windows of a picture, weights, and coats that edits keep."""

import numpy as np
import pytest
import torch

from ldm.spriteworld.dataset import CONTRAST, SpritePictures, SpriteTriplets, contrast
from ldm.spriteworld.scene import ANIMALS, random_scene

NATURAL = {random_scene(np.random.default_rng(i)).coat for i in range(2000)}


def test_a_window_is_cut_from_the_very_picture_and_shows_the_animal():
    whole, cut = SpritePictures(40, seed=4), SpritePictures(40, seed=4, crop=32)
    for i in range(40):
        picture, window = whole[i], cut[i]
        assert window["edited"].shape == (3, 32, 32)
        assert window["weight"].shape == (1, 32, 32)
        places = picture["edited"].unfold(1, 32, 1).unfold(2, 32, 1) == window["edited"][:, None, None]
        found = places.all(-1).all(-1).all(0).nonzero()
        assert len(found) >= 1
        top, left = (int(v) for v in found[0])
        inside = picture["weight"][:, top : top + 32, left : left + 32]
        assert torch.equal(inside, window["weight"])
        assert window["weight"][0, 14:18, 14:18].max() > 1 or min(top, left) == 0 or max(top, left) == 32


def test_a_picture_of_low_contrast_counts_more_and_never_more_than_was_asked_for():
    plain, raised = SpritePictures(60, seed=5), SpritePictures(60, seed=5, low_contrast=2.0)
    for i in range(60):
        before, after = plain[i], raised[i]
        mask = (before["weight"] - 1) / 4
        wanted = min(2.0, max(1.0, CONTRAST / contrast(before["edited"], mask)))
        assert torch.allclose(after["weight"], wanted * before["weight"])
    flat = torch.zeros(3, 8, 8)
    assert contrast(flat, torch.ones(1, 8, 8)) == pytest.approx(1e-3)
    flat[:, :4] = 1
    assert contrast(flat, torch.ones(1, 8, 8)) == pytest.approx(0.504, abs=1e-3)  # half 0, half 1, sample deviation


def test_shares_of_coats():
    for share, seen in ((0.0, 0), (1.0, 60)):
        edits = [SpriteTriplets(60, seed=6, any_coat=share).edit(i) for i in range(60)]
        assert sum(e.source.coat.main not in {c.main for c in NATURAL} for e in edits) == seen
        kept = [e for e in edits if e.kind in ("place", "style", "accessory")]
        assert kept
        assert all(e.target.coat == e.source.coat for e in kept)
        new = [e.target for e in edits if e.kind == "class"]
        assert all(scene.animal in ANIMALS and scene.coat in NATURAL for scene in new)
    some = [SpriteTriplets(400, seed=6, any_coat=0.25).edit(i) for i in range(400)]
    assert 0.15 < np.mean([e.source.coat not in NATURAL for e in some]) < 0.4


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="crop is 65 pixels; a picture has 64"):
        SpritePictures(4, crop=65)
    with pytest.raises(ValueError, match=r"low_contrast is 0\.5"):
        SpritePictures(4, low_contrast=0.5)
    with pytest.raises(ValueError, match="any_coat is 2"):
        SpriteTriplets(4, any_coat=2)
    with pytest.raises(ValueError, match="any_coat is -1"):
        SpritePictures(4, any_coat=-1)
