"""Reverse editing: which pairs are made, how often one is tried, and that stopping or sharing changes no file.

The editor is a stand-in: it paints a quarter of the photo in a colour that tells instruction, seed and scales apart.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from ldm.data.images import small
from ldm.data.pairs import find_pairs
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.dataset_generation import generate as dataset_job
from ldm.dataset_generation.gates import Gates
from ldm.dataset_generation.maker import PairMaker
from ldm.dataset_generation.plan import (
    check_words,
    plan_edits,
    plan_instance,
    plan_regularization,
    plan_round_trips,
    plan_subject_edits,
    readable,
)
from ldm.dataset_generation.request import PairRequest
from ldm.dataset_generation.store import sheet_of
from ldm.errors import UserError
from ldm.inference.recipe import Provenance
from ldm.inference.settings import EditSettings
from ldm.models.build import ModelSource

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate_dataset.py"
SETTINGS = EditSettings(text_scale=4.0, image_scale=2.0, steps=5, resolution=64)
GATES = Gates(attempts=3, step=1.5)


class FakeEditor:
    """An editor without a model. spoil: (instruction, seed, settings) -> how the result is to fail, or ""."""

    def __init__(self, spoil=None, ckpt: str = "models/editor.ckpt", ckpt_hash: str = "0123abcd"):
        self.spoil = spoil or (lambda *_: "")
        self.provenance = Provenance(ckpt, ckpt_hash, weights="auto")
        self.calls, self.stop_at, self.largest = [], None, 0

    def edit(self, photos, instructions, settings, seeds):
        assert len(photos) == len(instructions) == len(seeds)
        assert len({photo.size for photo in photos}) == 1
        self.largest = max(self.largest, len(photos))
        if self.stop_at is not None and len(self.calls) + len(photos) > self.stop_at:
            raise KeyboardInterrupt
        scales = settings.text_scale, settings.image_scale
        self.calls += [(text, seed, *scales) for text, seed in zip(instructions, seeds, strict=True)]
        return [self.painted(*each, settings) for each in zip(photos, instructions, seeds, strict=True)]

    def painted(self, photo, instruction, seed, settings):
        fault = self.spoil(instruction, seed, settings)
        if fault == "blank":
            return Image.new("RGB", photo.size, (90, 120, 30))
        if fault == "unchanged":
            return photo.copy()
        if fault == "destroyed":
            return ImageOps.invert(photo)
        if fault == "not finite":
            raise FloatingPointError("the edit is not finite in fp16")
        told = repr((instruction, seed, settings.text_scale, settings.image_scale))
        edited, (w, h) = photo.copy(), photo.size
        ImageDraw.Draw(edited).rectangle(
            (w // 4, h // 4, 3 * w // 4 - 1, 3 * h // 4 - 1), tuple(hashlib.sha256(told.encode()).digest()[:3])
        )
        return edited

    @property
    def seeds(self) -> list[int]:
        return [seed for _, seed, _, _ in self.calls]


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(float)
    waves = [np.sin(x / 9 + seed), np.cos(y / 7 + 2 * seed), np.sin((x + y) / 11 + 3 * seed)]
    Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).round().astype(np.uint8)).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return [photo(tmp_path / "photos" / f"{name}.png", i) for i, name in enumerate("abc")]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def listed(folder: Path) -> dict[str, Path]:
    """Pictures by their names, whatever the width of the numbers: "0_1.png" also for 0000_1.png."""
    return {f"{int(p.name.split('_')[0])}_{p.name.split('_')[1]}": p for p in sorted(folder.iterdir())}


def maker(output: Path, editor: FakeEditor | None = None, **options) -> PairMaker:
    given = {"class_word": "dog", "settings": SETTINGS, "gates": GATES, **options}
    return PairMaker(editor or FakeEditor(), output=output, **given)


def whole_plan(photos: list[Path]) -> list:
    """Six instance pairs, four forward, three round trips."""
    both = plan_regularization({"wolf": photos[:2], "fox": photos[2:]}, 4, 7)
    trips = [p for p in plan_round_trips(photos, ["wolf"], 7, 7) if int(p.id) >= 4]
    return plan_instance(photos, ["wolf", "fox"], 1, 7) + both + trips


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


# Stopping, going on, sharing


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("stop_at", [0, 1, 5, 11, 15])
def test_stopped_and_started_again_gives_the_same_files(tmp_path, photos, stop_at, batch_size):
    def spoil(text, seed, settings):
        return "blank" if seed in (8, 100_008) else ""

    unbroken, plan = FakeEditor(spoil), whole_plan(photos)
    maker(tmp_path / "whole", unbroken, batch_size=batch_size).run(plan)
    first, second = FakeEditor(spoil), FakeEditor(spoil)
    first.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        maker(tmp_path / "parts", first, batch_size=batch_size).run(plan)
    assert not (tmp_path / "parts" / "manifest.json").exists()
    assert not list((tmp_path / "parts").rglob("*.tmp"))
    told = []
    manifest = maker(tmp_path / "parts", second, batch_size=batch_size).run(plan, progress=told.append)
    assert manifest is not None
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert sum(told) == len(plan)
    if batch_size == 1:  # at most the pair that was under way (a round trip of two, tried again) is made anew
        assert len(unbroken.calls) <= len(first.calls) + len(second.calls) <= len(unbroken.calls) + 2
    else:
        assert len(second.calls) <= len(unbroken.calls)


def test_what_is_finished_is_not_made_again(tmp_path, photos):
    plan = whole_plan(photos)
    maker(tmp_path / "out").run(plan)
    before, again, told = files(tmp_path / "out"), FakeEditor(), []
    assert maker(tmp_path / "out", again).run(plan, progress=told.append) is not None
    assert again.calls == []
    assert told == [len(plan)]
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("sides", ["0", "1", "01"])
def test_a_pair_whose_picture_was_deleted_is_made_anew(tmp_path, photos, sides, caplog):
    plan = whole_plan(photos)
    maker(tmp_path / "out").run(plan)
    before = files(tmp_path / "out")
    for pair in (plan[1], plan[-1]):  # an instance pair and a round trip
        for side in sides:
            (tmp_path / "out" / pair.folder / f"{pair.id}_{side}.png").unlink()
    editor = FakeEditor()
    with caplog.at_level("INFO"):
        manifest = maker(tmp_path / "out", editor).run(plan)
    assert len(editor.calls) == 3
    assert files(tmp_path / "out") == before
    assert len(manifest["pairs"]) == len(plan)
    assert f"{plan[1].id}, {plan[-1].id} is gone" in caplog.text


def test_a_sheet_has_a_hole_where_a_picture_is_gone(tmp_path, photos):
    manifest = maker(tmp_path / "out").run(plan_instance(photos, ["wolf"], 1, 0))
    whole = sheet_of(tmp_path / "out", manifest["pairs"])
    (tmp_path / "out" / "training" / "0001_0.png").unlink()
    assert sheet_of(tmp_path / "out", manifest["pairs"]).size == whole.size


@pytest.mark.parametrize("stop_at", range(1, 10, 2))
def test_a_stop_while_a_file_is_written_leaves_whole_files_only(tmp_path, photos, monkeypatch, stop_at):
    """The n-th writing breaks off half-way: a full disk. Afterwards the run goes on to the same files."""
    plan = plan_instance(photos, ["wolf"], 1, 0)
    maker(tmp_path / "whole").run(plan)
    worker = maker(tmp_path / "parts")
    real, writes = os.replace, []

    def full(source, target):
        writes.append(target)
        if len(writes) == stop_at:
            with open(source, "r+b") as half:
                half.truncate(10)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises((OSError, ValueError), match="No space left"):
            worker.run(plan)
    whole, parts = files(tmp_path / "whole"), files(tmp_path / "parts")
    assert len(parts) < len(whole)
    assert parts.items() <= whole.items()  # each file that is there is whole, and none has another name
    maker(tmp_path / "parts").run(plan)
    assert files(tmp_path / "parts") == whole


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path, photos, monkeypatch):
    def half(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:50])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", half)
        with pytest.raises(KeyboardInterrupt):
            maker(tmp_path / "out").run(plan_instance(photos, ["wolf"], 1, 0))
    assert not list((tmp_path / "out" / "training").iterdir())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_processes_share_without_overlap_and_give_the_files_of_one(tmp_path, photos, order):
    plan = whole_plan(photos)
    one, editors = FakeEditor(), [FakeEditor(), FakeEditor()]
    alone = maker(tmp_path / "one", one).run(plan)
    makers = [maker(tmp_path / "two", editor) for editor in editors]
    told, results = [], []
    for rank in order:
        results.append(makers[rank].run(plan, rank, 2, told.append))
    assert results == [None, alone]  # the last one writes the manifest
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert sorted(editors[0].calls + editors[1].calls) == sorted(one.calls)
    assert not set(editors[0].calls) & set(editors[1].calls)
    assert sum(told) == len(plan)
    assert min(len(editor.calls) for editor in editors) >= 6


def test_more_processes_than_pairs_are_no_trouble(tmp_path, photos):
    plan = plan_instance(photos[:2], ["wolf"], 1, 0)
    results = [maker(tmp_path / "out").run(plan, rank, 3) for rank in range(3)]
    assert results[0] is None
    assert results[1] == results[2]
    assert len(results[1]["pairs"]) == 2


# Folders that hold something else


def other_weights(editor: FakeEditor) -> FakeEditor:
    editor.weights = "raw"
    return editor


def other_first_stage(editor: FakeEditor) -> FakeEditor:
    editor.vae_hash = "beef"
    return editor


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"editor": FakeEditor(ckpt_hash="ffff")}, "checkpoint_hash"),
        ({"editor": FakeEditor(ckpt="other.ckpt")}, "checkpoint"),
        ({"class_word": "cat"}, "class_word"),
        ({"settings": EditSettings(text_scale=5.0, image_scale=2.0, steps=5, resolution=64)}, "settings"),
        ({"gates": Gates(attempts=2)}, "gates"),
        ({"editor": other_weights(FakeEditor())}, "weights"),
        ({"editor": other_first_stage(FakeEditor())}, "vae"),
        ({"source_edits": ["remove the collar"]}, "source_edits"),
    ],
    ids=["hash", "checkpoint", "class", "settings", "gates", "ema-or-raw", "first-stage", "source-edits"],
)
def test_pairs_made_in_another_way_are_not_mixed(tmp_path, photos, changes, said):
    maker(tmp_path / "out").run(plan_instance(photos, ["wolf"], 1, 0))
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match=said) as caught:
        maker(tmp_path / "out", **changes)
    assert str(tmp_path / "out") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(tmp_path / "out") == before


def test_pairs_begun_with_a_clip_do_not_go_on_without(tmp_path, photos):
    maker(tmp_path / "out", clip=Doubtful()).run(plan_instance(photos, ["wolf"], 1, 0))
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match="made with another clip"):
        maker(tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_what_an_older_note_does_not_say_counts_as_nothing(tmp_path, photos):
    plan = plan_instance(photos, ["wolf"], 1, 0)
    maker(tmp_path / "out").run(plan)
    path = tmp_path / "out" / ".progress" / "settings.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "vae_hash"}))
    again = FakeEditor()
    maker(tmp_path / "out", again).run(plan)
    assert again.calls == []


def test_pairs_of_another_origin_are_not_touched(tmp_path, photos):
    photo(tmp_path / "out" / "training" / "0_0.png")
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match="not made here"):
        maker(tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_other_photos_words_or_seeds_in_the_same_folder_are_refused(tmp_path, photos):
    maker(tmp_path / "out").run(plan_instance(photos, ["wolf"], 1, 0))
    before = files(tmp_path / "out")
    plans = [plan_instance(photos, ["fox"], 1, 0), plan_instance(photos, ["wolf"], 1, 50)]
    for plan in [*plans, plan_instance(photos[::-1], ["wolf"], 1, 0)]:
        with pytest.raises(ValueError, match="begun from other photos"):
            maker(tmp_path / "out").run(plan)
    photo(photos[1], 77)  # the same name, another picture
    with pytest.raises(ValueError, match=r"pair 0*1 of training"):
        maker(tmp_path / "out").run(plan_instance(photos, ["wolf"], 1, 0))
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(("first", "then"), [(4, 7), (8, 12), (95, 105)])
def test_asking_for_more_pairs_goes_on_from_those_that_are_there(tmp_path, photos, first, then):
    maker(tmp_path / "out").run(plan_regularization({"wolf": photos}, first, 0))
    editor = FakeEditor()
    manifest = maker(tmp_path / "out", editor).run(plan_regularization({"wolf": photos}, then, 0))
    found = find_pairs(tmp_path / "out" / "regularization")
    assert [pair.id for pair in found] == [entry["id"] for entry in manifest["pairs"]]
    assert len(found) == then
    assert len(editor.calls) == then - first


def test_asking_for_fewer_pairs_leaves_none_that_the_manifest_does_not_know(tmp_path, photos):
    """Either it is refused, or the others are gone: training would find pairs without words."""
    plan, out = plan_regularization({"wolf": photos}, 8, 0), tmp_path / "out"
    manifest = maker(out).run(plan)
    with contextlib.suppress(ValueError):
        manifest = maker(out).run(plan[:5])
    known = [entry["id"] for entry in json.loads((out / "manifest.json").read_text())["pairs"]]
    assert [entry["id"] for entry in manifest["pairs"]] == known
    assert [pair.id for pair in find_pairs(out / "regularization")] == known


# Where this process stands


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "3"}, (1, 3)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (2, 4)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 2)),
        ({"SLURM_NTASKS": "4"}, (0, 1)),
    ],
)
def test_torchrun_and_slurm_say_which_share_is_ours(monkeypatch, variables, place):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert dataset_job.process_place() == place


def test_a_place_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK=2"):
        dataset_job.process_place()


# The command line


@pytest.fixture
def generate(monkeypatch, capsys, caplog, tmp_path):
    """Run the command line in this process with a stand-in for the editor: (exit code, printed, said)."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object, editor: FakeEditor | None = None, **changes: object) -> tuple[int, str, str]:
        loading = SimpleNamespace(from_checkpoint=lambda *_, **__: editor or FakeEditor())
        monkeypatch.setattr(dataset_job, "ImageEditor", loading)
        monkeypatch.setattr(dataset_job, "read_checkpoint", lambda path: SimpleNamespace(metadata={}))
        given = {"photos": tmp_path / "photos", "class-word": "dog", "source-words": "wolf", "output": tmp_path / "out"}
        given |= {"ckpt": "editor.ckpt", "num-reg": 2, "resolution": 64, **changes}
        words = [str(w) for name, value in given.items() if value is not None for w in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, *map(str, arguments)])
        loggers = {n: x.level for n, x in logging.root.manager.loggerDict.items() if hasattr(x, "level")}
        caplog.clear()
        try:
            with caplog.at_level("INFO"), pytest.raises(SystemExit) as left:
                runpy.run_path(str(SCRIPT), run_name="__main__")
        finally:
            for name, level in loggers.items():
                logging.getLogger(name).setLevel(level)
        out, err = capsys.readouterr()
        assert not list(tmp_path.rglob("*.tmp")), "something half-written was left"
        assert "Traceback" not in err
        return left.value.code, out, err + caplog.text

    return run


