"""load_model and what is chosen around it: each process takes its own GPU, and a first stage alone is no model."""

import copy

import pytest
import torch

from ldm.checkpoint.save import save_checkpoint
from ldm.cpu.packed import PackedConv2d, can_pack
from ldm.models import build
from ldm.models.build import load_model
from ldm.models.devices import choose_device
from ldm.models.export import export
from tests.conftest import tiny_config


@pytest.mark.skipif(not can_pack(), reason="this PyTorch has no packing operators")
@pytest.mark.parametrize(
    ("dtype", "smallest", "laid_out"),
    [(torch.float32, 0, (True, False)), (torch.bfloat16, 0, (True, True)), (torch.float32, 10**9, (False, False))],
)
def test_large_models_are_laid_out_for_the_cpu(tiny_model, monkeypatch, dtype, smallest, laid_out):
    if not can_pack(dtype):
        pytest.skip("this machine has no such packing operators")
    monkeypatch.setattr(build, "PACK_FROM", smallest)
    model = copy.deepcopy(tiny_model).to(dtype)
    build.pack_for_cpu(model)
    parts = (model.model, model.first_stage_model)
    found = [any(isinstance(m, PackedConv2d) for m in part.modules()) for part in parts]
    assert tuple(found) == laid_out


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are so many GPUs, and no launcher."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)

    def there(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return there


@pytest.mark.parametrize(
    ("variables", "number", "index"),
    [
        ({}, 4, 0),
        ({"LOCAL_RANK": "3"}, 4, 3),
        ({"SLURM_LOCALID": "2"}, 4, 2),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 4, 1),
        ({"LOCAL_RANK": "5"}, 4, 1),
        ({"SLURM_LOCALID": "3"}, 1, 0),  # each task sees its own GPU only
    ],
)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_the_gpu_of_its_local_rank(gpus, monkeypatch, variables, number, index, name):
    gpus(number)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    device = choose_device(name)
    assert (device.type, device.index) == ("cuda", index)


def test_the_cpu_has_no_ranks(gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    gpus(4)
    assert choose_device("cpu") == torch.device("cpu")
    gpus(0)
    assert choose_device("auto") == torch.device("cpu")


def test_a_rank_that_is_no_number_is_told(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(ValueError, match="LOCAL_RANK=first"):
        choose_device("auto")


@pytest.fixture
def first_stage(tiny_model, tmp_path):
    """Write a first stage alone: as training exports it, as others do (no prefix, no config)."""
    node = {"model": tiny_config()["model"]["params"]["first_stage_config"]}
    bare = tiny_model.first_stage_model.state_dict()
    ours = {f"first_stage_model.{name}": tensor for name, tensor in bare.items()}
    save_checkpoint(tmp_path / "ours.safetensors", ours, {"config": node})
    save_checkpoint(tmp_path / "bare.ckpt", bare, {})
    return node


@pytest.mark.parametrize("name", ["ours.safetensors", "bare.ckpt"])
@pytest.mark.parametrize("config", ["none", "its own", "a whole model's"])
def test_a_first_stage_alone_is_no_model(first_stage, tmp_path, name, config):
    given = {"none": None, "its own": first_stage, "a whole model's": tiny_config()}[config]
    with pytest.raises(ValueError, match=rf"{name}' is a first stage alone.*--vae-ckpt beside a whole model"):
        load_model(tmp_path / name, given)


@pytest.mark.parametrize("output", ["out.safetensors", "out"])
def test_a_first_stage_alone_is_not_exported(first_stage, tmp_path, output):
    with pytest.raises(ValueError, match="is a first stage alone"):
        export(tmp_path / "ours.safetensors", tmp_path / output)
    assert {p.name for p in tmp_path.iterdir()} == {"ours.safetensors", "bare.ckpt"}


def test_a_config_of_a_first_stage_alone_is_no_models(first_stage, tiny_ckpt):
    with pytest.raises(ValueError, match="the config builds a first stage alone"):
        load_model(tiny_ckpt, first_stage)
