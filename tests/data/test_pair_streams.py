"""Two streams of pairs side by side: every pair once an epoch, processes that share, restarts that go on."""

import hashlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.config import instantiate_from_config
from ldm.data.datamodule import PairDataModule
from ldm.data.order import StreamSampler
from ldm.data.personalized_edit import PersonalizedEdit

SIZE = 8


def keys(lengths: dict, sizes: dict, total: int, **where: int) -> list[list[tuple[str, int, int]]]:
    return list(StreamSampler(lengths, sizes, total, **where))


def of(batches: list, name: str) -> list[tuple[int, int]]:
    return [(item, visit) for batch in batches for stream, item, visit in batch if stream == name]


def write_pairs(root: Path, number: int, shade: int) -> str:
    """Pairs of one colour each: red tells the pair, green the folder."""
    root.mkdir(parents=True)
    for i in range(number):
        Image.new("RGB", (SIZE, SIZE), (10 * i, shade, 0)).save(root / f"{i}_0.png")
        Image.new("RGB", (SIZE, SIZE), (10 * i, shade, 255)).save(root / f"{i}_1.png")
    return str(root)


@pytest.fixture
def streams(tmp_path):
    """Configs of 5 instance pairs and 7 regularization pairs."""
    params = {"class_word": "dog", "source_word": "wolf", "size": SIZE, "identifier": "zxv"}
    target = "ldm.data.personalized_edit.PersonalizedEdit"
    roots = write_pairs(tmp_path / "training", 5, 50), write_pairs(tmp_path / "regularization", 7, 200)
    return [{"target": target, "params": {**params, "data_root": root}} for root in roots]


def loaded(data: PairDataModule, total: int, start: int = 0, rank: int = 0, world: int = 1) -> list[dict]:
    data.total_batches, data.start_batch = total, start
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return list(data.train_dataloader())


def which(batch: dict) -> list[tuple[bool, int]]:
    """The pairs of a batch, read from their pictures: (regularization, number)."""
    reds = ((batch["input"][:, 0].mean((1, 2)) + 1) * 12.75).round().int().tolist()
    greens = ((batch["input"][:, 1].mean((1, 2)) + 1) * 127.5).round().int().tolist()
    return [({50: False, 200: True}[green], red) for red, green in zip(reds, greens, strict=True)]


# The order


def test_streams_of_different_lengths_see_every_pair_once_in_each_of_their_epochs():
    """60 batches of 2 + 3: 120 instance items are 40 epochs of 3, 180 regularization items 18 epochs of 10."""
    batches = keys({"instance": 3, "reg": 10}, {"instance": 2, "reg": 3}, 60, seed=4)
    assert all([name for name, _, _ in batch] == ["instance"] * 2 + ["reg"] * 3 for batch in batches)
    for name, items, epochs in (("instance", 3, 40), ("reg", 10, 18)):
        drawn = of(batches, name)
        assert Counter(drawn) == {(item, visit): 1 for item in range(items) for visit in range(epochs)}
        orders = [[item for item, _ in drawn[e * items : (e + 1) * items]] for e in range(epochs)]
        assert all(sorted(order) == list(range(items)) for order in orders)
        assert len({tuple(order) for order in orders}) > 3


def test_streams_of_equal_length_are_shuffled_apart_and_by_the_seed():
    batches = keys({"instance": 20, "reg": 20}, {"instance": 1, "reg": 1}, 20, seed=0)
    assert of(batches, "instance") != of(batches, "reg")
    other = keys({"instance": 20, "reg": 20}, {"instance": 1, "reg": 1}, 20, seed=1)
    assert of(batches, "instance") != of(other, "instance")
    assert of(batches, "reg") != of(other, "reg")
    assert batches == keys({"instance": 20, "reg": 20}, {"instance": 1, "reg": 1}, 20, seed=0)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_see_disjoint_pairs_and_together_those_of_one(world):
    lengths, total = {"instance": 6, "reg": 15}, 12
    one = keys(lengths, {"instance": world, "reg": 2 * world}, total, seed=3)
    ranks = [keys(lengths, {"instance": 1, "reg": 2}, total, seed=3, rank=rank, world=world) for rank in range(world)]
    for name in lengths:
        shares = [set(of(batches, name)) for batches in ranks]
        assert sum(len(share) for share in shares) == len(set().union(*shares)) == len(of(one, name))
        for step in range(total):
            together = [key for batches in ranks for key in of(batches[step : step + 1], name)]
            assert together == of(one[step : step + 1], name)


def test_a_restart_at_any_batch_gives_the_remainder():
    setup = ({"instance": 3, "reg": 7}, {"instance": 2, "reg": 1}, 25)
    whole = keys(*setup, seed=2, rank=1, world=2)
    for start in (0, 1, 8, 24, 25):
        assert keys(*setup, seed=2, rank=1, world=2, start=start) == whole[start:]
    assert len(StreamSampler(*setup, seed=2, start=8)) == 25  # Lightning counts the batches that were done before


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        StreamSampler({"instance": 3, "reg": 0}, {"instance": 1, "reg": 1}, 5)


# The batches