def test_the_command_makes_a_dataset_of_the_good_pictures(generate, tmp_path, photos):
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    code, out, said = generate("--seed", 4, "--cfg-text", 3, "--steps", 9)
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert "broken.png" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [(p["folder"], p["photo"]) for p in manifest["pairs"]] == [
        *(("training", f"{name}.png") for name in "abc"),
        *(("regularization", f"{name}.png") for name in "ab"),
    ]
    assert manifest["pairs"][0]["seed"] == 4
    assert {name: manifest["settings"][name] for name in ("text_scale", "image_scale", "steps", "resolution")} == {
        "text_scale": 3.0,
        "image_scale": 1.5,
        "steps": 9,
        "resolution": 64,
    }


def test_regularization_pictures_are_told_for_each_source_word(generate, tmp_path, photos):
    photo(tmp_path / "wolves" / "w.png", 5)
    photo(tmp_path / "foxes" / "f.png", 6)
    reg = ["--reg-photos", f"wolf={tmp_path / 'wolves'}", f"red fox={tmp_path / 'foxes'}"]
    code, _, _ = generate("--source-words", "wolf", "red fox", *reg, **{"source-words": None, "num-reg": 4})
    assert code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    reg = [(p["source_word"], p["photo"], p["direction"]) for p in manifest["pairs"] if p["folder"] != "training"]
    assert reg == [("wolf", "w.png", "forward"), ("red fox", "f.png", "forward")] * 2
    assert len(manifest["pairs"]) == 6 + 4


