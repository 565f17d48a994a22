"""A folder of pairs looked over: what is wrong is named, what is right is not suspected."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from ldm.data.check import CheckRequest, check_dataset, check_identifier, check_pairs, correlation
from ldm.modules.text import encode_words
from ldm.project import SPRITEWORLD


@pytest.fixture
def folder(tmp_path):
    """Six sound pairs of different places."""
    root = tmp_path / "training"
    root.mkdir()
    for i in range(6):
        rng = np.random.default_rng([5, i])
        wolf = Image.open(SPRITEWORLD / "pictures" / "wolf" / f"{i + 1:02d}.png").convert("RGB").resize((96, 96))
        wolf.save(root / f"{i}_0.png")
        wolf.paste(tuple(rng.integers(256, size=3).tolist()), (30, 30, 66, 90))  # what is changed of it
        wolf.save(root / f"{i}_1.png")
    return root


def test_sound_pairs_are_not_suspected(folder):
    found = check_pairs(folder)
    assert (found.errors, found.warnings) == ([], [])
    assert len(found.pairs) == 6
    assert found.sizes == {(96, 96): 12}


def test_a_flipped_side_an_unrelated_side_and_another_shape_are_named(folder):
    flipped = ImageOps.mirror(Image.open(folder / "1_1.png"))
    flipped.save(folder / "1_1.png")
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "2_1.png")
    Image.open(folder / "3_1.png").resize((160, 96)).save(folder / "3_1.png")
    warnings = check_pairs(folder).warnings
    assert any("pair 1:" in line and "flipped" in line for line in warnings)
    assert any("pair 2:" in line for line in warnings)
    assert any("pair 3:" in line and "160 x 96" in line for line in warnings)
    assert not any(f"pair {i}:" in line for line in warnings for i in (0, 4, 5))


def test_copies_are_named_once_and_small_pictures_too(folder):
    for side in "01":
        Image.open(folder / f"0_{side}.png").save(folder / f"9_{side}.png")
    Image.open(folder / "4_0.png").resize((40, 40)).save(folder / "4_0.png")
    warnings = check_pairs(folder).warnings
    assert sum("'0_0.png' and '9_0.png'" in line for line in warnings) == 1
    assert any("'4_0.png' is only 40 x 40" in line for line in warnings)


def test_lone_and_unreadable_files_are_errors(folder):
    (folder / "0_1.png").unlink()
    (folder / "1_0.png").write_bytes(b"no picture")
    found = check_pairs(folder)
    assert any("no partner 0_1" in line for line in found.errors)
    (folder / "0_0.png").unlink()
    assert any("1_0.png" in line for line in check_pairs(folder).errors)


@pytest.mark.parametrize(
    ("word", "wrong"), [("sks", None), ("dog", "common"), ("my dog rex", "tokens"), ("", "0 tokens")]
)
def test_the_identifier_is_one_rare_token_or_better_ones_are_named(word, wrong):
    lines = check_identifier(word, encode_words)
    assert bool(lines) == (wrong is not None)
    if lines:
        assert wrong in lines[0]
        better = lines[0].rpartition(": ")[2].split(", ")
        assert len(better) == 5
        assert all(len(encode_words(b)) == 1 and encode_words(b)[0] > 40_000 for b in better)


def test_correlation_is_the_textbooks():
    a, b = np.random.default_rng(1).normal(size=(2, 8, 8))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert correlation(a, np.ones((8, 8))) == 0


def test_the_report_counts_errors_and_draws_what_training_sees(folder):
    request = CheckRequest(folder.parent, class_word="dog", source_word="wolf", size=64)
    lines, errors = check_dataset(request)
    assert errors == 0
    assert any("6 pairs" in line for line in lines)
    assert Image.open(folder.parent / "training-view.png").width > 6 * 128
    (folder / "0_1.png").unlink()
    assert check_dataset(request)[1] > 0


@pytest.fixture
def asked(folder):
    """Return the lines and errors of a folder looked over without any flag."""

    def check(path, **given):
        return check_dataset(CheckRequest(path, size=64, **given))

    return check


def test_pairs_without_a_manifest_are_looked_over_and_the_flags_are_named(folder, asked):
    """As the original repositories have them: one folder, no words."""
    Image.open(folder / "4_0.png").resize((40, 40)).save(folder / "4_0.png")
    lines, errors = asked(folder)
    assert errors == 0
    assert any("'4_0.png' is only 40 x 40" in line for line in lines)
    (line,) = [line for line in lines if "no manifest" in line]
    assert line.endswith("give --class-word and --source-word")
    assert Image.open(folder / "training-view.png").width > 6 * 128
    lines, _ = asked(folder, class_word="dog")
    assert [line.endswith("give --source-word") for line in lines if "no manifest" in line] == [True]
    lines, _ = asked(folder, class_word="dog", source_word="wolf")
    assert not [line for line in lines if "no manifest" in line]


def test_an_empty_folder_is_an_error_of_its_own_and_the_other_is_looked_over(folder, asked):
    (folder.parent / "regularization").mkdir()
    lines, errors = asked(folder.parent, class_word="dog", source_word="wolf")
    assert errors == 1
    assert any("training: 6 pairs" in line for line in lines)
    assert any(line.startswith("  error:") and "holds no pairs" in line for line in lines)
    assert (folder.parent / "training-view.png").is_file()
    with pytest.raises(FileNotFoundError, match="gone"):
        asked(folder / "gone")
