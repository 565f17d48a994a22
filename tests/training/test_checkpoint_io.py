"""Full checkpoints go to the file and come from it without a copy in memory."""

import pytest
import torch

from ldm.benchmarks.measure import peak_memory
from ldm.training.checkpoint_io import DirectCheckpointIO

MIB = 2**20
CPU = torch.device("cpu")


def test_a_checkpoint_is_written_and_read_without_a_second_copy_of_it(tmp_path):
    path, io = tmp_path / "run" / "last.ckpt", DirectCheckpointIO()
    state = {"state_dict": {"w": torch.randn(64 * MIB // 4)}, "step": 7}
    with peak_memory(CPU) as written:
        io.save_checkpoint(state, path)
    with peak_memory(CPU) as read:
        found = io.load_checkpoint(path, weights_only=True)
    assert torch.equal(found["state_dict"]["w"], state["state_dict"]["w"])
    assert found["step"] == 7
    assert written() < 32 * MIB
    assert read() < 32 * MIB


def test_what_was_read_can_be_changed_and_the_file_stays(tmp_path):
    path, io = tmp_path / "last.ckpt", DirectCheckpointIO()
    io.save_checkpoint({"w": torch.ones(4)}, path)
    io.load_checkpoint(path)["w"].mul_(2)
    assert torch.equal(io.load_checkpoint(path)["w"], torch.ones(4))


def test_options_without_effect_and_absent_files_are_refused(tmp_path):
    io = DirectCheckpointIO()
    with pytest.raises(TypeError, match="no effect"):
        io.save_checkpoint({}, tmp_path / "a.ckpt", storage_options={})
    with pytest.raises(FileNotFoundError, match="is not there"):
        io.load_checkpoint(tmp_path / "a.ckpt")
