"""The order of training items."""

import pytest

from ldm.data.order import StepSampler


def flat(sampler):
    return [index for batch in sampler for index in batch]


def test_every_item_once_per_epoch_and_another_order_each_time():
    items = flat(StepSampler(items=10, batch_size=5, total=6, seed=3))
    epochs = [items[i : i + 10] for i in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_starting_later_gives_the_rest_of_the_same_order():
    whole = list(StepSampler(items=7, batch_size=3, total=20, seed=1))
    assert list(StepSampler(items=7, batch_size=3, total=20, seed=1, start=11)) == whole[11:]


def test_two_processes_share_the_batches_of_one():
    one = list(StepSampler(items=12, batch_size=4, total=9, seed=2))
    ranks = [list(StepSampler(items=12, batch_size=2, total=9, seed=2, rank=r, world=2)) for r in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == one


def test_seeds_differ_and_the_length_is_that_of_the_whole_run():
    assert flat(StepSampler(50, 5, 10, seed=0)) != flat(StepSampler(50, 5, 10, seed=1))
    assert len(StepSampler(50, 5, 10, start=4)) == 10  # Lightning counts the batches that were done before


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        StepSampler(items=0, batch_size=4, total=1)
