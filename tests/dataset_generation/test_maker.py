"""Reverse editing: what is made of a photo, how often it is tried, and when it is set aside."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.images import small
from ldm.data.pairs import find_pairs
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.dataset_generation.gates import Gates
from ldm.dataset_generation.plan import (
    plan_instance,
    plan_regularization,
    plan_round_trips,
)
from ldm.inference.settings import EditSettings
from tests.dataset_generation.stand_ins import GATES, SETTINGS, FakeEditor, files, maker, photo, whole_plan


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def listed(folder: Path) -> dict[str, Path]:
    """Pictures by their names, whatever the width of the numbers: "0_1.png" also for 0000_1.png."""
    return {f"{int(p.name.split('_')[0])}_{p.name.split('_')[1]}": p for p in sorted(folder.iterdir())}


# What is made


def test_the_photo_is_the_edited_side_byte_for_byte(tmp_path):
    """A photo of a camera: upper-case ending, EXIF inside, larger than the model works."""
    source = tmp_path / "IMG_1.JPG"
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    photo(source, 1, (300, 200), exif=exif, quality=91, format="JPEG")
    editor = FakeEditor()
    manifest = maker(tmp_path / "out", editor).run(plan_instance([source], ["wolf"], 1, 3))
    out = listed(tmp_path / "out" / "training")
    assert list(out) == ["0_0.png", "0_1.jpg"]
    assert out["0_1.jpg"].read_bytes() == source.read_bytes()
    with Image.open(source) as opened:
        expected = editor.painted(small(opened.convert("RGB"), 64), "replace the dog with a wolf", 3, SETTINGS)
    assert np.array_equal(pixels(out["0_0.png"]), np.asarray(expected))
    assert editor.calls == [("replace the dog with a wolf", 3, 4.0, 2.0)]
    (entry,) = manifest["pairs"]
    assert (entry["photo"], entry["direction"], entry["source_word"]) == ("IMG_1.JPG", "reverse", "wolf")
    assert entry["photo_hash"] == hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def test_a_regularization_picture_is_the_input_side_byte_for_byte(tmp_path):
    source = photo(tmp_path / "wolves" / "w.jpeg", 2)
    editor = FakeEditor()
    maker(tmp_path / "out", editor).run(plan_regularization({"arctic wolf": [source]}, 2, 0))
    out = listed(tmp_path / "out" / "regularization")
    assert list(out) == ["0_0.jpeg", "0_1.png", "1_0.jpeg", "1_1.png"]
    for i in (0, 1):
        assert out[f"{i}_0.jpeg"].read_bytes() == source.read_bytes()
    assert not np.array_equal(pixels(out["0_1.png"]), pixels(out["1_1.png"]))  # another seed each
    assert {text for text, *_ in editor.calls} == {"replace the arctic wolf with a dog"}


def test_a_round_trip_edits_forward_what_it_edited_in_reverse(tmp_path, photos):
    editor = FakeEditor()
    maker(tmp_path / "out", editor).run(plan_round_trips(photos[:1], ["wolf"], 1, 0))
    out = listed(tmp_path / "out" / "regularization")
    assert list(out) == ["0_0.png", "0_1.png"]
    (reverse, first, *_), (forward, second, *_) = editor.calls
    assert (reverse, forward) == ("replace the dog with a wolf", "replace the wolf with a dog")
    assert first != second
    made = editor.painted(Image.open(photos[0]), reverse, first, SETTINGS)
    assert np.array_equal(pixels(out["0_0.png"]), np.asarray(made))
    assert np.array_equal(pixels(out["0_1.png"]), np.asarray(editor.painted(made, forward, second, SETTINGS)))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_source_edits_are_done_to_what_was_made_of_a_photo_and_to_nothing_else(tmp_path, photos, batch_size):
    editor, edits = FakeEditor(), ["remove the collar", "make the {word} wet"]
    manifest = maker(tmp_path / "out", editor, source_edits=edits, batch_size=batch_size).run(whole_plan(photos))
    assert manifest["source_edits"] == edits
    told = [text for text, *_ in editor.calls]
    assert told.count("remove the collar") == 6
    assert told.count("make the wolf wet") == told.count("make the fox wet") == 3
    assert len(told) == 6 * 3 + 4 + 3 * 2
    out = listed(tmp_path / "out" / "training")
    for note in (note for note in manifest["pairs"] if note["folder"] == "training"):
        made = Image.open(next(path for path in photos if path.name == note["photo"]))
        for text in (f"replace the dog with a {note['source_word']}", edits[0], f"make the {note['source_word']} wet"):
            made = editor.painted(made, text, note["made"][0]["seed"], SETTINGS)
        assert np.array_equal(pixels(out[f"{int(note['id'])}_0.png"]), np.asarray(made))


def test_a_source_is_judged_after_its_edits_and_made_again_from_the_photo(tmp_path, photos):
    editor = FakeEditor(lambda text, seed, _: "destroyed" if "collar" in text and seed < 10_000_000 else "")
    plan = plan_instance(photos[:1], ["wolf"], 1, 0)
    manifest = maker(tmp_path / "out", editor, source_edits=["remove the collar"]).run(plan)
    swap, off = "replace the dog with a wolf", "remove the collar"
    assert [(text, seed) for text, seed, *_ in editor.calls] == [
        *((text, 0) for text in (swap, off)),
        *((text, 10_000_000) for text in (swap, off)),
    ]
    assert [(text, image) for _, _, text, image in editor.calls][1::2] == [(4.0, 2.0)] * 2
    assert manifest["pairs"][0]["made"][0]["attempt"] == 2


def test_a_source_that_is_refused_is_not_edited_on(tmp_path, photos):
    """Else a source edit could make a change that the gates take for the reverse edit's."""
    editor = FakeEditor(lambda text, *_: "unchanged" if "with a wolf" in text else "")
    plan = plan_instance(photos[:1], ["wolf"], 1, 0)
    manifest = maker(tmp_path / "out", editor, source_edits=["remove the collar"]).run(plan)
    assert [p["set_aside"] for p in manifest["set_aside"]] == ["unchanged"]
    assert {text for text, *_ in editor.calls} == {"replace the dog with a wolf"}


