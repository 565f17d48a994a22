import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab

from ldm.data.images import to_tensor
from ldm.spriteworld.world.places import LAYOUTS, layout, paint
from ldm.spriteworld.world.scene import (
    ANIMALS,
    BACKDROPS,
    COAT_WORDS,
    COATS,
    COLOURS,
    EYES,
    FACINGS,
    FIGURES,
    PATTERNS,
    PLACES,
    SCALES,
    STANCES,
    STANDS_X,
    STANDS_Y,
    STYLES,
    SUBJECTS,
    Coat,
    Pose,
    Scene,
    coloured,
    draw,
    random_scene,
    subject_mask,
    subject_scene,
    swap,
)

POSE = Pose("stand", "right", 0.5, 0.88, 1.0)
SCENE = Scene("dog", POSE, COATS["dog"][0], "meadow", "day", None, None, 3)


def pixels(scene: Scene, **options: int) -> np.ndarray:
    return np.asarray(draw(scene, **options)).astype(int)


def mask(scene: Scene) -> np.ndarray:
    return np.asarray(subject_mask(scene)).astype(int)


def changed(a: Scene, b: Scene) -> np.ndarray:
    return (pixels(a) != pixels(b)).any(axis=2)


def shadow_box(scene: Scene) -> np.ndarray:
    """The rows in which a shadow may lie."""
    rows = np.arange(64)[:, None] / 64
    return np.broadcast_to(abs(rows - scene.pose.y) < 0.09, (64, 64))


