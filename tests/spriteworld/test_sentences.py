import re
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from ldm.spriteworld.world import sentences as instructions
from ldm.spriteworld.world.scene import (
    ANIMALS,
    COAT_WORDS,
    COATS,
    COLOURS,
    PLACES,
    Pose,
    Scene,
    coloured,
    draw,
    random_scene,
)
from ldm.spriteworld.world.sentences import (
    DEFAULT_ACCESSORY,
    KINDS,
    NAMED,
    RESERVED_WORDS,
    WHERE,
    Edit,
    caption,
    colour_word,
    random_edit,
    rare_word,
    with_coat,
)

SCENE = Scene("wolf", Pose("stand", "right", 0.5, 0.88, 1.0), COATS["wolf"][0], "meadow", "day", None, None, 3)
MAY_CHANGE = {
    "class": {"animal", "coat"},
    "place": {"place"},
    "style": {"style"},
    "colour": {"coat"},
    "accessory": {"hat", "collar"},
}


def edits(kind: str | None, count: int = 600, **options: object) -> list[Edit]:
    rng = np.random.default_rng(0)
    return [random_edit(rng, kind, **options) for _ in range(count)]


def differing(edit: Edit) -> set[str]:
    return {f.name for f in fields(Scene) if getattr(edit.source, f.name) != getattr(edit.target, f.name)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_only_what_its_kind_says(kind):
    for edit in edits(kind):
        assert edit.kind == kind
        assert differing(edit)
        assert differing(edit) <= MAY_CHANGE[kind]
        assert kind != "accessory" or len(differing(edit)) == 1
        assert edit.instruction == edit.instruction.strip().lower()
        assert "{" not in edit.instruction


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_is_seen(kind):
    for edit in edits(kind, 25):
        before, after = (np.asarray(draw(scene)).astype(int) for scene in (edit.source, edit.target))
        assert (abs(before - after).max(axis=2) > 20).sum() >= 8, edit


def test_without_a_kind_all_kinds_come_and_classes_most():
    counts = Counter(edit.kind for edit in edits(None))
    assert set(counts) == set(KINDS)
    assert counts.most_common(1)[0][0] == "class"


def test_the_first_wording_is_by_far_the_most_frequent():
    made = edits("class", rare_share=0.0)
    counts = Counter(e.instruction.replace(e.source.animal, "A").replace(e.target.animal, "B") for e in made)
    (first, most), (_, next_most) = counts.most_common(2)
    assert first == "replace the A with a B"
    assert 0.42 < most / len(made) < 0.58
    assert most > 3 * next_most
    assert len(counts) >= 8


def test_class_edits_name_the_new_class_and_draw_its_coat():
    made = edits("class", rare_share=0.0)
    for edit in made:
        assert edit.instruction.split().count(edit.target.animal) == 1
        assert edit.target.coat in COATS[edit.target.animal]
    assert {(e.source.animal, e.target.animal) for e in made} == {(a, b) for a in ANIMALS for b in ANIMALS if a != b}
    assert {e.target.coat for e in made if e.target.animal == "dog"} == set(COATS["dog"])


def test_a_class_edit_can_name_the_natural_coat_it_leads_to():
    made = edits("class", rare_share=0.3)
    for edit in made:
        named, word = with_coat(edit), COAT_WORDS[edit.target.coat]
        assert (named.source, named.target, named.kind) == (edit.source, edit.target, "class")
        assert re.search(rf"\ba {word} (\w{{3}} )?{edit.target.animal}\b", named.instruction)
        assert named.instruction.replace(f"{word} ", "", 1) == edit.instruction
    assert any(edit.instruction.startswith("a ") for edit in made)
    later = [with_coat(edit) for edit in made if " a " in edit.instruction]
    named = {(edit.target.animal, edit.instruction.split(" a ")[-1].split()[0]) for edit in later}
    assert {("dog", "golden"), ("dog", "brown"), ("cat", "black"), ("wolf", "grey")} <= named
    with pytest.raises(ValueError, match="only a class edit"):
        with_coat(edits("place", 1)[0])
    with pytest.raises(ValueError, match="only a natural coat"):
        with_coat(replace(made[0], target=replace(made[0].target, coat=coloured(made[0].target.coat, "red"))))


def test_place_edits_name_the_new_place():
    for edit in edits("place"):
        assert edit.target.place in edit.instruction
        assert edit.source.place not in edit.instruction
    assert {edit.target.place for edit in edits("place")} == set(PLACES)


def test_style_edits_lead_away_from_day_or_back():
    made = edits("style")
    ways = {(e.source.style, e.target.style) for e in made}
    assert ways == {("day", "night"), ("day", "grey"), ("day", "sunset"), ("night", "day"), ("sunset", "day")}
    wordings = {style: {e.instruction for e in made if e.target.style == style} for style in ("day", "night", "grey")}
    assert "make it night" in wordings["night"]
    assert "make it day" in wordings["day"]
    assert "make it black and white" in wordings["grey"]
    assert not wordings["night"] & wordings["day"]


def test_colour_edits_name_the_colour():
    made = edits("colour")
    for edit in made:
        name = colour_word(edit.target.coat)
        assert name in edit.instruction.split()
        assert edit.source.style != "grey"
        assert edit.target.coat == coloured(edit.source.coat, name)
    assert {colour_word(e.target.coat) for e in made} == set(COLOURS)


def test_accessory_edits_say_what_comes_and_goes():
    made = edits("accessory")
    removed = 0
    for edit in made:
        (item,) = differing(edit)
        words, colour = edit.instruction.split(), getattr(edit.target, item)
        assert item in words
        assert edit.source.style != "grey"
        if colour is None:
            removed += 1
            assert words[0] in ("remove", "take")
        elif colour not in words:
            assert colour == DEFAULT_ACCESSORY
            assert not set(words) & set(COLOURS)
    assert 0.3 < removed / len(made) < 0.5


def test_a_given_source_is_kept():
    for kind in (*KINDS, None):
        assert all(edit.source == SCENE for edit in edits(kind, 30, source=SCENE))
    dressed = replace(SCENE, hat="red", collar="blue")
    assert all(edit.instruction.split()[0] in ("remove", "take") for edit in edits("accessory", 30, source=dressed))
    grey = replace(SCENE, style="grey")
    assert {edit.kind for edit in edits(None, 200, source=grey)} == {"class", "place", "accessory"}


def test_impossible_edits_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="accessory"):
        random_edit(rng, "weather")
    for kind in ("style", "colour"):
        with pytest.raises(ValueError, match="grey"):
            random_edit(rng, kind, replace(SCENE, style="grey"))