def test_the_command_hands_source_edits_on(generate, tmp_path, photos):
    editor = FakeEditor()
    code, _, _ = generate("--source-edits", "remove the collar", "take off the hat", editor=editor)
    assert code == 0
    assert [text for text, *_ in editor.calls].count("take off the hat") == 3
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["source_edits"] == [
        "remove the collar",
        "take off the hat",
    ]


def test_the_manifest_tells_how_each_pair_was_made(tmp_path, photos):
    manifest = maker(tmp_path / "out").run(whole_plan(photos))
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["class_word"], manifest["source_words"]) == ("dog", ["wolf", "fox"])
    assert (manifest["checkpoint"], manifest["checkpoint_hash"]) == ("editor.ckpt", "0123abcd")
    assert manifest["settings"]["steps"] == 5
    assert manifest["set_aside"] == []
    assert [(p["folder"], p["direction"]) for p in manifest["pairs"]] == (
        [("training", "reverse")] * 6 + [("regularization", "forward")] * 4 + [("regularization", "round trip")] * 3
    )
    made = manifest["pairs"][0]["made"][0]
    assert (made["instruction"], made["seed"], made["attempt"]) == ("replace the dog with a wolf", 7, 1)
    assert (made["text_scale"], made["image_scale"]) == (4.0, 2.0)
    assert made["gates"]["contrast"] > 0.03
    assert [len(p["made"]) for p in manifest["pairs"]] == [1] * 10 + [2] * 3
    for folder in ("training", "regularization"):
        with Image.open(tmp_path / "out" / f"{folder}-contact-sheet.png") as sheet:
            assert sheet.width > 8 * 128


