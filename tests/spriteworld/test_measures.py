"""Calibration: true pictures, copies of the input, noise and blur each get the figure they should."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm.data.images import to_tensor
from ldm.models.build import load_model
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging.editor import (
    draw_edits,
    figures_of,
    nearest_coat,
    reworded_figures,
    with_rare_word,
    worn_edits,
    worn_figures,
)
from ldm.spriteworld.judging.recogniser import load_judges
from ldm.spriteworld.world.scene import COATS, draw, random_scene
from ldm.spriteworld.world.sentences import KINDS, Edit, with_coat
from ldm.spriteworld.world.tensors import masks, pictures

DATA = Path(__file__).resolve().parents[2] / "data" / "spriteworld"


@pytest.fixture(scope="module")
def swaps():
    edits = draw_edits(24, 5, "class")
    sources, targets = [e.source for e in edits], [e.target for e in edits]
    return pictures(sources), pictures(targets), masks(sources), masks(targets)


def noise_like(x):
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_truth_is_perfect_and_noise_is_not(swaps):
    before, truth, was, will = swaps
    noise = noise_like(truth)
    assert m.exact_psnr(truth, truth).min() == 60
    assert m.masked_psnr(truth, truth, will).min() == 60
    assert m.exact_psnr(noise, truth).max() < 12
    assert m.background_psnr(truth, before, was, will).mean() > 45
    assert m.background_psnr(noise, before, was, will).max() < 12
    assert m.colour_distance(truth, truth, will).max() < 1e-3
    assert m.pattern_distance(truth, truth, will).max() < 1e-3
    assert m.roughness(truth, truth).sub(1).abs().max() < 1e-6
    assert m.roughness(noise, truth).min() > 4


def test_psnr_is_the_textbooks(swaps):
    _, truth, _, will = swaps
    shifted = truth + 0.02  # in [-1, 1]: 1 % of the range
    assert m.exact_psnr(shifted, truth)[0].item() == pytest.approx(-20 * math.log10(0.01), abs=1e-3)
    inside = truth + 0.02 * (will > 0)
    assert m.masked_psnr(inside, truth, will)[0].item() == pytest.approx(40, abs=1e-3)
    assert m.masked_psnr(inside, truth, (will == 0).float()).min() == 60


def test_the_backgrounds_difference_counts_only_outside_both_masks(swaps):
    before, _, was, will = swaps
    assert m.background_l1(before, before, was, will).max() == 0
    shifted = before + 0.02  # in [-1, 1]: 1 % of the range
    assert m.background_l1(shifted, before, was, will).tolist() == pytest.approx([0.01] * len(before), abs=1e-6)
    inside = torch.lerp(before, -before, (torch.stack([was, will]).amax(0) > 0.02).float())
    assert m.background_l1(inside, before, was, will).max() == 0


def test_a_copy_of_the_input_keeps_the_background_and_misses_the_edit(swaps):
    before, truth, was, will = swaps
    assert m.background_psnr(before, before, was, will).min() == 60
    assert m.pattern_distance(before, truth, will).mean() > 5
    assert m.roughness(before, truth).mean() == pytest.approx(1, abs=0.15)


def test_blur_is_smoother_and_speckle_is_rougher(swaps):
    _, truth, _, will = swaps
    blurred = F.avg_pool2d(truth, 5, stride=1, padding=2)
    speckled = truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    assert m.roughness(blurred, truth, will).max() < 0.8
    assert m.roughness(speckled, truth).min() > 1.3


def test_what_is_unclean_in_either_direction_does_not_cancel(swaps):
    """Half of an animal blurred and half speckled: as rough as the truth in the whole, and clean nowhere."""
    _, truth, _, will = swaps
    generator = torch.Generator().manual_seed(1)
    blurred = F.avg_pool2d(truth, 5, stride=1, padding=2)
    noise = torch.randn(truth.shape, generator=generator)
    left = (torch.arange(64) < 32).float().expand_as(truth)
    best, strength = None, None
    for strength in torch.linspace(0.02, 0.4, 20).tolist():  # of speckle that makes up for the blur
        mixed = torch.lerp(truth + strength * noise, blurred, left)
        off = (m.roughness(mixed, truth, will).mean() - 1).abs()
        best = min(best, (off, mixed), key=lambda pair: pair[0]) if best else (off, mixed)
    assert best[0] < 0.05
    assert m.uncleanness(truth, truth, will).max() == 0
    assert m.uncleanness(best[1], truth, will).min() > 0.15
    assert m.uncleanness(blurred, truth, will).min() > 0.2
    assert m.uncleanness(truth + 0.1 * noise, truth, will).min() > 0.2


def test_mosaics_are_unclean_although_every_piece_is_true(swaps):
    _, truth, _, will = swaps
    tiles = truth.unfold(2, 4, 4).unfold(3, 4, 4)  # b c 16 16 4 4
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    shuffled = tiles.reshape(len(truth), 3, 256, 4, 4)[:, :, order].view_as(tiles)
    mosaic = shuffled.permute(0, 1, 2, 4, 3, 5).reshape_as(truth)
    for found in (m.uncleanness(mosaic, truth, will), m.uncleanness(mosaic, truth)):
        assert found.mean() > 0.5
        assert found.min() > 0.25


def test_uncleanness_of_contrast_is_the_logarithm_of_its_factor():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1  # variation far above OLD_KEYS
    assert m.uncleanness(0.5 * x, x).tolist() == pytest.approx([math.log(2)] * 2, abs=0.02)


def test_the_nearest_coat_is_found_and_keeps_the_rest():
    edits = draw_edits(24, 9, "class")
    scenes, will = [e.target for e in edits], masks([e.target for e in edits])
    truth = pictures(scenes)
    other = [replace(s, coat=next((c for c in COATS[s.animal] if c != s.coat), s.coat)) for s in scenes]
    assert sum(a != b for a, b in zip(scenes, other, strict=True)) > 8
    for right in (truth, pictures(other)):  # either coat is a right answer, and each is its own nearest
        assert torch.equal(nearest_coat(right, scenes, will), right)
        hazy = right + 0.05 * torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(nearest_coat(hazy, scenes, will), right)


def test_a_rare_word_stands_before_the_new_class_in_every_wording():
    edits = draw_edits(200, 1, "class")
    for e in edits:
        instruction = with_rare_word(e)
        assert instruction.count("sks") == 1
        assert f"sks {e.target.animal}" in instruction
        assert instruction.replace("sks ", "") == e.instruction


def test_a_named_coat_is_asked_for_and_another_coat_is_seen():
    """An editor that draws what is asked is right; one that draws the class's other coat is recognised, no more."""
    judges = load_judges(DATA)
    edits, heard = draw_edits(24, 5, "class"), []

    def drawn(coat):
        def edit(before, texts):
            heard.append(texts)
            return pictures([replace(e.target, coat=coat(e.target)) for e in edits])

        return edit

    named_coat = reworded_figures(drawn(lambda scene: scene.coat), *judges, n=24, seed=5)
    assert heard == [[with_rare_word(e) for e in edits], [with_coat(e).instruction for e in edits]]
    others = {coat: next((c for c in coats if c != coat), coat) for coats in COATS.values() for coat in coats}
    other = reworded_figures(drawn(lambda scene: others[scene.coat]), *judges, n=24, seed=5)
    named = "class, its coat named"
    assert named_coat[named]["right colour"].mean == 1
    assert named_coat[named]["recognised"].mean > 0.9
    assert other[named]["right colour"].mean < 0.6
    assert other[named]["recognised"].mean > 0.9


