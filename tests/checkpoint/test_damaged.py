"""Damaged, truncated and lying files are refused in one line."""

import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint.read import read_checkpoint
from tests.checkpoint.files import dump, entry, lightning, lying, quiet_read, refused, with_ours, zip_of

NO_CHECKPOINTS = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><title>Just a moment</title></html>", "web page"),
    "html after a line": (b"\n\n <html lang='en'>", "web page"),
    "xml error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7703807346\n", "LFS pointer"),
    "text": (b"Not Found", "neither"),
    "one byte": (b"P", "neither"),
    "json": (b'{"error": "Repository not found"}', "neither"),
    "number": (pickle.dumps(3, protocol=2), "no PyTorch checkpoint"),
    "zip signature only": (b"PK\x03\x04", "truncated"),
    "pickle opcode only": (b"\x80", "truncated"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_files_that_are_no_checkpoints(tmp_path, name):
    content, said = NO_CHECKPOINTS[name]
    (tmp_path / "x.ckpt").write_bytes(content)
    assert said in refused(tmp_path / "x.ckpt")


def test_absent_folder_without_parts_and_other_archives(tmp_path):
    refused(tmp_path / "absent.ckpt", FileNotFoundError)
    (tmp_path / "unet").mkdir()
    assert "diffusers" in refused(tmp_path)
    zip_of(tmp_path / "letter.ckpt", {"word/document.xml": b"<document/>"})
    assert "zip archive" in refused(tmp_path / "letter.ckpt")
    zip_of(tmp_path / "two.ckpt", {"a/data.pkl": b"N.", "b/data.pkl": b"N."})
    refused(tmp_path / "two.ckpt")
    zip_of(tmp_path / "none.ckpt", {"archive/data.pkl": b"\x80\x02N."})
    assert "not a dictionary" in refused(tmp_path / "none.ckpt")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.ckpt")
    assert "not a dictionary" in refused(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "hollow.ckpt")
    assert "no tensors" in refused(tmp_path / "hollow.ckpt")
    torch.save(torch.ones(3), tmp_path / "tensor.ckpt")
    assert "not a dictionary" in refused(tmp_path / "tensor.ckpt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_anywhere(tmp_path, kind):
    whole = tmp_path / "whole"
    state = {"a.weight": torch.rand(20, 7), "b.weight": torch.rand(11).half()}
    if kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save(lightning(state), whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    assert len(read_checkpoint(whole).tensors) == 2
    path = tmp_path / "x.ckpt"
    offsets = {*range(40), *range(40, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))}
    for offset in sorted(offsets):
        path.write_bytes(data[:offset])
        refused(path)


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x02}", b"\xff\0\0\0\0\0\0\0{"])
def test_random_bytes(tmp_path, head):
    path = tmp_path / "x.ckpt"
    for seed in range(40):
        path.write_bytes(head + np.random.default_rng(seed).bytes(300))
        refused(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_crash(tmp_path, kind):
    """One bit changed: it may still read (a weight changed), or is refused; nothing else."""
    whole, path = tmp_path / "whole", tmp_path / "x.ckpt"
    state = {"a.weight": torch.rand(2, 3)}
    if kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save({"state_dict": state}, whole, _use_new_zipfile_serialization=kind == "zip")
    data = bytearray(whole.read_bytes())
    random = np.random.default_rng(1)
    for offset in sorted(random.choice(len(data), min(len(data), 250), replace=False)):
        damaged = data.copy()
        damaged[offset] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        assert all(value.numel() < 1000 for value in (quiet_read(path) or {}).values())


LYING_SAFETENSORS = {
    "longer than the file": lying(entry([4], [0, 16]), length=1 << 40),
    "data beyond the end": lying(entry([400], [0, 1600])),
    "shape larger than data": lying(entry([1 << 40], [0, 16])),
    "backwards": lying(entry([4], [16, 0])),
    "negative": lying(entry([-4], [0, 16])),
    "overflow": lying(entry([1 << 62, 4], [0, 16])),
    "unknown type": lying(entry([4], [0, 16], "F7")),
    "no JSON": lying(b"{ this is no JSON "),
    "a list": lying(b'{"w": [1, 2]}   '),
    "our metadata no JSON": with_ours("{"),
    "our metadata a list": with_ours("[1]"),
    "our metadata a number": with_ours("3"),
    "our metadata deep": with_ours("[" * 200000),
}


@pytest.mark.parametrize("name", LYING_SAFETENSORS)
def test_lying_safetensors(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(LYING_SAFETENSORS[name])
    refused(tmp_path / "x.safetensors")


def test_compressed_archives_are_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, tmp_path / "plain.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    assert "compressed archive" in refused(tmp_path / "packed.ckpt")


@pytest.mark.parametrize("entry_name", ["archive/data.pkl", "archive/byteorder"])
def test_an_archive_that_unpacks_a_thousandfold_is_refused(tmp_path, entry_name):
    """The pickle itself compressed, or what is read beside it: it is never unpacked."""
    path = tmp_path / "bomb.ckpt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(entry_name, "w") as stream,
    ):
        stream.write(b"\x80\x02")
        for _ in range(8):
            stream.write(b"N0" * (2 << 20))
        stream.write(b"N.")
    if entry_name != "archive/data.pkl":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data.pkl", dump({}))
    tracemalloc.start()
    try:
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