def test_training_reads_what_was_made_with_a_class_word_of_two_words(tmp_path, photos):
    editor = FakeEditor()
    maker(tmp_path / "out", editor, class_word="golden retriever").run(whole_plan(photos))
    assert editor.calls[0][0] == "replace the golden retriever with a wolf"
    train = PersonalizedEdit(str(tmp_path / "out" / "training"), size=32, flip=0)
    assert len(train) == 6
    assert [train[i]["text"] for i in (0, 1)] == [
        "replace the wolf with a sks golden retriever",
        "replace the fox with a sks golden retriever",
    ]
    assert [pair.photo for pair in train.pairs] == [f"{name}.png" for name in "aabbcc"]
    apart = (train[0]["input"] - train[0]["edited"]).abs()
    assert apart[:, :, 0].max() < 0.02  # aligned: outside what was painted the two are one
    assert apart.max() > 0.2
    reg = PersonalizedEdit(str(tmp_path / "out" / "regularization"), reg=True, size=32)
    assert [reg[i]["text"] for i in (0, 1)] == [
        "replace the wolf with a golden retriever",
        "replace the fox with a golden retriever",
    ]


def test_a_photo_whose_ending_is_unusual_still_makes_a_pair(tmp_path):
    source = photo(tmp_path / "a.jfif", 1, format="JPEG")
    maker(tmp_path / "out").run(plan_instance([source], ["wolf"], 1, 0))
    (pair,) = find_pairs(tmp_path / "out" / "training")
    assert pair.edited.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_a_photo_of_a_format_that_training_does_not_read_becomes_a_png_and_the_note_says_so(tmp_path, direction):
    source = photo(tmp_path / "a.ppm", 1)
    plan = plan_instance([source], ["wolf"], 1, 0)
    if direction == "forward":
        plan = plan_regularization({"wolf": [source]}, 1, 0)
    (note,) = maker(tmp_path / "out").run(plan)["pairs"]
    (pair,) = find_pairs(tmp_path / "out" / plan[0].folder)
    taken = pair.edited if direction == "reverse" else pair.input
    assert taken.suffix == ".png"
    assert np.array_equal(pixels(taken), pixels(source))
    assert "PNG" in note["photo_saved_as"]


def test_batches_hold_pictures_of_one_size_and_change_nothing(tmp_path, photos):
    mixed = [*photos, photo(tmp_path / "photos" / "d.png", 4, (40, 40)), photo(tmp_path / "photos" / "e.png", 5)]
    made = {}
    for batch_size in (1, 2, 4):
        editor = FakeEditor(lambda text, seed, _: "destroyed" if seed in (8, 10) else "")
        maker(tmp_path / f"out{batch_size}", editor, batch_size=batch_size).run(whole_plan(mixed))
        assert editor.largest == batch_size
        made[batch_size] = files(tmp_path / f"out{batch_size}")
    assert made[1] == made[2] == made[4]


# Gates


@pytest.mark.parametrize(
    ("fault", "scales"),
    [
        ("unchanged", [(4.0, 2.0), (6.0, 2.0), (9.0, 2.0)]),
        ("destroyed", [(4.0, 2.0), (4.0, 3.0), (4.0, 4.5)]),
        ("blank", [(4.0, 2.0)] * 3),
    ],
)
def test_a_refused_picture_is_made_again_with_another_seed_and_scale(tmp_path, photos, fault, scales):
    editor = FakeEditor()
    editor.spoil = lambda *_: fault if len(editor.calls) < 3 else ""
    manifest = maker(tmp_path / "out", editor).run(plan_instance(photos[:1], ["wolf"], 1, 5))
    assert [call[2:] for call in editor.calls] == scales
    assert editor.seeds[0] == 5
    assert len(set(editor.seeds)) == 3
    made = manifest["pairs"][0]["made"][0]
    assert (made["attempt"], made["seed"], (made["text_scale"], made["image_scale"])) == (
        3,
        editor.seeds[2],
        scales[2],
    )
    expected = editor.painted(
        Image.open(photos[0]),
        made["instruction"],
        made["seed"],
        EditSettings(text_scale=scales[2][0], image_scale=scales[2][1]),
    )
    assert np.array_equal(pixels(listed(tmp_path / "out" / "training")["0_0.png"]), np.asarray(expected))