def test_a_collar_and_a_hat_are_seen_to_be_kept_or_forgotten():
    def drawn(**change):
        items = iter(("collar", "hat"))

        def edit(before, texts):
            edits = worn_edits(next(items), 16, 5)
            assert texts == [e.instruction for e in edits]
            assert torch.equal(before, pictures([e.source for e in edits]))
            return pictures([replace(e.target, **change) for e in edits])

        return {name: figures["kept"].mean for name, figures in worn_figures(edit, n=16, seed=5).items()}

    assert drawn() == {"class, in a collar": 1, "class, in a hat": 1}
    assert drawn(collar=None) == {"class, in a collar": 0, "class, in a hat": 1}
    assert drawn(hat=None) == {"class, in a collar": 1, "class, in a hat": 0}


def test_a_second_animal_is_seen_and_the_true_answer_is_not_suspected(swaps):
    before, truth, was, will = swaps
    assert m.second_subject(truth, before, was, will).sum() == 0
    doubled = truth.clone()
    doubled[:, :, 2:16, 2:16] = torch.tensor([1.0, -0.8, 0.9]).view(1, 3, 1, 1)
    free = torch.stack([was, will]).amax(0)[:, :, 0:20, 0:20].flatten(1).amax(1) < 0.02
    assert free.sum() >= 6
    assert m.second_subject(doubled, before, was, will)[free].mean() == 1


def test_a_whole_second_animal_counts_wherever_it_stands():
    edits = draw_edits(24, 5, "class")
    first = [replace(e.target, style="day", pose=replace(e.target.pose, x=0.85, scale=0.5)) for e in edits]
    second = [replace(e.target, style="day", pose=replace(e.target.pose, x=0.3, scale=0.85), hat=None) for e in edits]
    truth, alone, was, will = pictures(first), pictures(second), masks(first), masks(second)
    x = torch.lerp(truth, alone, will)
    apart = (was * will).flatten(1).amax(1) == 0
    assert apart.sum() >= 12
    assert m.second_subject(x, truth, was, was)[apart].mean() >= 0.9
    assert m.second_subject(truth, truth, was, was).sum() == 0


