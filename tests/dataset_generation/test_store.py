"""Stopping, going on and sharing change no file, and what was made in another way is not mixed."""

import contextlib
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ldm.data.pairs import find_pairs
from ldm.dataset_generation.gates import Gates
from ldm.dataset_generation.plan import (
    plan_instance,
    plan_regularization,
)
from ldm.dataset_generation.store import sheet_of
from ldm.inference.settings import EditSettings
from tests.dataset_generation.stand_ins import (
    Doubtful,
    FakeEditor,
    files,
    maker,
    photo,
    whole_plan,
)

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
    editor.provenance = replace(editor.provenance, weights="raw")
    return editor


def other_first_stage(editor: FakeEditor) -> FakeEditor:
    editor.provenance = replace(editor.provenance, vae_hash="beef")
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
    with pytest.raises(ValueError, match="begun with other clip"):
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
