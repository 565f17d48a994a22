"""Pairs of pictures on disk: the layouts that are read, what the manifest adds, and mistakes that name the file."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.pairs import find_pairs, loose_pictures, read_manifest


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def manifest(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def names(pairs) -> list[tuple[str, str, str]]:
    return [(pair.id, pair.input.name, pair.edited.name) for pair in pairs]


# Pairs in one folder


def test_upstreams_folder_is_read_as_it_is_and_two_comes_before_ten(tmp_path):
    touch(tmp_path, "10_1.jpg", "10_0.jpg", "2_0.jpg", "2_1.jpg", "00_0.jpg", "00_1.jpg")
    found = find_pairs(str(tmp_path))
    assert names(found) == [("00", "00_0.jpg", "00_1.jpg"), ("2", "2_0.jpg", "2_1.jpg"), ("10", "10_0.jpg", "10_1.jpg")]
    assert all(pair.input.parent == tmp_path for pair in found)
    assert {(pair.instruction, pair.source_word) for pair in found} == {(None, None)}
    assert [pair.photo for pair in found] == ["00", "2", "10"]


def test_the_two_sides_may_be_of_different_formats_and_other_files_are_no_pairs(tmp_path):
    touch(tmp_path, "dog_on_a_0_hill_0.png", "dog_on_a_0_hill_1.JPG", "contact-sheet.png", ".a_0.png")
    (tmp_path / "notes_0.txt").write_text("no picture")
    assert names(find_pairs(tmp_path)) == [("dog_on_a_0_hill", "dog_on_a_0_hill_0.png", "dog_on_a_0_hill_1.JPG")]


@pytest.mark.parametrize(("there", "lacks"), [("7_0.png", "7_1 (edited)"), ("7_1.png", "7_0 (input)")])
def test_a_picture_without_its_partner_is_named(tmp_path, there, lacks):
    touch(tmp_path, "1_0.png", "1_1.png", there)
    with pytest.raises(ValueError, match="has no partner") as caught:
        find_pairs(tmp_path)
    assert there in str(caught.value)
    assert lacks in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_one_mistake_is_told_and_the_others_are_counted(tmp_path):
    touch(tmp_path, "1_0.png", "2_0.png", "3_1.png", "4_0.png", "4_1.png")
    with pytest.raises(ValueError, match=r"'1_0\.png' has no partner 1_1 \(edited\) \(and 2 more\)"):
        find_pairs(tmp_path)


def test_two_files_of_one_side_are_refused_and_both_named(tmp_path):
    touch(tmp_path, "3_0.png", "3_1.jpg", "3_1.png")
    with pytest.raises(ValueError, match="same side") as caught:
        find_pairs(tmp_path)
    assert "3_1.jpg" in str(caught.value)
    assert "3_1.png" in str(caught.value)


def test_everything_that_is_wrong_is_listed_line_by_line(tmp_path):
    touch(tmp_path, "1_0.png", "1_1.png", "2_0.png", "sheet.png", "3_2.png")
    found, wrong = loose_pictures(tmp_path)
    assert {name: sorted(sides) for name, sides in found.items()} == {"1": ["0", "1"], "2": ["0"]}
    assert len(wrong) == 3
    for name in ("2_0.png", "sheet.png", "3_2.png"):
        assert sum(name in line for line in wrong) == 1


def test_folders_without_pairs_are_errors_that_name_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        find_pairs(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "1_0.txt").write_text("no picture")
    for name in ("empty", "texts"):
        with pytest.raises(FileNotFoundError, match=name):
            find_pairs(tmp_path / name)
    touch(tmp_path / "single", "photo.png")
    with pytest.raises(FileNotFoundError, match="_0"):
        find_pairs(tmp_path / "single")


def test_a_folder_with_a_pictures_name_is_no_picture(tmp_path):
    touch(tmp_path, "1_0.png", "1_1.png")
    (tmp_path / "thumbnails_0.png").mkdir()
    assert names(find_pairs(tmp_path)) == [("1", "1_0.png", "1_1.png")]


# The manifest


def test_the_manifest_in_the_folder_or_above_it_tells_words_and_photos(tmp_path):
    content = {
        "class_word": "dog",
        "pairs": [
            {"id": "0", "folder": "training", "source_word": "wolf", "photo": "a.jpg"},
            {"id": "1", "folder": "training", "source_word": "red fox", "photo": "a.jpg"},
            {"id": "0", "folder": "regularization", "source_word": "cat", "photo": "b.jpg"},
        ],
    }
    for name, place in (("above", "manifest.json"), ("inside", "training/manifest.json")):
        root = tmp_path / name
        touch(root / "training", "0_0.png", "0_1.png", "1_0.png", "1_1.png", "2_0.png", "2_1.png")
        manifest(root / place, content)
        found = find_pairs(root / "training")
        assert [pair.source_word for pair in found] == ["wolf", "red fox", None]
        assert [pair.photo for pair in found] == ["a.jpg", "a.jpg", "2"]
        assert read_manifest(root / "training")["class_word"] == "dog"
    assert read_manifest(touch(tmp_path / "plain" / "deep", "0_0.png")) == {}


def test_the_folders_own_manifest_wins_over_the_one_above(tmp_path):
    touch(tmp_path / "training", "0_0.png", "0_1.png")
    manifest(tmp_path / "manifest.json", {"pairs": [{"id": "0", "source_word": "cat"}]})
    manifest(tmp_path / "training" / "manifest.json", {"pairs": [{"id": "0", "source_word": "wolf"}]})
    assert [pair.source_word for pair in find_pairs(tmp_path / "training")] == ["wolf"]


def test_the_manifest_is_found_from_inside_the_folder_too(tmp_path, monkeypatch):
    touch(tmp_path / "training", "0_0.png", "0_1.png")
    manifest(tmp_path / "manifest.json", {"pairs": [{"id": "0", "folder": "training", "source_word": "wolf"}]})
    monkeypatch.chdir(tmp_path / "training")
    assert [pair.source_word for pair in find_pairs(".")] == ["wolf"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"pairs": [{"id": "0", "sou',
        "\x00\x01",
        [],
        7,
        None,
        {},
        {"pairs": None},
        {"pairs": 7},
        {"pairs": [7]},
        {"pairs": [None]},
        {"pairs": [{"source_word": "wolf"}]},
        {"pairs": ["id"]},
        {"pairs": {"id": "0"}},
        {"pairs": [["id"]]},
    ],
    ids=repr,
)
def test_a_damaged_manifest_is_refused_by_name(tmp_path, content):
    touch(tmp_path / "training", "0_0.png", "0_1.png")
    path = manifest(tmp_path / "manifest.json", "null" if content is None else content)
    with pytest.raises(ValueError, match="manifest") as caught:
        find_pairs(tmp_path / "training")
    assert str(path) in str(caught.value)


def test_a_manifest_that_is_no_text_is_refused_by_name(tmp_path):
    touch(tmp_path, "0_0.png", "0_1.png")
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        find_pairs(tmp_path)


# InstructPix2Pix's folders


def seeds_layout(root: Path) -> Path:
    touch(root, "0000012/77_0.jpg", "0000012/77_1.jpg", "0000012/5_0.jpg", "0000012/5_1.jpg", "0000012/9_0.jpg")
    touch(root, "0000003/41_0.png", "0000003/41_1.png")
    manifest(root / "0000012" / "prompt.json", {"input": "a dog", "edit": "make it snow", "output": "a dog in snow"})
    manifest(root / "0000003" / "prompt.json", {"edit": "als Ölbild, 夜"})
    manifest(root / "seeds.json", [["0000012", ["77", "5"]], ["0000003", ["41"]]])
    return root


def test_the_seeds_layout_is_read_as_it_is(tmp_path):
    """Only what seeds.json names counts: picture 9 has no partner, and is none of the listed ones."""
    found = find_pairs(seeds_layout(tmp_path))
    assert [(p.id, p.instruction, p.photo) for p in found] == [
        ("0000003/41", "als Ölbild, 夜", "0000003"),
        ("0000012/5", "make it snow", "0000012"),
        ("0000012/77", "make it snow", "0000012"),
    ]
    assert [(p.input.name, p.edited.name) for p in found] == [
        ("41_0.png", "41_1.png"),
        ("5_0.jpg", "5_1.jpg"),
        ("77_0.jpg", "77_1.jpg"),
    ]
    assert found[2].input == tmp_path / "0000012" / "77_0.jpg"


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', "7", "[7]", '["abc"]', '[["0000012"]]', '[["0000012", 7]]'])
def test_a_damaged_seeds_list_is_refused_by_name(tmp_path, content):
    manifest(seeds_layout(tmp_path) / "seeds.json", content)
    with pytest.raises(ValueError, match=r"seeds\.json"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"input": "a dog"}'])
def test_a_missing_or_damaged_prompt_is_named(tmp_path, content):
    prompt = seeds_layout(tmp_path) / "0000003" / "prompt.json"
    prompt.unlink() if content is None else manifest(prompt, content)
    with pytest.raises(ValueError, match="0000003") as caught:
        find_pairs(tmp_path)
    assert "prompt.json" in str(caught.value)


def test_a_picture_that_the_seeds_list_names_but_is_not_there_is_an_error(tmp_path):
    (seeds_layout(tmp_path) / "0000012" / "5_1.jpg").unlink()
    with pytest.raises(ValueError, match="5_1"):
        find_pairs(tmp_path)


def test_photos_in_the_place_of_pairs_are_named_as_photos(tmp_path):
    (tmp_path / "rex").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "rex" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"holds pictures, but no pairs .*generate_dataset\.sh --photos"):
        find_pairs(tmp_path / "rex" / "training")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_pairs(tmp_path / "gone" / "training")
    (tmp_path / "rex" / "manifest.json").write_text("{}")  # pairs without one of their folders, and a sheet
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_pairs(tmp_path / "rex" / "training")
