"""Checkpoints of every format are read whole, by content and not by name."""

import struct

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint.read import read_checkpoint
from ldm.models.build import load_model
from tests.checkpoint.files import FIRST, assert_same, build, config, lightning

# What is read


def test_lightning_file_is_read_whole(lightning_ckpt, published):
    checkpoint = read_checkpoint(lightning_ckpt)
    assert_same(checkpoint.tensors, published)
    assert checkpoint.metadata["global_step"] == 22000
    assert checkpoint.metadata["pytorch-lightning_version"] == "1.4.2"
    assert checkpoint.has_ema
    sizes = {family: len(tensors) for family, tensors in checkpoint.families().items()}
    n = sum(name.startswith("model.") for name in published)
    assert sizes["unet"] == n
    assert sizes["unet (EMA)"] == n + 2
    assert sizes["schedule"] == 3
    assert sizes["first stage"] > 0
    assert sizes["text encoder"] > 0


@pytest.mark.parametrize(("weights", "added", "used"), [("raw", 0, "raw"), ("ema", 1, "ema"), ("auto", 1, "ema")])
def test_raw_and_ema_are_chosen(lightning_ckpt, raw, weights, added, used):
    model = build(seed=5)
    report = model.load_checkpoint(lightning_ckpt, weights)
    assert (report.weights, report.missing, report.unexpected, report.mismatched) == (used, [], [], [])
    for name, tensor in model.state_dict().items():
        expected = raw[name] + added if name.startswith("model.") else raw[name]
        assert torch.equal(tensor, expected), name


def test_a_loaded_model_owns_its_weights(lightning_ckpt):
    """None is a view of the mapped file, which may be replaced or deleted while the model is in use."""
    checkpoint = read_checkpoint(lightning_ckpt)
    mapped = {t.untyped_storage().data_ptr() for t in checkpoint.tensors.values()}
    for weights in ("raw", "ema"):
        state = load_model(checkpoint, config(), weights=weights).state_dict()
        assert not mapped & {t.untyped_storage().data_ptr() for t in state.values()}


def test_load_model_takes_ema_by_itself(lightning_ckpt, raw):
    model = load_model(lightning_ckpt, config())
    state = model.state_dict()
    assert torch.equal(state[FIRST], raw[FIRST] + 1)
    assert not model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert torch.equal(load_model(lightning_ckpt, config(), weights="raw").state_dict()[FIRST], raw[FIRST])


def test_auto_without_ema_is_raw(tmp_path, raw):
    save_file(raw, tmp_path / "raw.safetensors")
    assert build(seed=5).load_checkpoint(tmp_path / "raw.safetensors").weights == "raw"


def test_ema_that_is_not_there_is_an_error(tmp_path, raw):
    save_file(raw, tmp_path / "raw.safetensors")
    with pytest.raises(ValueError, match="EMA weights missing"):
        load_model(tmp_path / "raw.safetensors", config(), weights="ema")


@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_ema_that_is_half_there_is_an_error_and_never_mixed(tmp_path, published, weights):
    half = {n: t for n, t in published.items() if not n.startswith("model_ema.diffusion_modeloutput_blocks")}
    torch.save(lightning(half), tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match=r"EMA weights missing .*output_blocks.*weights: raw"):
        load_model(tmp_path / "half.ckpt", config(), weights=weights)
    load_model(tmp_path / "half.ckpt", config(), weights="raw")


def test_unknown_choice_of_weights(lightning_ckpt):
    with pytest.raises(ValueError, match="unknown weights 'best'"):
        build().load_checkpoint(lightning_ckpt, "best")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_pickle_format_reads_equal(tmp_path, published, zipped, protocol):
    content = lightning(published)
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert_same(checkpoint.tensors, published)
    assert checkpoint.metadata["global_step"] == 22000


def test_bare_state_dict_and_safetensors_read_equal(tmp_path, published):
    torch.save(published, tmp_path / "bare.bin")
    save_file(published, tmp_path / "x.safetensors")
    assert_same(read_checkpoint(tmp_path / "bare.bin").tensors, published)
    assert_same(read_checkpoint(tmp_path / "x.safetensors").tensors, published)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_and_layout_of_tensor(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "same storage": base[2],
        "expanded": torch.tensor([3.0]).expand(4, 2),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    kinds = ["float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    state |= {kind: torch.tensor([0, 1, 1]).to(getattr(torch, kind)) for kind in kinds}
    torch.save({"state_dict": state}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_same(read_checkpoint(tmp_path / "x.pt").tensors, {n: t.detach() for n, t in state.items()})


def test_safetensors_are_told_whatever_the_length_of_their_header(tmp_path):
    """The file begins with that length: some begin with the byte 0x80 as pickles do, or with the PK of a zip."""
    path = tmp_path / "x.safetensors"
    for first in (b"\x80", b"PK"):
        for n in range(0, 30000, 8):
            header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"a":"%s"}}' % (b"x" * n)
            header += b" " * (-len(header) % 8)
            length = struct.pack("<Q", len(header))
            if length.startswith(first):
                break
        assert length.startswith(first)
        path.write_bytes(length + header + struct.pack("<f", 2.5))
        assert read_checkpoint(path).tensors["w"].tolist() == [2.5]


def test_names_do_not_decide_the_format(tmp_path, raw):
    save_file(raw, tmp_path / "wrong.ckpt")
    torch.save({"state_dict": raw}, tmp_path / "wrong.safetensors")
    assert read_checkpoint(tmp_path / "wrong.ckpt").format == "safetensors"
    assert_same(read_checkpoint(tmp_path / "wrong.safetensors").tensors, raw)
