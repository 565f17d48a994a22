"""Which pairs are planned: photos, source words, sentences and seeds."""

import pytest
from PIL import Image

from ldm.data.images import small
from ldm.dataset_generation.plan import (
    check_words,
    plan_instance,
    plan_regularization,
    plan_round_trips,
    readable,
)
from ldm.errors import UserError
from tests.dataset_generation.stand_ins import photo

# The plan


def test_every_photo_is_planned_with_every_source_word_and_seeds_of_their_own(photos):
    plan = plan_instance(photos, ["wolf", "red fox"], 2, 30)
    assert [p.id for p in plan] == sorted({p.id for p in plan})
    assert [(int(p.id), p.photo.name, p.source_word, p.seed) for p in plan] == [
        (i, f"{'abc'[i // 4]}.png", ["wolf", "red fox"][i // 2 % 2], 30 + i) for i in range(12)
    ]
    assert {(p.folder, p.direction) for p in plan} == {("training", "reverse")}


def test_regularization_takes_the_classes_in_turn_then_their_pictures(photos):
    plan = plan_regularization({"wolf": photos[:2], "fox": photos[2:]}, 6, 0)
    assert [(p.source_word, p.photo.stem) for p in plan] == [
        ("wolf", "a"),
        ("fox", "c"),
        ("wolf", "b"),
        ("fox", "c"),
        ("wolf", "a"),
        ("fox", "c"),
    ]
    assert len({p.seed for p in plan}) == 6
    assert {(p.folder, p.direction) for p in plan} == {("regularization", "forward")}


def test_round_trips_give_every_photo_every_source_word(photos):
    plan = plan_round_trips(photos[:2], ["wolf", "fox"], 4, 0)
    assert {(p.photo.stem, p.source_word) for p in plan} == {(a, b) for a in "ab" for b in ("wolf", "fox")}
    assert {(p.folder, p.direction) for p in plan} == {("regularization", "round trip")}
    assert not {p.seed for p in plan} & {p.seed for p in plan_instance(photos, ["wolf", "fox"], 1, 0)}


def test_words_without_pictures_take_their_turns_by_round_trips(photos):
    """More pairs go on from fewer: what is planned stays as it is."""
    plan = plan_regularization({"fox": photos[1:]}, 6, 0, {"wolf": photos[:1], "cat": photos})
    assert [(p.source_word, p.direction, p.photo.stem) for p in plan] == [
        ("fox", "forward", "b"),
        ("wolf", "round trip", "a"),
        ("cat", "round trip", "a"),
        ("fox", "forward", "c"),
        ("wolf", "round trip", "a"),
        ("cat", "round trip", "b"),
    ]
    assert len({p.id for p in plan}) == len({p.seed for p in plan}) == 6
    assert plan_regularization({"fox": photos[1:]}, 9, 0, {"wolf": photos[:1], "cat": photos})[:6] == plan


@pytest.mark.parametrize(
    ("class_word", "source_words", "said"),
    [
        ("dog", ["dog"], "is the class word"),
        ("dog", ["wolf", " Dog "], "is the class word"),
        ("Golden Retriever", ["golden retriever"], "is the class word"),
        (" ", ["wolf"], "class word is empty"),
        ("dog", [], "source word is missing"),
        ("dog", ["wolf", " "], "source word is missing"),
        ("dog", ["wolf", "fox", "wolf"], "named twice"),
    ],
)
def test_words_that_teach_nothing_are_refused(class_word, source_words, said):
    with pytest.raises(ValueError, match=said):
        check_words(class_word, source_words)


def test_words_that_only_share_a_part_are_fine():
    check_words("dog", ["wild dog", "hot dog"])
    check_words("golden retriever", ["wolf", "retriever"])


def test_unreadable_pictures_are_left_out_by_name(photos, tmp_path, caplog):
    broken, cut = tmp_path / "photos" / "broken.png", tmp_path / "photos" / "cut.png"
    broken.write_bytes(b"no picture")
    cut.write_bytes(photos[0].read_bytes()[:200])
    assert readable([photos[0], broken, photos[1], cut, photos[2]], 64) == photos
    assert ["broken.png" in caplog.messages[0], "cut.png" in caplog.messages[1], len(caplog.messages)] == [
        True,
        True,
        2,
    ]
    with pytest.raises(UserError, match=r"none of the 2 pictures .*broken\.png"):
        readable([broken, cut], 64)
    with pytest.raises(UserError, match="no picture to read"):
        readable([], 64)


def test_a_picture_too_narrow_to_edit_is_left_out_by_name_too(photos, tmp_path, caplog):
    """The editor refuses more than 8 : 1, in the middle of the work and again at each restart."""
    narrow = photo(tmp_path / "photos" / "narrow.png", 9, (900, 40))
    assert readable([*photos, narrow], 64) == photos
    assert "narrow.png" in caplog.messages[0]


def test_photos_are_made_no_larger_than_the_model_works_and_keep_their_shape():
    assert small(Image.new("RGB", (4000, 3000)), 512).size == (512, 384)
    assert small(Image.new("RGB", (30, 300)), 64).size == (6, 64)
    assert small(Image.new("RGB", (60, 40)), 64).size == (60, 40)