def test_the_same_scene_is_the_same_bytes():
    assert draw(SCENE).tobytes() == draw(SCENE).tobytes()
    code = (
        "import hashlib, numpy as np; from ldm.spriteworld.world.scene import *; "
        "rng = np.random.default_rng(5); h = hashlib.sha256(); "
        "[h.update(draw(random_scene(rng)).tobytes()) for _ in range(12)]; print(h.hexdigest())"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    rng, digest = np.random.default_rng(5), hashlib.sha256()
    for _ in range(12):
        digest.update(draw(random_scene(rng)).tobytes())
    assert out.stdout.strip() == digest.hexdigest()


def test_drawing_does_not_spoil_what_is_remembered():
    before = draw(SCENE).tobytes()
    draw(replace(SCENE, animal="bear", coat=COATS["bear"][0], hat="red", style="night"))
    draw(SCENE).paste((0, 0, 0), (0, 0, 64, 64))
    assert draw(SCENE).tobytes() == before


@pytest.mark.parametrize("animal", ANIMALS)
def test_every_animal_draws_everywhere(animal):
    pictures = set()
    for stance in STANCES:
        for place in PLACES:
            scene = replace(SCENE, animal=animal, coat=COATS[animal][0], place=place, pose=replace(POSE, stance=stance))
            picture = draw(scene)
            assert picture.size == (64, 64)
            assert picture.mode == "RGB"
            pictures.add(picture.tobytes())
    assert len(pictures) == len(STANCES) * len(PLACES)


@pytest.mark.parametrize("animal", ANIMALS)
@pytest.mark.parametrize("stance", STANCES)
def test_animals_are_large_and_inside_the_picture(animal, stance):
    cover = mask(replace(SCENE, animal=animal, coat=COATS[animal][0], pose=replace(POSE, stance=stance))) > 127
    columns, rows = np.flatnonzero(cover.any(axis=0)), np.flatnonzero(cover.any(axis=1))
    assert 0.33 <= (columns[-1] - columns[0] + 1) / 64 <= 0.75
    assert columns[0] > 0
    assert columns[-1] < 63
    assert rows[0] > 0
    assert abs((rows[-1] + 1) / 64 - POSE.y) < 0.03


def test_silhouettes_of_the_classes_differ():
    covers = [mask(replace(SCENE, animal=animal, coat=COATS[animal][0])) > 127 for animal in ANIMALS]
    for i, a in enumerate(covers):
        for b in covers[:i]:
            assert (a & b).sum() / (a | b).sum() < 0.75


@pytest.mark.parametrize("animal", ANIMALS)
def test_mask_is_what_the_animal_covers(animal):
    scene = replace(SCENE, animal=animal, coat=COATS[animal][0], hat="red", collar="blue")
    cover = mask(scene)
    apart = abs(pixels(scene) - pixels(replace(scene, place="city"))).max(axis=2)
    assert apart[cover == 255].max() == 0
    edge = (cover > 0) & (cover < 255)
    assert 0 < edge.sum() < 0.35 * (cover > 0).sum()
    assert (apart[edge] <= 255 - cover[edge] + 2).all()
    assert (cover == 255).sum() > 200


def test_mask_does_not_depend_on_coat_place_or_style():
    other = replace(SCENE, coat=coloured(SCENE.coat, "pink"), place="room", style="night", seed=9)
    assert (mask(SCENE) == mask(other)).all()
    assert mask(replace(SCENE, hat="red")).sum() > mask(SCENE).sum()


@pytest.mark.parametrize("style", STYLES)
def test_a_coat_changes_only_the_animal(style):
    for animal in ANIMALS if style == "day" else ("dog",):
        scene = replace(SCENE, animal=animal, coat=COATS[animal][0], style=style)
        cover = mask(scene)
        for pattern in PATTERNS:
            other = replace(scene, coat=Coat((230, 120, 40), (250, 250, 250), pattern))
            difference = changed(scene, other)
            assert difference.sum() > 100
            assert not difference[cover == 0].any()
            assert (mask(other) == cover).all()


@pytest.mark.parametrize("animal", [name for name in ANIMALS if name != "dog"])
def test_another_class_changes_only_the_animal_and_its_shadow(animal):
    other = swap(replace(SCENE, hat="red"), animal, np.random.default_rng(0))
    outside = (mask(replace(SCENE, hat="red")) == 0) & (mask(other) == 0)
    difference = changed(replace(SCENE, hat="red"), other)
    assert not difference[outside & ~shadow_box(SCENE)].any()
    assert difference[~outside].mean() > 0.5
    assert (other.hat, other.collar, other.pose, other.seed) == ("red", None, SCENE.pose, SCENE.seed)
    assert other.coat in COATS[animal]


@pytest.mark.parametrize("animal", ANIMALS)
def test_hat_and_collar_are_seen_and_stay_near_the_head(animal):
    scene = replace(SCENE, animal=animal, coat=COATS[animal][0])
    rows = np.flatnonzero((mask(scene) > 0).any(axis=1))
    hat, collar = changed(scene, replace(scene, hat="blue")), changed(scene, replace(scene, collar="blue"))
    assert hat.sum() >= 40
    assert collar.sum() >= 15
    assert np.flatnonzero(hat.any(axis=1))[-1] < rows[0] + 0.5 * len(rows)
    assert np.flatnonzero(collar.any(axis=1))[-1] < rows[0] + 0.75 * len(rows)
    assert not changed(replace(scene, hat="blue"), replace(scene, hat="red"))[~hat].any()


@pytest.mark.parametrize("animal", ANIMALS)
def test_a_hat_leaves_the_near_ear_to_be_seen(animal, monkeypatch):
    monkeypatch.setitem(PATTERNS, "spots", ("ear",))
    coats = [Coat((200, 60, 60), (60, 60, 200), pattern) for pattern in ("plain", "spots")]

    def ear(hat: str | None) -> int:
        return int(changed(*(replace(SCENE, animal=animal, coat=coat, hat=hat) for coat in coats)).sum())

    assert ear("green") >= max(6, 0.7 * ear(None))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("stance", STANCES)
@pytest.mark.parametrize("animal", ANIMALS)
def test_a_hat_is_whole_and_upright(animal, stance, scale):
    """Nothing lies before it, each row is as far to the left of its middle as to the right, and the lowest is whole."""
    scene = replace(SCENE, animal=animal, coat=COATS[animal][0], pose=replace(POSE, stance=stance, scale=scale))
    hat = changed(replace(scene, hat="red"), replace(scene, hat="blue"))
    rows = [np.flatnonzero(row) for row in hat if row.any()]
    assert all(len(row) == row[-1] - row[0] + 1 for row in rows)
    middles = [(row[0] + row[-1]) / 2 for row in rows]
    assert max(middles) - min(middles) <= 1
    cuff = pixels(replace(scene, hat="red"))[np.flatnonzero(hat.any(axis=1))[-2:], int(middles[-1])]
    assert (cuff[0] == cuff[1]).all()


@pytest.mark.parametrize("facing", FACINGS)
@pytest.mark.parametrize("animal", ANIMALS)
def test_an_eye_is_whole_pixels_and_looks_ahead(animal, facing, monkeypatch):
    """Two by two dark pixels and the ball's column behind them; a hat leaves a row of the face above."""
    ahead = 1 if facing == "right" else -1
    for stance, scale, x, y in itertools.product(STANCES, SCALES, STANDS_X, STANDS_Y):
        coat = Coat((120, 120, 120), (120, 120, 120), "plain")
        scene = replace(SCENE, animal=animal, coat=coat, pose=Pose(stance, facing, x, y, scale), hat="red")
        before = pixels(scene)
        dark = np.argwhere((before.max(axis=2) < 28) & (mask(scene) == 255))
        (top, left), (bottom, right) = dark.min(axis=0), dark.max(axis=0)
        assert (len(dark), bottom - top, right - left) == (4, 1, 1)
        with monkeypatch.context() as patched:
            patched.setitem(EYES, animal, (0, 250, 250))
            behind = np.argwhere((pixels(scene) != before).any(axis=2))
        back = left - 1 if ahead > 0 else right + 1
        assert behind.tolist() == [[top, back], [bottom, back]]
        hat = changed(scene, replace(scene, hat="blue"))
        assert np.flatnonzero(hat.any(axis=1))[-1] < top - 1


@pytest.mark.parametrize("animal", ANIMALS)
def test_under_a_hat_the_body_stays(animal):
    scene = replace(SCENE, animal=animal, coat=COATS[animal][0])
    rows = np.flatnonzero((mask(scene) > 0).any(axis=1))
    assert not changed(scene, replace(scene, hat="red"))[rows[0] + len(rows) // 2 :].any()


def test_the_seed_moves_only_the_place():
    other = replace(SCENE, seed=4)
    difference = changed(SCENE, other)
    assert difference.sum() > 30
    assert not difference[mask(SCENE) == 255].any()


def test_facing_left_mirrors_the_animal():
    left = mask(replace(SCENE, pose=replace(POSE, facing="left")))
    assert abs(left[:, ::-1] - mask(SCENE)).mean() < 6
    assert abs(left - mask(SCENE)).mean() > 20


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_one_linear_function_of_the_animal(style):
    """By day an animal is drawn as it is painted."""
    for animal, coat in itertools.product(ANIMALS, (COATS["cat"][0], Coat((200, 90, 60), (60, 120, 220), "patches"))):
        day = replace(SCENE, animal=animal, coat=coat, hat="pink", collar="green")
        inside = mask(day) == 255
        before, after = (pixels(replace(day, style=name))[inside] for name in ("day", style))
        assert abs(after - _graded(before, FIGURES[style])).max() <= 2
        assert len(np.unique(after, axis=0)) > 30


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_another_linear_function_of_what_stands_behind(style):
    """Nearly everywhere: a moon and windows are laid over the night."""
    for place, seed in itertools.product(PLACES, range(LAYOUTS)):
        painted = np.asarray(paint(place, seed, 256)[0].reduce(4)).astype(int)
        seen = pixels(replace(SCENE, place=place, seed=seed, style=style), empty=True)
        right = abs(seen - _graded(painted, BACKDROPS[style])).max(axis=2) <= 2
        assert right.mean() > (0.8 if style == "night" else 0.999)


def _graded(colours: np.ndarray, grade: tuple[float, ...]) -> np.ndarray:
    rows = np.array(grade).reshape(3, 4)
    return np.clip(colours @ rows[:, :3].T + rows[:, 3], 0, 255)


def test_grey_has_no_colour():
    for place in PLACES:
        grey = pixels(replace(SCENE, place=place, style="grey", hat="red"))
        assert np.ptp(grey, axis=2).max() == 0


def test_night_is_dark_blue_readable_and_has_lights():
    for place in PLACES:
        day, night = pixels(replace(SCENE, place=place)), pixels(replace(SCENE, place=place, style="night"))
        cover = mask(SCENE)
        assert night.mean() < 0.75 * day.mean()
        assert night[..., 2].mean() > 1.2 * night[..., 0].mean()
        assert night[cover == 255].mean(axis=1).std() > 8
        lit = pixels(replace(SCENE, place=place, style="night"), empty=True).max() > 200
        assert lit == (place != "forest")


@pytest.mark.parametrize("style", STYLES)
def test_every_animal_stands_out_from_every_place(style):
    """Along its outline an animal's colours differ from those beside it by far more than the eye needs (CIELAB 2)."""
    looks = [(animal, coat) for animal in ANIMALS for coat in COATS[animal]]
    looks += [(subject.class_word, subject.coat) for subject in SUBJECTS.values()]
    bare = {"hat": None, "collar": None, "style": style}
    for k, ((animal, coat), place) in enumerate(itertools.product(looks, PLACES)):
        for seed in range(LAYOUTS):
            scene = random_scene(
                np.random.default_rng([k, seed]), animal=animal, coat=coat, place=place, seed=seed, **bare
            )
            assert _outline_contrast(scene) > 9, scene


def _outline_contrast(scene: Scene) -> float:
    """The mean CIELAB distance, along the outline, of the averages of 5 x 5 pixels inside and outside."""
    picture = rgb_to_lab(to_tensor(draw(scene)) / 2 + 0.5)
    cover = torch.from_numpy(mask(scene)).float()[None, None] / 255
    inside, outside = (cover > 0.9).float(), (cover < 0.02).float()
    near = [F.avg_pool2d(side, 5, 1, 2) for side in (inside, outside)]
    means = [
        F.avg_pool2d(picture * side, 5, 1, 2) / share.clamp(min=1e-4)
        for side, share in zip((inside, outside), near, strict=True)
    ]
    edge = (near[0] > 0.15) & (near[1] > 0.15)
    return (means[0] - means[1]).norm(dim=1, keepdim=True)[edge].mean().item()


def test_lights_at_night_stay_behind_the_animal():
    inside = mask(SCENE) == 255
    nights = [pixels(replace(SCENE, place=place, style="night", seed=seed)) for place in PLACES for seed in range(3)]
    assert all((night[inside] == nights[0][inside]).all() for night in nights)


def test_places_and_styles_differ():
    """Of 255, mean absolute differences; backdrops in grey are pale, and nearer to each other."""
    pictures = {
        (place, style): pixels(replace(SCENE, place=place, style=style))
        for place, style in itertools.product(PLACES, STYLES)
    }
    for a, b in itertools.combinations(pictures, 2):
        both_grey = a[1] == b[1] == "grey"
        assert abs(pictures[a] - pictures[b]).mean() > (3 if both_grey else 5), (a, b)


def test_larger_pictures_show_the_same_scene():
    large = draw(SCENE, size=128).reduce(2)
    assert abs(np.asarray(large).astype(int) - pixels(SCENE)).mean() < 2


@pytest.mark.parametrize("name", SUBJECTS)
def test_subjects_do_not_occur_in_pretraining(name):
    subject = SUBJECTS[name]
    natural = COATS[subject.class_word]
    assert subject.coat.pattern not in {coat.pattern for coat in natural} | {"plain"}
    for coat in natural:
        assert np.linalg.norm(np.subtract(coat.main, subject.coat.main)) > 70
    scene = subject_scene(np.random.default_rng(0), name)
    assert (scene.animal, scene.coat, scene.collar, scene.hat) == (*_look(name), None)
    plain = replace(scene, style="day", coat=replace(subject.coat, pattern="plain"))
    seen = changed(replace(scene, style="day"), plain)[mask(scene) > 0].mean()
    assert seen > 0.15, "the pattern must be large"


def _look(name: str) -> tuple:
    subject = SUBJECTS[name]
    return subject.class_word, subject.coat, subject.collar


def test_every_pattern_shows():
    plain = replace(SCENE, coat=Coat((200, 60, 60), (60, 60, 200), "plain"))
    for pattern in PATTERNS:
        seen = changed(plain, replace(plain, coat=replace(plain.coat, pattern=pattern))).any()
        assert seen == (pattern != "plain")


def test_colours_are_told_apart():
    values = [np.array(value) for value in COLOURS.values()]
    for i, a in enumerate(values):
        assert all(np.linalg.norm(a - b) > 70 for b in values[:i])
    coat = coloured(COATS["wolf"][0], "red")
    assert coat.main == COLOURS["red"]
    assert coat.pattern == "plain"
    assert coat.second != coat.main


def test_random_scenes_cover_everything_and_take_natural_coats():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(1000)]
    assert {s.animal for s in scenes} == set(ANIMALS)
    assert {s.place for s in scenes} == set(PLACES)
    assert {s.pose.stance for s in scenes} == set(STANCES)
    assert {s.style for s in scenes} == set(STYLES)
    assert all(s.coat in COATS[s.animal] for s in scenes)
    assert {s.coat for s in scenes} == {coat for coats in COATS.values() for coat in coats} == set(COAT_WORDS)
    assert 0.65 < np.mean([s.style == "day" for s in scenes]) < 0.85
    assert 0.05 < np.mean([s.hat is not None for s in scenes]) < 0.2
    assert {s.pose.scale for s in scenes} == set(SCALES)
    assert len({(s.animal, *vars(s.pose).values()) for s in (random_scene(rng) for _ in range(20000))}) == 6 * 162


def test_animals_stand_on_half_cells_of_the_latents_well_inside_the_picture():
    """A cell of the first stage is 8 of 64 pixels wide."""
    for places in (STANDS_X, STANDS_Y):
        assert all((16 * place) == int(16 * place) for place in places)
    for x, y, scale, animal in itertools.product((min(STANDS_X), max(STANDS_X)), STANDS_Y, SCALES, ANIMALS):
        for stance, facing in itertools.product(STANCES, FACINGS):
            scene = replace(SCENE, animal=animal, hat="red", pose=Pose(stance, facing, x, y, scale))
            seen, all_of_it = mask(scene), mask(replace(scene, pose=replace(scene.pose, x=0.5, y=0.875)))
            assert seen.sum() > 0.985 * all_of_it.sum()


def test_one_place_tells_where_everything_stands_in_all_others():
    """Two layouts never agree in anything; a seed beyond the last begins again."""
    numbers = np.array([layout(seed, 12) for seed in range(LAYOUTS)])
    assert all(len(set(column)) == LAYOUTS for column in numbers.T.tolist())
    assert layout(LAYOUTS + 2, 12) == layout(2, 12)
    for place in PLACES:
        pictures = [pixels(replace(SCENE, place=place, seed=seed), empty=True) for seed in range(LAYOUTS + 1)]
        assert (pictures[0] == pictures[-1]).all()
        assert all(abs(a - b).max() > 20 for a, b in itertools.combinations(pictures[:-1], 2))


@pytest.mark.parametrize(("field", "value"), [("place", "room"), ("style", "night"), ("hat", "red"), ("seed", 1)])
def test_fixing_a_field_leaves_the_others(field, value):
    free, fixed = random_scene(np.random.default_rng(7)), random_scene(np.random.default_rng(7), **{field: value})
    assert getattr(fixed, field) == value
    assert replace(free, **{field: value}) == fixed


def test_fixing_a_field_of_the_pose_and_the_class():
    free = random_scene(np.random.default_rng(7))
    sitting = random_scene(np.random.default_rng(7), stance="sit", animal="cat")
    assert sitting.pose == replace(free.pose, stance="sit")
    assert sitting.animal == "cat"
    assert sitting.coat in COATS["cat"]
    a, b = np.random.default_rng(1), np.random.default_rng(1)
    random_scene(a)
    random_scene(b, animal="dog", place="room")
    assert a.random() == b.random()


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({"animal": "cow"}, "rabbit"),
        ({"place": "moon"}, "desert"),
        ({"style": "noon"}, "sunset"),
        ({"hat": "mauve"}, "purple"),
        ({"collar": "mauve"}, "purple"),
        ({"pose": replace(POSE, stance="fly")}, "walk"),
        ({"pose": replace(POSE, facing="up")}, "left"),
        ({"pose": replace(POSE, scale=0.0)}, "positive"),
        ({"coat": Coat((0, 0, 0), (0, 0, 0), "tartan")}, "saddle"),
    ],
)
def test_unknown_values_are_named_with_the_known_ones(change, known):
    for function in (draw, subject_mask):
        with pytest.raises(ValueError, match=known):
            function(replace(SCENE, **change))


def test_unknown_names_in_helpers():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="mochi"):
        subject_scene(rng, "rex")
    with pytest.raises(ValueError, match="stance"):
        random_scene(rng, weather="rain")
    with pytest.raises(ValueError, match="purple"):
        coloured(SCENE.coat, "mauve")
    with pytest.raises(ValueError, match="rabbit"):
        swap(SCENE, "cow", rng)
    with pytest.raises(ValueError, match="size 0"):
        draw(SCENE, size=0)


@pytest.mark.parametrize(
    ("field", "value"), [("stance", "sit"), ("facing", "left"), ("x", 0.56), ("y", 0.84), ("scale", 0.9)]
)
def test_a_field_of_the_pose_changes_only_the_animal_and_its_shadow(field, value):
    for animal in ANIMALS:
        scene = replace(SCENE, animal=animal, coat=COATS[animal][0], hat="red", collar="blue", place="city")
        other = replace(scene, pose=replace(POSE, **{field: value}))
        outside = (mask(scene) == 0) & (mask(other) == 0)
        difference = changed(scene, other)
        assert not difference[outside & ~shadow_box(scene) & ~shadow_box(other)].any()
        assert difference[~outside].mean() > 0.2