@pytest.mark.parametrize("fault", ["blank", "unchanged", "destroyed"])
def test_attempts_are_bounded_then_the_pair_is_set_aside_with_its_reason(tmp_path, photos, fault):
    editor = FakeEditor(lambda text, seed, _: fault if seed % 10_000_000 == 1 else "")
    manifest = maker(tmp_path / "out", editor, batch_size=2).run(plan_instance(photos, ["wolf"], 1, 0))
    assert len([seed for seed in editor.seeds if seed % 10_000_000 == 1]) == GATES.attempts
    assert len(editor.calls) == GATES.attempts + 2  # the others once each
    assert [(int(p["id"]), p["set_aside"]) for p in manifest["set_aside"]] == [(1, fault)]
    assert [int(p["id"]) for p in manifest["pairs"]] == [0, 2]
    assert [int(p.id) for p in find_pairs(tmp_path / "out" / "training")] == [0, 2]
    again = FakeEditor()
    assert maker(tmp_path / "out", again).run(plan_instance(photos, ["wolf"], 1, 0)) == manifest
    assert again.calls == []  # it stays set aside


def test_a_round_trip_that_fails_on_its_way_back_leaves_no_picture(tmp_path, photos):
    editor = FakeEditor(lambda text, *_: "destroyed" if "with a dog" in text else "")
    manifest = maker(tmp_path / "out", editor).run(plan_round_trips(photos, ["wolf"], 1, 0))
    assert [p["set_aside"] for p in manifest["set_aside"]] == ["destroyed"]
    assert [len(p["made"]) for p in manifest["set_aside"]] == [2]
    assert len(editor.calls) == 1 + GATES.attempts
    assert not list((tmp_path / "out").rglob("*_[01].*"))


def test_a_round_trip_that_fails_on_its_way_out_is_not_tried_back(tmp_path, photos):
    editor = FakeEditor(lambda text, *_: "blank" if "with a wolf" in text else "")
    manifest = maker(tmp_path / "out", editor, batch_size=3).run(plan_round_trips(photos, ["wolf", "fox"], 3, 0))
    assert [(int(p["id"]), p["set_aside"], len(p["made"])) for p in manifest["set_aside"]] == [
        (0, "blank", 1),
        (2, "blank", 1),
    ]
    assert [int(p["id"]) for p in manifest["pairs"]] == [1]
    assert "replace the wolf with a dog" not in {text for text, *_ in editor.calls}


def test_a_picture_that_is_not_finite_is_tried_again_and_stops_no_other(tmp_path, photos):
    def spoil(text, seed, settings):
        return "not finite" if seed % 10_000_000 == 1 or seed == 2 else ""

    plan, made = plan_instance(photos, ["wolf"], 1, 0), {}
    for batch_size in (1, 3):
        manifest = maker(tmp_path / f"out{batch_size}", FakeEditor(spoil), batch_size=batch_size).run(plan)
        assert [(int(p["id"]), p["set_aside"]) for p in manifest["set_aside"]] == [(1, "not finite")]
        assert [(int(p["id"]), p["made"][0]["attempt"]) for p in manifest["pairs"]] == [(0, 1), (2, 2)]
        made[batch_size] = files(tmp_path / f"out{batch_size}")
    assert made[1] == made[3]
    again = FakeEditor()
    assert maker(tmp_path / "out3", again).run(plan) == manifest
    assert again.calls == []  # it stays set aside


def test_a_round_trip_that_is_not_finite_on_its_way_back_is_set_aside(tmp_path, photos):
    editor = FakeEditor(lambda text, *_: "not finite" if "with a dog" in text else "")
    manifest = maker(tmp_path / "out", editor, batch_size=2).run(plan_round_trips(photos, ["wolf"], 2, 0))
    assert [p["set_aside"] for p in manifest["set_aside"]] == ["not finite"] * 2
    assert not list((tmp_path / "out").rglob("*_[01].*"))


def test_scales_never_grow_beyond_what_the_editor_takes(tmp_path, photos):
    editor = FakeEditor(lambda *_: "unchanged")
    gates = Gates(attempts=12, step=1.5)  # 4 * 1.5 ** 8 is above 100
    manifest = maker(tmp_path / "out", editor, gates=gates).run(plan_instance(photos[:1], ["wolf"], 1, 0))
    assert [p["set_aside"] for p in manifest["set_aside"]] == ["unchanged"]
    assert len(editor.calls) == 12
