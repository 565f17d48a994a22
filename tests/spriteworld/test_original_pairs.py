"""Pairs as the first personalised editors were fed them."""

import pytest

from ldm.data.encoded import EncodedPairs
from ldm.spriteworld.experiments.original_pairs import OriginalPairs
from tests.data.test_personalized_edit import encode, mirrored, write_pairs


def test_the_originals_pairs_are_mirrored_apart_and_squashed(tmp_path):
    root = write_pairs(tmp_path / "pairs", 2)
    data = OriginalPairs(root, class_word="dog", source_word="wolf", size=16)
    together = set()
    for visit in range(40):
        item = data.item(0, visit)
        assert item["input"].shape == item["edited"].shape == (3, 16, 16)
        together.add((mirrored(item["input"]), mirrored(item["edited"])))
        whole = [float(side[0].max() - side[0].min()) for side in (item["input"], item["edited"])]
        assert min(whole) > 1.7  # the ramp from edge to edge: nothing was cut off
    assert together == {(False, False), (False, True), (True, False), (True, True)}
    with pytest.raises(ValueError, match="cache_latents=false"):
        EncodedPairs(data, encode)