def test_the_same_generator_gives_the_same_edits():
    assert edits(None, 50) == edits(None, 50)


def test_rare_words_are_rare_meaningless_and_leave_the_picture():
    rng = np.random.default_rng(0)
    words = [rare_word(rng) for _ in range(2000)]
    assert len(set(words)) > 1000
    assert all(len(word) == 3 and not set(word) & set("aeiou") for word in words)
    assert not RESERVED_WORDS & set(words)
    assert "sks" in RESERVED_WORDS
    plain = [random_edit(np.random.default_rng(i), "class", rare_share=0.0) for i in range(50)]
    rare = [random_edit(np.random.default_rng(i), "class", rare_share=1.0) for i in range(50)]
    for a, b in zip(plain, rare, strict=True):
        assert (a.source, a.target) == (b.source, b.target)
        assert len(b.instruction.split()) == len(a.instruction.split()) + 1
        before = b.instruction.split()[b.instruction.split().index(b.target.animal) - 1]
        assert len(before) == 3
        assert before not in a.instruction.split()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "class"])
def test_an_animal_that_is_there_is_called_by_a_name_now_and_then(kind, monkeypatch):
    """As "put the sks dog on the beach" does; the name changes neither the scenes nor what is drawn afterwards."""
    called = {}
    for share in (0.0, 0.06, 1.0):
        drawn = [np.random.default_rng([3, i]) for i in range(400)]
        called[share] = [(random_edit(rng, kind, rare_share=share), rng.random()) for rng in drawn]
    named = 0
    for (a, after), (b, _), (c, later) in zip(*called.values(), strict=True):
        assert (a.source, a.target, after) == (c.source, c.target, later)
        the = f"the {a.source.animal}"
        assert c.instruction == a.instruction if the not in a.instruction else c.instruction != a.instruction
        assert re.sub(r"\bthe [b-z]{3} (?=\w+)", "the ", c.instruction) == a.instruction
        named += b.instruction != a.instruction
    can = sum(f"the {edit.source.animal}" in edit.instruction for edit, _ in called[0.0])
    assert abs(named - NAMED * 0.06 * can) <= 4 * (NAMED * 0.06 * can) ** 0.5
    assert named if kind != "style" else not can
    monkeypatch.setattr(instructions, "_with_name", lambda rng, instruction, animal, share: instruction)
    rng = np.random.default_rng([3, 0])
    random_edit(rng, kind)
    assert rng.random() == called[1.0][0][1]


def test_reserved_words_are_never_drawn(monkeypatch):
    first = rare_word(np.random.default_rng(0))
    monkeypatch.setattr(instructions, "RESERVED_WORDS", frozenset({first}))
    assert rare_word(np.random.default_rng(0)) != first


def test_the_share_of_rare_words():
    def share(say) -> float:
        pairs = [[say(np.random.default_rng(i), rare_share) for i in range(2000)] for rare_share in (0.0, None)]
        for plain, worded in zip(*pairs, strict=True):
            assert worded == plain or len(worded.split()) == len(plain.split()) + 1
        return float(np.mean([plain != worded for plain, worded in zip(*pairs, strict=True)]))

    def options(rare_share: float | None) -> dict:
        return {} if rare_share is None else {"rare_share": rare_share}

    assert 0.04 < share(lambda rng, r: caption(SCENE, rng, **options(r))) < 0.08
    assert 0.04 < share(lambda rng, r: random_edit(rng, "class", SCENE, **options(r)).instruction) < 0.08


def test_captions_say_what_is_there():
    rng = np.random.default_rng(1)
    for _ in range(300):
        scene = random_scene(rng)
        words = caption(scene, rng, rare_share=0.0)
        assert scene.animal in words.split()
        assert WHERE[scene.place] in words
        assert ("night" in words) == (scene.style == "night")
        assert ("sunset" in words) == (scene.style == "sunset")
        assert ("black and white" in words) == (scene.style == "grey")
        for item in ("hat", "collar"):
            colour = getattr(scene, item)
            assert (f"{colour} {item}" in words) if colour else (item not in words.split())


def test_captions_name_unnatural_colours():
    scene = replace(SCENE, coat=coloured(SCENE.coat, "purple"), hat="red", style="night")
    seen = {caption(scene, np.random.default_rng(i), rare_share=0.0) for i in range(100)}
    assert "a photo of a purple wolf with a red hat in the meadow at night" in seen
    assert all("purple wolf" in words for words in seen)
    assert len(seen) > 6
    natural = {caption(SCENE, np.random.default_rng(i), rare_share=0.0) for i in range(100)}
    assert {"a wolf in the meadow", "a grey wolf in the meadow"} <= natural