def test_many_small_patches_are_no_second_subject(swaps):
    before, truth, was, will = swaps
    speckled = truth.clone()
    for y in range(1, 58, 9):
        for x in range(1, 58, 9):
            speckled[:, :, y : y + 5, x : x + 5] = torch.tensor([1.0, -0.8, 0.9]).view(1, 3, 1, 1)
    free = (F.max_pool2d(torch.stack([was, will]).amax(0), 9, stride=1, padding=4) < 0.02).float()
    changed = m.silhouette(speckled, before, 20.0) * free
    solid = -F.max_pool2d(-changed, 3, stride=1, padding=1)
    assert solid.flatten(1).mean(1).min() > 0.02  # all of them together would be enough
    assert m.second_subject(speckled, before, was, will).sum() == 0


def test_the_largest_patch_of_known_shapes():
    shape = torch.zeros(3, 1, 10, 10)
    shape[0, 0, 1:4, 1:4] = 1
    shape[0, 0, 6:8, 6:8] = 1  # 9 and 4 pixels apart
    snake = [(0, i) for i in range(10)] + [(1, 9), (2, 9)] + [(3, i) for i in range(9, -1, -1)] + [(4, 0), (5, 1)]
    for row, column in snake:
        shape[1, 0, row, column] = 1
    assert m.largest_patch(shape).tolist() == pytest.approx([0.09, len(snake) / 100, 0])


def test_training_backgrounds_are_told_from_the_inputs_own(swaps):
    before, truth, was, will = swaps
    photos = pictures([e.source for e in draw_edits(6, 123, "class")])
    assert m.training_background(truth, before, photos, was, will).sum() == 0
    pasted = torch.where(will > 0.5, truth, photos[:1])
    assert m.training_background(pasted, before, photos, was, will).mean() > 0.9


def test_diversity_is_zero_for_one_colour_and_not_for_several(swaps):
    _, truth, _, will = swaps
    assert m.diversity(truth[:1].repeat(5, 1, 1, 1), will[:1].repeat(5, 1, 1, 1)) < 1e-2
    assert m.diversity(truth, will) > 5


def test_an_incomplete_edit_keeps_the_sources_shape(swaps):
    edits = draw_edits(40, 6, "class")
    was, will = masks([e.source for e in edits]), masks([e.target for e in edits])
    places = to_tensor([draw(e.source, empty=True) for e in edits])
    recoloured = pictures([replace(e.source, coat=e.target.coat) for e in edits])
    done = pictures([e.target for e in edits])
    assert m.incomplete(done, places, was, will).mean() <= 0.05
    assert m.incomplete(recoloured, places, was, will).mean() >= 0.9


SUCCESS = {
    "class": ("recognised", "recognised (colour-blind)"),
    "place": ("done", "recognised"),
    "style": ("done", "recognised"),
    "colour": ("right colour",),
    "accessory": ("done",),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_answer_counts_as_done_and_a_copy_does_not(kind):
    judges = load_judges(DATA)
    edits = draw_edits(16, 8, kind)
    truth, copied = (pictures([getattr(e, side) for e in edits]) for side in ("target", "source"))
    best, none = (figures_of(edits, x, *judges) for x in (truth, copied))
    for name in SUCCESS[kind]:
        assert best[name].mean >= 0.9, name
        assert none[name].mean <= 0.1, name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "accessory"])
def test_the_truth_through_the_first_stage_counts_as_done_and_noise_does_not(kind):
    judges = load_judges(DATA)
    stage = load_model(DATA / "editor.safetensors").first_stage_model
    edits = draw_edits(16, 8, kind)
    truth = pictures([e.target for e in edits])
    with torch.no_grad():
        back = stage.decode(stage.encode(truth).mode()).clamp(-1, 1)
    noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rebuilt, none = (figures_of(edits, x, *judges) for x in (back, noise))
    chance = 0.5 if kind == "style" else 0.2  # a style is one of four, also of noise
    for name in SUCCESS[kind]:
        assert rebuilt[name].mean >= 0.85, name
        assert none[name].mean <= chance, name


@pytest.mark.parametrize("item", ["hat", "collar"])
def test_an_accessory_is_judged_where_the_true_pictures_differ_also_on_the_animal(item):
    judges = load_judges(DATA)
    bare = [random_scene(np.random.default_rng([7, i, 87]), hat=None, collar=None, style="day") for i in range(16)]
    worn = [replace(scene, **{item: "pink"}) for scene in bare]
    for sources, targets in ((bare, worn), (worn, bare)):
        edits = [Edit("accessory", a, b, "") for a, b in zip(sources, targets, strict=True)]
        before, truth = pictures(sources), pictures(targets)
        fringe = ((masks(sources) - masks(targets)).abs() > 0).float()
        only_inside, only_fringe = torch.lerp(truth, before, fringe), torch.lerp(before, truth, fringe)
        done = {
            name: figures_of(edits, x, *judges)["done"].mean
            for name, x in (("truth", truth), ("copy", before), ("inside", only_inside), ("fringe", only_fringe))
        }
        assert (done["truth"], done["copy"]) == (1, 0)
        if item == "collar":  # the collar itself decides, not the few pixels that stick out
            assert done["inside"] >= 0.9
            assert done["fringe"] <= 0.1