def test_source_words_without_a_folder_get_round_trips_and_a_word_is_said(generate, tmp_path, photos):
    photo(tmp_path / "wolves" / "w.png", 5)
    photo(tmp_path / "dogs" / "d.png", 6)
    reg = ["--source-words", "wolf", "fox", "--reg-photos", f"wolf={tmp_path / 'wolves'}"]
    code, _, said = generate(*reg, **{"source-words": None, "num-reg": 5, "class-photos": tmp_path / "dogs"})
    assert code == 0
    assert said.count("no --reg-photos of fox") == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    reg = [(p["source_word"], p["photo"], p["direction"]) for p in manifest["pairs"] if p["folder"] != "training"]
    assert reg == ([("wolf", "w.png", "forward"), ("fox", "d.png", "round trip")] * 3)[:5]


def test_two_processes_by_the_command_write_one_manifest(generate, tmp_path, photos, monkeypatch):
    seen = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        code, _, said = generate()
        seen.append((code, "share is done" in said, (tmp_path / "out" / "manifest.json").exists()))
    assert seen == [(0, True, False), (0, False, True)]


def test_pairs_set_aside_are_told_and_none_at_all_is_an_error(generate, tmp_path, photos):
    code, _, said = generate(editor=FakeEditor(lambda text, seed, _: "blank" if seed % 10_000_000 == 1 else ""))
    assert code == 0
    assert "1 of training (b.png) was set aside: blank" in said
    shutil.rmtree(tmp_path / "out")
    code, _, said = generate(editor=FakeEditor(lambda *_: "unchanged"))
    assert code == 2
    assert "no instance pair passed the gates (unchanged)" in said
    shutil.rmtree(tmp_path / "out")
    code, _, said = generate(editor=FakeEditor(lambda *_: "not finite"))
    assert code == 2
    assert "(not finite); try --precision fp32" in said


