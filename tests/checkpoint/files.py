"""Checkpoints to read: small ones like the published file, damaged ones, hostile ones."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint.read import read_checkpoint
from ldm.config import instantiate_from_config
from ldm.diffusion.conditioning import Conditioning
from ldm.modules.text import tokenize
from tests.conftest import randomize, tiny_config
from tests.models.reference import relative

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


LAST = "model.diffusion_model.out.2.bias"


UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


class EarlyStopping:
    """Stands for the callback classes that Lightning 1.x writes as dictionary keys."""


def small_config(in_channels: int = 8, vocabulary: int = 514) -> dict:
    content = tiny_config(in_channels)
    content["model"]["params"]["cond_stage_config"]["params"]["text_config"]["vocab_size"] = vocabulary
    return content


def config(in_channels: int = 8, vocabulary: int = 514):
    return OmegaConf.create(small_config(in_channels, vocabulary))


def build(in_channels: int = 8, seed: int = 5):
    return randomize(instantiate_from_config(config(in_channels)["model"]), seed).eval()


def alphas_cumprod(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> torch.Tensor:
    betas = np.linspace(start**0.5, end**0.5, steps) ** 2
    return torch.from_numpy(np.cumprod(1 - betas)).float()


def ema_of(name: str) -> str:
    return "model_ema." + name[len("model.") :].replace(".", "")


def lightning(state: dict[str, torch.Tensor]) -> dict:
    moments = {"step": 3, "exp_avg": torch.ones(3), "exp_avg_sq": np.float32(2.0)}
    return {
        "epoch": 2,
        "global_step": 22000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(state),
        "callbacks": {EarlyStopping: {"best_model_score": np.float64(0.25), "monitor": "val/loss", "dirpath": "x"}},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
        "lr_schedulers": [{"base_lrs": [1e-4], "lr_lambdas": [None], "done": {1, 2}}],
    }


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def errors(model, reference) -> dict[str, float]:
    unet, vae, encoder = reference
    z, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 77, 32)
    picture, x = torch.randn(2, 4, 8, 8), torch.rand(1, 3, 64, 64) * 2 - 1
    words = ["turn the wolf into a sks dog"]
    with torch.no_grad():
        eps = model.apply_model(z, t, Conditioning(context, picture))
        states = encoder(input_ids=tokenize(words)).last_hidden_state
        return {
            "eps": relative(eps, unet(torch.cat([z, picture], 1), t, context).sample),
            "mode": relative(model.encode_first_stage(x).mode(), vae.encode(x).latent_dist.mode()),
            "picture": relative(model.decode_first_stage(z), vae.decode(z / 0.18215).sample),
            "states": relative(model.get_learned_conditioning(words), states),
        }


def linked(folder, target):
    """A copy of a diffusers folder that may be changed."""
    for part in ("unet", "vae", "text_encoder"):
        (target / part).mkdir(parents=True)
        for file in (folder / part).glob("*.safetensors"):
            (target / part / file.name).symlink_to(file)
    return target


# Files that are no checkpoints


def read_all(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint and touch every value in it."""
    tensors = read_checkpoint(path).tensors
    for value in tensors.values():
        value.sum()
    return tensors


def refused(path: Path, error: type[Exception] = ValueError) -> str:
    """Read what must be refused; return the message, one line that names the file, without that name."""
    with pytest.raises(error) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path) in message, message
    assert "\n" not in message, message
    return message.replace(str(path), "")


def quiet_read(path: Path) -> dict[str, torch.Tensor] | None:
    """Read; return the tensors, or None if the file is refused in the proper way. Nothing else may come."""
    try:
        return read_all(path)
    except ValueError:
        refused(path)
        return None


def zip_of(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def lying(header: dict | bytes, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def with_ours(metadata: str) -> bytes:
    return lying({"__metadata__": {"instruct2dream": metadata}, **entry([4], [0, 16])})


# Hostile pickles: nothing runs


class Evil:
    """Pickled, it is a call of ``function(*args)``; unpickled by ``pickle`` itself, the call is made."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Storage:
    """Pickled by ``dump``, it is a stored array of a claimed length, name and type."""

    def __init__(self, numel=4, key="0", kind=torch.FloatStorage, tag="storage"):
        self.saved_id = (tag, kind, key, "cpu", numel)


def tensor(*args: object) -> Evil:
    """Pickled by ``dump``, it is a tensor of these arguments: storage, offset, size, stride."""
    return Evil(torch._utils._rebuild_tensor_v2, *args, False, OrderedDict())


HONEST = tensor(Storage(), 0, (4,), (1,))


def dump(content: object, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.saved_id if isinstance(obj, Storage) else None

    out = io.BytesIO()
    Pickler(out, protocol).dump(content)
    return out.getvalue()


FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def contained(path: Path, program: bytes, container: str, keys: tuple[str, ...] = ("0",)) -> Path:
    """Write a pickle program as a checkpoint with one stored array "0" of four floats."""
    if container == "zip":
        zip_of(path, {"archive/data.pkl": program, "archive/data/0": FLOATS, "archive/version": b"3\n"})
    elif container == "legacy":
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
        tail = [struct.pack("<q", 4) + FLOATS for _ in keys]
        path.write_bytes(b"".join([*head, program, pickle.dumps(list(keys), 2), *tail]))
    else:
        path.write_bytes(program)
    return path


def named(name: str) -> bytes:
    """The opcodes that push ``module:attribute`` (STACK_GLOBAL)."""
    parts = (part.encode() for part in name.split(":"))
    return b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts) + b"\x93"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw_bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


HUGE = 1 << 40