def test_batches_hold_both_streams_side_by_side(streams):
    data = PairDataModule(*streams, batch_size=1, reg_batch_size=2, seed=1)
    batches = loaded(data, 35)  # seven epochs of 5 instance pairs, ten of 7 regularization pairs
    assert len(batches) == 35
    for batch in batches:
        assert batch["input"].shape == batch["edited"].shape == (3, 3, SIZE, SIZE)
        assert batch["is_reg"].tolist() == [False, True, True] == [reg for reg, _ in which(batch)]
        assert batch["text"] == ["replace the wolf with a zxv dog"] + ["replace the wolf with a dog"] * 2
        assert torch.equal(batch["input"][:, :2], batch["edited"][:, :2])  # sides of one pair
        assert batch["input"][:, 2].max() == -1
        assert batch["edited"][:, 2].min() == 1
    seen = Counter(pair for batch in batches for pair in which(batch))
    assert seen == {**{(False, i): 7 for i in range(5)}, **{(True, i): 10 for i in range(7)}}


def test_every_visit_is_drawn_anew(tmp_path):
    """One pair alone: its mirror image comes about every other time, in the order that the dataset itself says."""
    (tmp_path / "pairs").mkdir()
    half = np.zeros((SIZE, SIZE, 3), np.uint8)
    half[:, SIZE // 2 :] = 255
    for side in "01":
        Image.fromarray(half).save(tmp_path / "pairs" / f"0_{side}.png")
    train = PersonalizedEdit(str(tmp_path / "pairs"), class_word="dog", source_word="wolf", size=SIZE)
    batches = loaded(PairDataModule(train), 40)
    flips = [bool(batch["input"][0, 0, 0, 0] > 0) for batch in batches]
    assert flips == [bool(batch["edited"][0, 0, 0, 0] > 0) for batch in batches]
    assert flips == [train.draw(0, visit)[1] for visit in range(40)]
    assert 10 <= sum(flips) <= 30


def test_a_restarted_loader_goes_on_with_the_same_batches(streams):
    whole = loaded(PairDataModule(*streams, seed=5), 20)
    rest = loaded(PairDataModule(*streams, seed=5), 20, start=13)
    assert len(rest) == 7
    for a, b in zip(rest, whole[13:], strict=True):
        assert a["text"] == b["text"]
        assert all(torch.equal(a[name], b[name]) for name in ("input", "edited", "is_reg"))


def test_two_processes_load_the_batches_of_one(streams):
    one = loaded(PairDataModule(*streams, batch_size=2, seed=5), 10)
    ranks = [loaded(PairDataModule(*streams, batch_size=1, seed=5), 10, rank=rank, world=2) for rank in (0, 1)]
    for step, batch in enumerate(one):
        assert sorted(which(batch)) == sorted(which(ranks[0][step]) + which(ranks[1][step]))
    for first in (0, 5):  # five steps of two are two epochs of the five instance pairs
        drawn = [number for r in ranks for b in r[first : first + 5] for reg, number in which(b) if not reg]
        assert Counter(drawn) == dict.fromkeys(range(5), 2)


def test_without_regularization_pairs_there_is_one_stream(streams):
    data = PairDataModule(streams[0], batch_size=2)
    batches = loaded(data, 5)
    assert [batch["is_reg"].tolist() for batch in batches] == [[False, False]] * 5
    with pytest.raises(ValueError, match="reg_batch_size is 2"):
        PairDataModule(streams[0], reg_batch_size=2)


def test_the_regularization_batch_is_as_large_as_the_other_unless_told(streams):
    assert [b["is_reg"].tolist() for b in loaded(PairDataModule(*streams, batch_size=2), 1)] == [
        [False] * 2 + [True] * 2
    ]
    with pytest.raises(ValueError, match="at least 1"):
        loaded(PairDataModule(*streams, batch_size=1, reg_batch_size=0), 1)


def test_the_module_is_built_from_a_config(streams):
    params = {"train": streams[0], "reg": streams[1], "batch_size": 1, "seed": 5}
    config = OmegaConf.create({"target": "ldm.data.datamodule.PairDataModule", "params": params})
    built, direct = loaded(instantiate_from_config(config), 4), loaded(PairDataModule(*streams, seed=5), 4)
    assert [which(batch) for batch in built] == [which(batch) for batch in direct]
    assert built[0]["is_reg"].tolist() == [False, True]


def test_the_recipe_names_the_words_the_counts_and_every_pictures_content(streams, tmp_path):
    recipe = PairDataModule(*streams).recipe
    words = {"identifier": "zxv", "class_word": "dog", "source_word": "wolf", "instance_pairs": 5, "reg_pairs": 7}
    assert {name: recipe[name] for name in words} == words
    files = [tmp_path / "training" / f"{i}_{s}.png" for i in range(5) for s in "01"]
    files += [tmp_path / "regularization" / f"{i}_{s}.png" for i in range(7) for s in "01"]
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))
    assert recipe["data_hash"] == digest.hexdigest()[:16]
    Image.new("RGB", (SIZE, SIZE), (61, 200, 255)).save(tmp_path / "regularization" / "6_1.png")
    assert PairDataModule(*streams).recipe["data_hash"] != recipe["data_hash"]