def test_one_photo_is_enough_but_a_word_is_said_about_it(generate, tmp_path):
    photo(tmp_path / "photos" / "a.png")
    code, _, said = generate("--source-words", "wolf", "fox", "cat", **{"source-words": None, "num-reg": 0})
    assert code == 0
    assert "1 photo(s)" in said
    assert "3 source words for 1 photos" in said
    assert len(find_pairs(tmp_path / "out" / "training")) == 3
    assert not (tmp_path / "out" / "regularization").exists()


WRONG = {
    "no folder": ({"photos": "gone"}, "gone"),
    "empty folder": ({"photos": "hollow"}, "hollow"),
    "only texts": ({"photos": "texts"}, "texts"),
    "only broken pictures": ({"photos": "broken"}, "none of the 1 pictures"),
    "source word is the class word": ({"source-words": "Dog"}, "is the class word"),
    "empty class word": ({"class-word": " "}, "class word is empty"),
    "empty source edit": ({"source-edits": " "}, "source edit ' '"),
    "field in a source edit": ({"source-edits": "take the {thing} off"}, "no other field than {word}"),
    "negative number": ({"num-reg": -1}, "--num-reg is -1"),
    "no batch": ({"batch-size": 0}, "--batch-size is 0"),
    "no pair per photo": ({"per-photo": 0}, "--per-photo is 0"),
    "negative seed": ({"seed": -1}, "seed"),
    "seed too large": ({"seed": 2**63}, "seed"),
    "other word": ({"reg-photos": "fox=photos"}, "fox"),
    "empty pictures": ({"reg-photos": "wolf=hollow"}, "hollow"),
    "class photos for no word": (
        {"reg-photos": "wolf=photos", "class-photos": "photos"},
        "--class-photos has no effect",
    ),
    "class photos for no pair": ({"num-reg": 0, "class-photos": "photos"}, "--class-photos has"),
    "sampler": ({"sampler": "eulr"}, "eulr"),
    "scale": ({"cfg-text": -1}, "text_scale is -1"),
    "no config": ({"config": "gone.yaml"}, "gone.yaml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(generate, tmp_path, photos, name, monkeypatch):
    changes, said = WRONG[name]
    (tmp_path / "hollow").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    code, out, err = generate(**changes)
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("gates: {blanc: 0.1}", "gates.blanc"),
        ("settings: {step: 3}", "settings.step"),
        ("gate: {blank: 0.1}", "gate"),
        ("gates: {unchanged: 0.5, destroyed: 0.1}", "destroyed"),
        ("gates: {attempts: many}", "attempts"),
        ("gates: 3", "gates"),
        ("settings: {steps: many}", "steps"),
        ("settings: {guidance_interval: 5}", "guidance_interval is 5; two noise levels"),
        ("settings: {guidance_interval: [1, many]}", "guidance_interval"),
        ("settings: {guidance_interval: [5, 1]}", "needs 0 <= low < high"),
    ],
)
def test_a_slip_in_the_config_is_told_in_one_line(generate, tmp_path, photos, config, said):
    (tmp_path / "pairs.yaml").write_text(config)
    code, out, err = generate(config=tmp_path / "pairs.yaml")
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_the_config_sets_gates_and_settings_and_the_command_line_wins(tmp_path):
    (tmp_path / "pairs.yaml").write_text("settings: {text_scale: 3.0, steps: 7}\ngates: {attempts: 9, blank: 0.01}")
    request = PairRequest(
        ModelSource("no.ckpt"), ("a.png",), "dog", ("wolf",), tmp_path, tmp_path / "pairs.yaml", settings={"steps": 5}
    )
    settings, gates = request.how({"edit_defaults": {"text_scale": 2.0, "image_scale": 1.2}})
    assert (settings.text_scale, settings.image_scale, settings.steps) == (3.0, 1.2, 5)
    assert gates == Gates(attempts=9, blank=0.01)
    for told, interval in (("[0.5, 9]", (0.5, 9.0)), ("null", None)):
        (tmp_path / "pairs.yaml").write_text(f"settings: {{guidance_interval: {told}}}")
        assert request.how({})[0].guidance_interval == interval


