"""Editing jobs: what is refused before any work, and what goes on beside a photo that fails."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.data.images import find_photos
from ldm.inference.edit_job import run_job
from ldm.inference.settings import EditSettings
from tests.inference.photos import FAST, leftovers, photo, picture, pixels, rectangle
from tests.inference.planning import planned

# What is edited and where results go


def test_files_folders_and_globs_are_found_once_and_sorted(tmp_path):
    for name in ("b.png", "a.jpg", "C.PNG", "deep/d.webp", "deep/e.png"):
        photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "_[x].png").write_bytes((tmp_path / "b.png").read_bytes())

    def found(*patterns: str) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in find_photos([f"{tmp_path}/{p}" for p in patterns])]

    assert found("b.png") == ["b.png"]
    assert found("") == ["C.PNG", "_[x].png", "a.jpg", "b.png"]
    assert found("deep", "b.png") == ["deep/d.webp", "deep/e.png", "b.png"]
    assert found("*.png", "b.png") == ["_[x].png", "b.png"]
    assert found("**/*.png") == ["_[x].png", "b.png", "deep/e.png"]
    assert found("_[x].png") == ["_[x].png"]  # a name with a glob's letters in it
    for pattern, said in (("gone.png", "there is no picture"), ("*.gif", "no picture matches")):
        with pytest.raises(FileNotFoundError, match=said):
            find_photos([f"{tmp_path}/{pattern}"])
    (tmp_path / "hollow").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        find_photos([str(tmp_path / "hollow")])
    with pytest.raises(FileNotFoundError, match="no picture matches"):  # it matches a folder
        find_photos([f"{tmp_path}/hol*"])


def test_a_folder_with_a_pictures_name_is_no_picture(tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "thumbnails.png").mkdir()
    assert [p.name for p in find_photos([str(tmp_path)])] == ["a.png"]


def test_every_photo_every_edit_every_seed(tmp_path, editor):
    photo(tmp_path / "in" / "a.png", seed=1)
    photo(tmp_path / "in" / "b.jpg", seed=2)
    job = planned(
        [str(tmp_path / "in")], ["make it night", "Add a hat!"], str(tmp_path / "out"), FAST, 5, num_samples=2
    )
    assert len(job.tasks) == 8
    assert not (tmp_path / "out").exists()  # planning writes nothing
    written, failed = run_job(editor, job)
    assert failed == 0
    expected = {f"{p}-{e}-{s}.png" for p in "ab" for e in ("make-it-night", "add-a-hat") for s in (5, 6)}
    assert {p.name for p in written} == {p.name for p in (tmp_path / "out").iterdir()} == expected
    shown = [pixels(p) for p in sorted(written)]
    assert all(a.shape == (37, 50, 3) for a in shown)
    assert len({a.tobytes() for a in shown}) == 8  # photo, instruction and seed each change the result
    assert leftovers(tmp_path) == []


def test_one_result_goes_to_a_file_or_into_a_folder(tmp_path, editor):
    source = photo(tmp_path / "a.png")
    (tmp_path / "there.png").mkdir()
    for output, expected in (
        ("x.png", "x.png"),
        ("deep/er/x.png", "deep/er/x.png"),
        ("x.jpg", "x.jpg"),
        ("folder", "folder/a-go-1.png"),
        ("there.png", "there.png/a-go-1.png"),
        ("dotted.name/", "dotted.name/a-go-1.png"),
    ):
        job = planned([str(source)], ["go"], f"{tmp_path}/{output}", FAST, 1)
        assert [t.output for t in job.tasks] == [tmp_path / expected]
    written, _ = run_job(editor, planned([str(source)], ["go"], str(tmp_path / "x.jpg"), FAST, 1))
    assert written == [tmp_path / "x.jpg"]
    assert pixels(written[0]).shape == (37, 50, 3)


def test_photos_of_one_stem_keep_their_results_apart(tmp_path):
    photo(tmp_path / "a.png")
    photo(tmp_path / "a.jpg")
    job = planned([str(tmp_path)], ["go"], str(tmp_path / "out"), FAST, 1)
    assert [t.output.name for t in job.tasks] == ["a-jpg-go-1.png", "a-png-go-1.png"]
    photo(tmp_path / "other" / "a.png")
    with pytest.raises(ValueError, match="same name"):
        planned([str(tmp_path), str(tmp_path / "other")], ["go"], str(tmp_path / "out"), FAST, 1)


@pytest.mark.parametrize(
    "edits",
    [
        ["make it night", "Make it night!"],
        ["夜にする", "雪を降らせる"],
        [
            "turn the wolf that stands in the meadow into a sks dog",
            "turn the wolf that stands in the meadow into a sks cat",
        ],
    ],
)
def test_edits_whose_names_look_alike_are_all_done(tmp_path, edits):
    source = photo(tmp_path / "a.png")
    job = planned([str(source)], edits, str(tmp_path / "out"), FAST, 1)
    assert len({t.output for t in job.tasks}) == 2
    assert [t.instruction for t in job.tasks] == edits


WRONG_PLANS = {
    "empty instruction": ({"edits": [""]}, "instruction is empty"),
    "blank instruction": ({"edits": ["make it night", "  \n"]}, "instruction is empty"),
    "no samples": ({"num_samples": 0}, "at least 1"),
    "no batch": ({"batch_size": 0}, "at least 1"),
    "negative seed": ({"seed": -1}, "seed"),
    "seed too large": ({"seed": 2**63}, "seed"),
    "several into one file": ({"num_samples": 2, "output": "x.png"}, "2 results do not fit into the one file"),
    "no picture's ending": ({"output": "x.doc"}, r"\.png"),
    "a format only for reading": ({"output": "x.psd"}, r"\.png"),
    "over the photo": ({"output": "a.png"}, "overwrite"),
    "over the photo, another way": ({"output": "deep/../a.png"}, "overwrite"),
    "over the photo, by a link": ({"output": "link.png"}, "overwrite"),
    "over the mask": ({"output": "mask.png", "mask": "mask.png"}, "overwrite"),
    "over the photo, by the sheet of scales": (
        {"output": "a-scales.png", "auto": True, "source": "a-scales-scales.png"},
        "overwrite",
    ),
    "over the mask, by the sheet of scales": ({"output": "go.png", "auto": True, "mask": "go-scales.png"}, "overwrite"),
    "no output": ({"output": None}, "--output is an empty name"),
    "no mask": ({"mask": None}, "--mask is an empty name"),
    "no input": ({"source": None}, "--input has an empty name"),
    "absent mask": ({"mask": "gone.png"}, "gone.png"),
    "below a file": ({"output": "a.png/x.png"}, "cannot write"),
    "no steps": ({"steps": 0}, "steps is 0"),
    "negative steps": ({"steps": -3}, "steps is -3"),
    "sampler": ({"sampler": "eulr"}, "eulr"),
    "spacing": ({"spacing": "even"}, "even"),
    "resolution": ({"resolution": 8}, "resolution is 8"),
    "text scale": ({"text_scale": -1.0}, "text_scale"),
    "image scale": ({"image_scale": float("nan")}, "image_scale"),
    "interval": ({"guidance_interval": (5.0, 1.0)}, "interval"),
    "sweep": ({"sweep": ([5.0, 1000.0], [1.5])}, "text_scale is 1000"),
    "mask into a JPEG": ({"output": "x.jpg", "mask": "mask.png"}, "bit for bit"),
    "mask into a WebP": ({"output": "x.webp", "mask": "mask.png"}, "bit for bit"),
}


@pytest.mark.parametrize("name", WRONG_PLANS)
def test_wrong_jobs_are_refused_before_any_work(tmp_path, name):
    changes, said = WRONG_PLANS[name]
    source = photo(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(source)
    rectangle(50, 37, (0, 0, 9, 9)).save(tmp_path / "mask.png")
    (tmp_path / "deep").mkdir()
    for other in ("a-scales-scales.png", "go-scales.png"):
        photo(tmp_path / other)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    own = {k: v for k, v in changes.items() if k in EditSettings.__dataclass_fields__}

    def placed(name):
        return str(tmp_path / name) if name else ""

    mask = placed(changes["mask"]) if "mask" in changes else None
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        planned(
            [placed(changes.get("source", "a.png"))],
            changes.get("edits", ["go"]),
            placed(changes.get("output", "out")),
            replace(FAST, **own),
            changes.get("seed", 1),
            changes.get("num_samples", 1),
            changes.get("sweep"),
            mask,
            changes.get("batch_size", 1),
            changes.get("auto", False),
        )
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    ("given", "own", "left"),
    [
        ({"batch_size": 8}, {}, 8),
        ({"sweep": ([5.0], [1.5]), "batch_size": 2}, {}, 1),
        ({}, {"negative": "bad", "text_scale": 1.0, "image_scale": 1.0}, 1),
    ],
)
def test_a_harmless_option_without_effect_is_warned_of_and_the_job_goes_on(tmp_path, caplog, given, own, left):
    photo(tmp_path / "a.png")
    job = planned([str(tmp_path / "a.png")], ["go"], str(tmp_path / "out"), replace(FAST, **own), **given)
    assert "has no effect" in caplog.text
    assert job.batch_size == left


# Pictures among others


def test_a_broken_picture_does_not_stop_the_others(tmp_path, editor, caplog):
    photo(tmp_path / "in" / "a.png", seed=1)
    (tmp_path / "in" / "b.png").write_bytes(b"not a picture")
    (tmp_path / "in" / "c.png").write_bytes(photo(tmp_path / "whole.png").read_bytes()[:200])
    Image.new("RGB", (3000, 40)).save(tmp_path / "in" / "d.png")
    photo(tmp_path / "in" / "e.png", seed=2)
    for batch_size in (1, 3):
        out = tmp_path / f"out{batch_size}"
        job = planned([str(tmp_path / "in")], ["go", "come"], str(out), FAST, 1, batch_size=batch_size)
        with caplog.at_level("WARNING"):
            written, failed = run_job(editor, job)
        assert failed == 3
        assert sorted(p.name for p in written) == sorted(p.name for p in out.iterdir())
        assert {p.name for p in written} == {f"{p}-{e}-1.png" for p in "ae" for e in ("go", "come")}
    for name in ("b.png", "c.png", "d.png"):
        assert sum(name in record.getMessage() for record in caplog.records) == 2  # once a job, not once an edit
    assert leftovers(tmp_path) == []


def test_a_photo_that_the_mask_does_not_fit_does_not_stop_the_others(tmp_path, editor, caplog):
    photo(tmp_path / "in" / "a.png", 40, 40)
    photo(tmp_path / "in" / "b.png", 50, 37)
    rectangle(50, 37, (5, 5, 30, 30)).save(tmp_path / "mask.png")
    job = planned([str(tmp_path / "in")], ["go"], str(tmp_path / "out"), FAST, 1, mask=str(tmp_path / "mask.png"))
    with caplog.at_level("WARNING"):
        written, failed = run_job(editor, job)
    assert ([p.name for p in written], failed) == (["b-go-1.png"], 1)
    assert "a.png" in caplog.text


def test_the_only_picture_being_broken_is_an_error(tmp_path, editor):
    (tmp_path / "a.png").write_bytes(b"")
    job = planned([str(tmp_path / "a.png")], ["go"], str(tmp_path / "out"), FAST, 1)
    with pytest.raises(ValueError, match="0 bytes"):
        run_job(editor, job)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (1, 1), (3, 17), (64, 64), (65, 63), (200, 25)])
def test_photos_get_their_size_back(editor, size):
    (kept,) = editor.edit(picture(*size), "go", FAST)
    assert kept.size == size
    (worked,) = editor.edit(picture(*size), "go", replace(FAST, keep_size=False))
    assert all(side % editor.model.grid() == 0 for side in worked.size)


def test_any_kind_of_picture_can_be_edited(tmp_path, editor):
    source = picture(40, 40)
    for name, image in {
        "grey.png": source.convert("L"),
        "palette.png": source.convert("P"),
        "alpha.png": source.convert("RGBA"),
        "cmyk.jpg": source.convert("CMYK"),
        "grey16.png": Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257),
    }.items():
        image.save(tmp_path / name)
    source.save(tmp_path / "moving.gif", save_all=True, append_images=[picture(40, 40, 3)])
    job = planned([str(tmp_path)], ["go"], str(tmp_path / "out"), replace(FAST, steps=1), 1, batch_size=6)
    written, failed = run_job(editor, job)
    assert (len(written), failed) == (6, 0)
    assert all(pixels(p).shape == (40, 40, 3) for p in written)
