"""Photos for DreamBooth and triplets for InstructPix2Pix: what is read, and what is said of what cannot be."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.edit_dataset import EditDataset
from ldm.data.personalized import PersonalizedImages


def picture(value, size=(40, 40)):
    return Image.new("RGB", size, (value, 10, 200))


@pytest.fixture
def photos(tmp_path):
    for i in range(3):
        picture(50 * i, (60, 40)).save(tmp_path / f"{i}.jpg", quality=100)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_photos_carry_the_identifier_and_class_pictures_do_not(photos):
    own = PersonalizedImages(str(photos), "dog", size=16)
    plain = PersonalizedImages(str(photos), "dog", size=16, reg=True)
    assert len(own) == 3
    assert {own.item(i)["text"] for i in range(3)} == {"a sks dog"}
    assert {plain.item(i)["text"] for i in range(3)} == {"a dog"}
    assert [bool(d.item(0)["is_reg"]) for d in (own, plain)] == [False, True]
    values = [(own.item(i)["edited"][0].mean().item() + 1) * 127.5 for i in range(3)]
    assert values == pytest.approx([0, 50, 100], abs=3)
    assert own.item(0)["edited"].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_word": ""}, "class word is empty"),
        ({"identifier": " "}, "identifier is empty"),
        ({"templates": ["a {class_word}"]}, "lacks {identifier}"),
        ({"data_root": "/nowhere"}, "does not exist"),
    ],
)
def test_photos_that_cannot_be_used(photos, options, said):
    given = {"data_root": str(photos), "class_word": "dog", **options}
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        PersonalizedImages(**given)


@pytest.fixture
def rows(tmp_path):
    lines = []
    for i in range(10):
        picture(i).save(tmp_path / f"in{i}.png")
        picture(100 + i).save(tmp_path / f"out{i}.png")
        lines.append(json.dumps({"input_image": f"in{i}.png", "edited_image": f"out{i}.png", "edit_prompt": f"do {i}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_row_may_hold_any_character_that_json_lets_stand(rows):
    text = "do\u2028it\u0085now"
    row = {"input_image": "in0.png", "edited_image": "out0.png", "edit_prompt": text}
    (rows / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    data = EditDataset(str(rows), splits=(1.0, 0.0, 0.0), crop_res=16, min_resize_res=16, max_resize_res=16)
    assert [data.item(i)["text"] for i in range(len(data))] == [text]


def test_rows_become_triplets_split_without_overlap(rows):
    seen = []
    for split in ("train", "val", "test"):
        data = EditDataset(str(rows), split, splits=(0.8, 0.1, 0.1), crop_res=16, min_resize_res=16, max_resize_res=16)
        for i in range(len(data)):
            item = data.item(i)
            number = int(item["text"].split()[1])
            assert round((item["input"][0].mean().item() + 1) * 127.5) == number
            assert round((item["edited"][0].mean().item() + 1) * 127.5) == 100 + number
            seen.append(number)
    assert sorted(seen) == list(range(10))


def test_a_crop_within_a_larger_frame_is_drawn_anew_at_each_visit_for_both(rows):
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3))
    for name in ("in0", "out0"):
        Image.fromarray(ramp).save(rows / f"{name}.png")
    data = EditDataset(str(rows), min_resize_res=24, max_resize_res=32, crop_res=16, flip_prob=0.5)
    items = [data.item(0, visit) for visit in range(4)]
    assert all(torch.equal(item["input"], item["edited"]) for item in items)
    assert not torch.equal(items[0]["input"], items[1]["input"])


def test_the_published_folders_are_read(tmp_path):
    (tmp_path / "0001").mkdir()
    (tmp_path / "0001" / "prompt.json").write_text(json.dumps({"edit": "make it snow"}))
    for seed in (11, 12):
        for side in (0, 1):
            picture(seed).save(tmp_path / "0001" / f"{seed}_{side}.jpg")
    (tmp_path / "seeds.json").write_text(json.dumps([["0001", ["11", "12"]]]))
    data = EditDataset(str(tmp_path), splits=(1, 0, 0), crop_res=16, min_resize_res=16, max_resize_res=16)
    assert len(data) == 2
    assert data.item(0)["text"] == "make it snow"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 .* no JSON"),
        ("[1]", "line 1 .* no mapping"),
        ('{"input": "in0.png", "edited": "out0.png"}', "lacks the instruction"),
        ('{"input": "gone.png", "edited": "out0.png", "instruction": "x"}', "gone.png"),
        ("", "empty"),
    ],
)
def test_rows_that_cannot_be_read(rows, line, said):
    (rows / "metadata.jsonl").write_text(line)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        EditDataset(str(rows))


def test_splits_that_make_no_sense(rows):
    with pytest.raises(ValueError, match="add up to 1"):
        EditDataset(str(rows), splits=(0.5, 0.1, 0.1))
    with pytest.raises(ValueError, match="unknown split"):
        EditDataset(str(rows), split="dev")
    with pytest.raises(ValueError, match="holds none"):
        EditDataset(str(rows), split="val", splits=(1, 0, 0))