def test_without_a_class_word_the_command_says_which_option_is_missing(generate, photos):
    code, _, err = generate(**{"class-word": None})
    assert code == 2
    assert "--class-word is needed" in err


class Doubtful:
    """A CLIP that believes in pictures, but never in what was asked."""

    name = "folder/doubtful"

    def images(self, images):
        return torch.tensor([[1.0, 0.0], [0.8, 0.6]])

    def texts(self, texts):
        self.asked = [*getattr(self, "asked", []), texts]
        return torch.tensor([[0.0, 1.0], [0.0, 0.0]])


def test_a_clip_judges_every_pair_by_its_own_words_and_is_noted(tmp_path, photos):
    clip = Doubtful()
    manifest = maker(tmp_path / "out", clip=clip).run(whole_plan(photos))
    assert manifest["clip"] == "doubtful"
    assert manifest["pairs"] == []
    assert {note["set_aside"] for note in manifest["set_aside"]} == {"not what was asked (CLIP)"}
    assert ["a photo of a dog", "a photo of a wolf"] in clip.asked  # reverse
    assert ["a photo of a wolf", "a photo of a dog"] in clip.asked  # forward
    with pytest.raises(ValueError, match="made with another"):
        maker(tmp_path / "out", clip=SimpleNamespace(name="other"))


