"""Weights are written all or nothing, and told apart by a fingerprint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.files import fingerprint
from ldm.models.build import load_model
from tests.checkpoint.files import FIRST, LAST, assert_same, small_config

# Saving, telling apart


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_saved_checkpoints_come_back(tmp_path, raw, suffix):
    path = tmp_path / f"x{suffix}"
    metadata = {"config": small_config(), "identifier": "sks", "steps": 800}
    save_checkpoint(path, raw, metadata)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, raw)
    assert {k: checkpoint.metadata[k] for k in metadata} == metadata
    assert torch.equal(load_model(path).state_dict()[FIRST], raw[FIRST])  # the config inside is used
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_saving_is_all_or_nothing(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"x{suffix}"
    save_checkpoint(path, {"w": torch.ones(3)}, {"steps": 1})
    before = path.read_bytes()

    def failing(*args, **kwargs):
        target = next(a for a in args if isinstance(a, (str, Path)))
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", failing)
    monkeypatch.setattr("safetensors.torch.save_file", failing)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"w": torch.zeros(3)}, {"steps": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    monkeypatch.undo()
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "y.safetensors", {"w": torch.zeros(3)}, {"bad": object()})
    with pytest.raises(ValueError, match=r"end in \.safetensors or \.ckpt"):
        save_checkpoint(tmp_path / "y.pth", {"w": torch.zeros(3)}, {})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_fingerprint_tells_checkpoints_apart(tmp_path, raw, folder):
    first, second, third = (tmp_path / f"{n}.safetensors" for n in "abc")
    changed = {n: t.clone() for n, t in raw.items()}
    changed[LAST][0] += 1e-3
    save_file(raw, first)
    save_file(raw, second)
    save_file(changed, third)
    assert fingerprint(first) == fingerprint(second) == fingerprint(first)
    assert fingerprint(first) != fingerprint(third)
    assert len(fingerprint(first)) == 16
    assert fingerprint(folder) == fingerprint(folder) != fingerprint(first)


def test_fingerprint_of_a_large_file_reads_little_and_sees_a_training_step(tmp_path):
    """A training step changes every weight: any block that is read tells."""
    path = tmp_path / "large"
    data = np.random.default_rng(0).integers(0, 256, 80 << 20, dtype=np.uint8)
    data.tofile(path)
    before = fingerprint(path)
    assert before == fingerprint(path)
    data[::4096] ^= 1
    data.tofile(path)
    assert fingerprint(path) != before
    for place in (5, -5):
        data[place] ^= 1
        data.tofile(path)
        after = fingerprint(path)
        data[place] ^= 1
        data.tofile(path)
        assert fingerprint(path) != after
