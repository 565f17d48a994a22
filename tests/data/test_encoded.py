"""Latents kept in a file: used again for the same items, made anew for others."""

import torch
from torch.utils.data import Dataset

from ldm.data.encoded import cached


class Pictures(Dataset):
    def __init__(self, light=0.0, words="a dog", n=5):
        self.light, self.words, self.n = light, words, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return {"edited": torch.full((3, 8, 8), self.light + index / 10), "text": f"{self.words} {index}"}


def test_a_file_is_used_again_for_the_same_items_and_encoder_alone(tmp_path):
    calls = []

    def encode(x):
        calls.append(len(x))
        return x[:, :1, ::4, ::4] * 2, torch.zeros(len(x), 1, 2, 2)

    first = cached(Pictures(), encode, tmp_path, "key")
    assert sum(calls) == 5
    again = cached(Pictures(), encode, tmp_path, "key")
    assert sum(calls) == 5
    assert again[3]["text"] == "a dog 3"
    assert torch.equal(again[3]["edited_mean"], first[3]["edited_mean"])
    assert abs(again[3]["edited_mean"].mean() - 0.6) < 1e-3
    for other in (Pictures(light=0.01), Pictures(words="a cat"), Pictures(n=6)):
        before = sum(calls)
        assert len(cached(other, encode, tmp_path, "key")) == other.n  # drawn or worded otherwise since
        assert sum(calls) == before + other.n
    before = sum(calls)
    cached(Pictures(), encode, tmp_path, "another first stage")
    assert sum(calls) == before + 5