def test_a_clip_that_is_not_there_is_one_line(generate, tmp_path, photos):
    code, _, said = generate(clip=tmp_path / "nothing")
    assert code == 2
    assert "cannot be loaded" in said


# Pairs that keep other edits what they were


def test_other_edits_take_the_sentences_in_turn_over_all_pictures(photos):
    texts = ["make the {word} red", "make it night"]
    plan = plan_edits({"wolf": photos[:2], "fox": photos[2:]}, texts, 16, 7)
    assert len({p.id for p in plan}) == 16
    assert [p.instruction for p in plan[1::2]] == ["make it night"] * 8
    assert {(p.instruction, p.photo.stem) for p in plan[::2]} == {
        ("make the wolf red", "a"),
        ("make the wolf red", "b"),
        ("make the fox red", "c"),
    }
    assert {(p.folder, p.direction) for p in plan} == {("regularization", "edit")}
    many = plan_edits({"wolf": photos * 20, "fox": photos * 20}, texts, 20, 7)
    assert [sum(p.source_word == word for p in many) for word in ("wolf", "fox")] == [10, 10]
    others = plan_regularization({"wolf": photos}, 30, 7) + plan_instance(photos, ["wolf"], 5, 7)
    assert not {p.seed for p in plan} & {p.seed for p in others}


