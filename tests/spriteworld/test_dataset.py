"""The world as training data: windows of a picture, weights, and coats that edits keep."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.spriteworld.world.dataset import CONTRAST, SpritePictures, SpriteTriplets, any_coat, contrast
from ldm.spriteworld.world.scene import ANIMALS, COATS, COLOURS, PATTERNS, SUBJECTS, coloured, random_scene

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


def test_kinds_of_edits_come_as_often_as_their_weights_say():
    data = SpriteTriplets(300, seed=3, kinds={"class": 3.0, "place": 1.0})
    found = [data.edit(i).kind for i in range(300)]
    assert set(found) == {"class", "place"}
    assert found.count("class") == pytest.approx(225, abs=30)
    same = [SpriteTriplets(8, seed=3).edit(i) for i in range(8)]
    assert same == [SpriteTriplets(8, seed=3, kinds=None).edit(i) for i in range(8)]
    coloured = [SpriteTriplets(40, seed=3, kinds={"colour": 1}, any_coat=0.5).edit(i) for i in range(40)]
    assert {edit.kind for edit in coloured} == {"colour"}


def test_any_style_makes_dark_and_grey_edits_as_frequent_as_it_says():
    """A style is one field: the pose stays, and edits of style and colour, which need a day, stay whole."""
    kinds = {"class": 1.0, "place": 1.0, "accessory": 1.0}
    usual, even = (SpriteTriplets(600, seed=6, any_style=share, kinds=kinds) for share in (0.0, 1.0))
    for data, share in ((usual, 0.76), (even, 0.25)):
        edits = [data.edit(i) for i in range(600)]
        assert np.mean([edit.source.style == "day" for edit in edits]) == pytest.approx(share, abs=0.06)
        assert all(edit.source.style == edit.target.style for edit in edits)
    grey = [i for i in range(600) if even.edit(i).source.style == "grey"]
    assert len(grey) == pytest.approx(150, abs=40)
    assert all(even.edit(i).source.pose == usual.edit(i).source.pose for i in grey)
    others = [SpriteTriplets(60, seed=6, any_style=share, kinds={"style": 1, "colour": 1}) for share in (0.0, 1.0)]
    assert [others[0].edit(i) for i in range(60)] == [others[1].edit(i) for i in range(60)]
    with pytest.raises(ValueError, match="any_style is 3"):
        SpriteTriplets(4, any_style=3)


def test_named_coats_leave_the_pictures_and_come_as_often_as_they_should():
    plain, half = (SpriteTriplets(300, seed=6, named_coat=share, kinds={"class": 1, "place": 1}) for share in (0, 0.5))
    found = [(plain.edit(i), half.edit(i)) for i in range(300)]
    assert all((a.source, a.target) == (b.source, b.target) for a, b in found)
    other = [a.instruction != b.instruction for a, b in found if a.kind == "class"]
    assert np.mean(other) == pytest.approx(0.5, abs=0.12)
    assert all(a == b for a, b in found if a.kind == "place")
    with pytest.raises(ValueError, match="named_coat is 7"):
        SpriteTriplets(4, named_coat=7)


@pytest.mark.parametrize(("item", "usual_share"), [("hat", 0.12), ("collar", 0.15)])
def test_what_is_replaced_and_moved_wears_more_but_not_where_that_is_the_question(item, usual_share):
    kinds, share = {"class": 1, "place": 1, "style": 1, "colour": 1}, f"any_{item}"
    plain, worn = ([SpriteTriplets(300, seed=6, kinds=kinds, **{share: s}).edit(i) for i in range(300)] for s in (0, 1))
    seen = [(getattr(edit.source, item), getattr(edit.target, item)) for edit in worn]
    assert np.mean([getattr(edit.source, item) is not None for edit in plain]) == pytest.approx(usual_share, abs=0.06)
    assert all(before == after is not None for before, after in seen)
    assert len({before for before, _ in seen}) == len(COLOURS)
    assert all(
        replace(b.source, **{item: before}) == a.source for a, b, (before, _) in zip(worn, plain, seen, strict=True)
    )
    asked = [SpriteTriplets(60, seed=6, kinds={"accessory": 1}, **{share: s}) for s in (0, 1)]
    assert [asked[0].edit(i) for i in range(60)] == [asked[1].edit(i) for i in range(60)]
    with pytest.raises(ValueError, match=f"{share} is 2"):
        SpriteTriplets(4, **{share: 2})


@pytest.mark.parametrize(
    ("kinds", "says"),
    [({"klass": 1}, "unknown kind of edit 'klass'"), ({"class": -1}, "kinds.class is -1"), ({}, "no weight above 0")],
)
def test_kinds_that_make_no_sense_are_refused(kinds, says):
    with pytest.raises(ValueError, match=says):
        SpriteTriplets(4, kinds=kinds)


def test_pictures_of_any_hat():
    """Half of the animals get one, of all colours; what is below the head stays."""
    options = {"length": 120, "seed": 9, "any_coat": 0.5}
    plain, hatted = SpritePictures(**options), SpritePictures(**options, any_hat=0.5)
    changed = [(plain[i]["edited"] != hatted[i]["edited"]).any(0) for i in range(120)]
    got = [i for i, where in enumerate(changed) if where.any()]
    assert len(got) / 120 == pytest.approx(0.5, abs=0.14)
    for i in got:
        rows = torch.nonzero((plain[i]["weight"] > 1)[0].any(1))[:, 0]
        assert int(torch.nonzero(changed[i].any(1))[-1]) < rows[0] + 0.6 * len(rows) + 4
    means = torch.stack([hatted[i]["edited"][:, changed[i]].mean(1) for i in got])
    assert (means.std(0) > 0.2).all()  # red, green and blue all vary
    with pytest.raises(ValueError, match="any_hat is -1"):
        SpritePictures(4, any_hat=-1)


def test_any_coats_are_of_two_colours_far_apart_as_subjects_are():
    """A subject has dark and light marks; an even draw of both colours hardly ever gives that."""
    rng = np.random.default_rng(5)
    coats = [any_coat(rng) for _ in range(400)]
    values = np.array([coat.main + coat.second for coat in coats])
    assert values.min() >= 10
    assert values.max() <= 252
    apart = np.linalg.norm(values[:, :3] - values[:, 3:], axis=1)
    subjects = [np.linalg.norm(np.subtract(s.coat.main, s.coat.second)) for s in SUBJECTS.values()]
    assert np.median(apart) > 200
    assert min(subjects) > np.quantile(apart, 0.2)
    assert {coat.pattern for coat in coats} == set(PATTERNS)


def test_no_subject_is_ever_among_the_pictures_of_pre_training():
    """No animal that a caption or an instruction names, natural or dyed, has a subject's two colours, or nearly."""
    own = np.array([s.coat.main + s.coat.second for s in SUBJECTS.values()])
    natural = [coat for coats in COATS.values() for coat in coats]
    dyed = [coloured(coat, name) for coat in natural for name in COLOURS]
    theirs = np.array([coat.main + coat.second for coat in (*natural, *dyed)])
    assert np.linalg.norm(own[:, None] - theirs[None], axis=2).min() > 30