@pytest.mark.parametrize("text", ["", "  ", "make the {animal} red", "make it {"])
def test_another_edit_that_says_nothing(photos, text):
    with pytest.raises(ValueError, match="regularization edit"):
        plan_edits({"wolf": photos}, ["make it night", text], 4, 0)


def test_other_edits_are_made_and_trained_with_their_own_sentences(generate, tmp_path, photos):
    photo(tmp_path / "wolves" / "w.png", 5)
    edits = ["--reg-photos", f"wolf={tmp_path / 'wolves'}", "--reg-edits", "make the {word} red", "make it night"]
    code, _, _ = generate(*edits, **{"num-reg": 2, "num-reg-edits": 4})
    assert code == 0
    reg = tmp_path / "out" / "regularization"
    data = PersonalizedEdit(str(reg), reg=True, size=16)
    said = ["replace the wolf with a dog"] * 2 + ["make the wolf red", "make it night"] * 2
    assert [data.item(i)["text"] for i in range(6)] == said
    assert (reg / "edit-0000_0.png").read_bytes() == (tmp_path / "wolves" / "w.png").read_bytes()
    again = files(tmp_path / "out")
    code, _, _ = generate(*edits, **{"num-reg": 2, "num-reg-edits": 4})
    assert (code, files(tmp_path / "out")) == (0, again)
    code, _, _ = generate(*edits, **{"num-reg": 4, "num-reg-edits": 4})  # more swaps: the rest stays
    assert code == 0
    now = files(tmp_path / "out" / "regularization")
    assert len(now) == 2 * 8
    assert all(now[name] == content for name, content in files(reg).items())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source_words"] == ["wolf"]
    code, _, said = generate("--reg-edits", "make it day", edits[0], edits[1], **{"num-reg": 4, "num-reg-edits": 4})
    assert code == 2
    assert "sentences" in said


def test_other_edits_may_change_the_background_but_must_change_something(tmp_path, photos):
    """A result that a class swap could not have is kept; an unchanged one is made again."""
    plan = plan_edits({"wolf": photos}, ["make it night"], 2, 0)
    notes = {}
    for fault in ("destroyed", "unchanged"):
        made = maker(tmp_path / fault, FakeEditor(lambda *_, fault=fault: fault))
        notes[fault] = made.run(plan)
    assert len(notes["destroyed"]["pairs"]) == 2
    assert [note["set_aside"] for note in notes["unchanged"]["set_aside"]] == ["unchanged"] * 2


def test_a_number_of_other_edits_without_sentences(generate):
    code, _, said = generate(**{"num-reg-edits": 4})
    assert code == 2
    assert "--num-reg-edits needs --reg-edits" in said


# Pairs that ask for other edits of the subject by its name


def test_edits_of_the_subject_take_the_sentences_in_turn_over_all_photos(photos):
    texts = ["make the {word} red", "put the {word}  in the forest"]
    plan = plan_subject_edits(photos, "dog", texts, 6, 7)
    assert [p.instruction for p in plan[:2]] == [
        "make the {identifier} dog red",
        "put the {identifier} dog in the forest",
    ]
    assert [p.said for p in plan[:2]] == ["make the dog red", "put the dog in the forest"]
    assert {(p.said[0], p.photo.stem) for p in plan} == {(text, name) for text in "mp" for name in "abc"}
    assert {(p.folder, p.direction, p.source_word) for p in plan} == {("training", "edit", "dog")}
    others = plan_instance(photos, ["wolf"], 5, 7) + plan_edits({"wolf": photos}, ["make it night"], 20, 7)
    assert not {p.seed for p in plan} & {p.seed for p in others}
    assert not {(p.folder, p.id) for p in plan} & {(p.folder, p.id) for p in others}


@pytest.mark.parametrize("text", ["", "make it night", "make the {word} {colour}", "make the {word} red }"])
def test_an_edit_of_the_subject_without_its_name_is_refused(photos, text):
    with pytest.raises(ValueError, match="subject edit"):
        plan_subject_edits(photos, "dog", ["make the {word} red", text], 4, 0)


def test_edits_of_the_subject_are_made_without_and_trained_with_the_identifier(generate, tmp_path, photos):
    editor = FakeEditor()
    edits = ["--subject-edits", "make the {word} red", "put the {word} in the forest"]
    code, _, _ = generate(*edits, editor=editor, **{"num-reg": 1, "num-subject-edits": 4})
    assert code == 0
    training = tmp_path / "out" / "training"
    data = PersonalizedEdit(str(training), "zwx", size=16)
    said = ["make the zwx dog red", "put the zwx dog in the forest"] * 2
    assert [data.item(i)["text"] for i in range(7)] == ["replace the wolf with a zwx dog"] * 3 + said
    assert (training / "edit-0000_0.png").read_bytes() == (tmp_path / "photos" / "a.png").read_bytes()
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())["pairs"]
    asked = [record["instruction"] for pair in made if pair["direction"] == "edit" for record in pair["made"]]
    assert asked == ["make the dog red", "put the dog in the forest"] * 2
    again = files(tmp_path / "out")
    code, _, _ = generate(*edits, **{"num-reg": 1, "num-subject-edits": 4})
    assert (code, files(tmp_path / "out")) == (0, again)


def test_ten_edits_of_the_subject_for_each_sentence_unless_a_number_is_given(generate, tmp_path, photos):
    code, _, _ = generate("--subject-edits", "make the {word} red", **{"num-reg": 0})
    assert code == 0
    assert len(list((tmp_path / "out" / "training").glob("edit-*_1.png"))) == 10
    code, _, said = generate(**{"num-subject-edits": 4})
    assert code == 2
    assert "--num-subject-edits needs --subject-edits" in said


def test_edits_of_the_subject_do_not_stand_for_pairs_that_show_it(generate, tmp_path, photos):
    refused = FakeEditor(lambda text, *_: "unchanged" if text.startswith("replace") else "")
    code, _, said = generate("--subject-edits", "make the {word} red", editor=refused)
    assert code == 2
    assert "no instance pair passed the gates (unchanged)" in said
