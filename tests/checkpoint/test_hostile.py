"""Nothing that a file says is ever run, and a config inside it chooses no code."""

import contextlib
import json
import os
import pickle
import resource
import struct
import tempfile
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.config import instantiate_from_config
from ldm.models.build import load_model
from tests.checkpoint.files import (
    HONEST,
    HUGE,
    Evil,
    Storage,
    call,
    contained,
    dump,
    named,
    quiet_read,
    raw_bytes,
    small_config,
    tensor,
    text,
)

CONTAINERS = ("zip", "legacy")


def places(evil: object) -> dict[str, dict]:
    weights = {"w": torch.arange(4.0)}
    return {
        "value": {"state_dict": weights, "x": evil},
        "first": {"a": evil, "state_dict": weights},
        "key": {"state_dict": weights, evil: 1},
        "key of callbacks": {"state_dict": weights, "callbacks": {evil: {"best": 1}}},
        "nested": {"state_dict": weights, "optimizer_states": [{"state": ({"a": [evil, (evil,)]},)}]},
        "among the weights": {"state_dict": {**weights, "v": evil}},
        "weight's name": {"state_dict": {**weights, evil: torch.ones(2)}},
        "in a set": {"state_dict": weights, "done": {evil}},
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", list(places(None)))
def test_code_in_a_file_never_runs_and_the_weights_are_read(tmp_path, place, zipped, protocol):
    marker = tmp_path / "MARKER"
    content = places(Evil(os.mkdir, str(marker)))[place]
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    tensors = quiet_read(tmp_path / "x.ckpt")
    assert not marker.exists()
    assert torch.equal(tensors["w"], torch.arange(4.0))
    # the file is really dangerous: PyTorch, told to trust it, runs the code
    with contextlib.suppress(FileExistsError):
        torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert marker.exists()


def programs(marker: str) -> dict[str, bytes]:
    """Pickle programs that create the marker file when ``pickle`` runs them."""
    shell, code = text(f"touch {marker}"), text(f"open({marker!r}, 'w').close()")
    system, rebuild = named("os:system"), named("torch._utils:_rebuild_tensor_v2")
    module = call(named("importlib:import_module"), text("os"))
    mapped = call(named("builtins:map"), system, b"](" + shell + b"e")
    run, ordered = call(system, shell), named("collections:OrderedDict")
    inner = pickle.dumps(Evil(os.system, f"touch {marker}"), 2)
    with tempfile.TemporaryDirectory() as place:
        file = contained(Path(place) / "x", inner, "legacy").read_bytes()
    bodies = {
        "system": run,
        "exec": call(named("builtins:exec"), code),
        "eval": call(named("builtins:eval"), code),
        "names of Python 2": b"\x80\x02" + call(b"c__builtin__\neval\n", code),
        "GLOBAL": call(b"cposix\nsystem\n", shell),
        "INST": b"(" + shell + b"ios\nsystem\n",
        "OBJ": b"(" + system + shell + b"o",
        "NEWOBJ": named("builtins:tuple") + b"(" + mapped + b"t\x81",
        "NEWOBJ_EX": named("builtins:tuple") + b"(" + mapped + b"t}\x92",
        "getattr": call(call(named("builtins:getattr"), module, text("system")), shell),
        "dotted name": call(named("os:path.os.system"), shell),
        "dotted name in torch": call(named("torch.serialization:os.system"), shell),
        "partial": call(call(named("functools:partial"), system, shell)),
        "list of a map": call(named("builtins:list"), mapped),
        "pickle in a pickle": call(named("pickle:loads"), raw_bytes(inner)),
        "torch's storage from bytes": call(named("torch.storage:_load_from_bytes"), raw_bytes(file)),
        "torch's rebuild from type": call(
            named("torch._tensor:_rebuild_from_type_v2"), system, named("builtins:int"), b"(" + shell + b"t", b"}"
        ),
        "argument of a rebuild": call(rebuild, run, b"K\0", b")", b")"),
        "argument of a parameter": call(named("torch._utils:_rebuild_parameter"), run, b"\x89", b"}"),
        "argument of a size": call(named("torch:Size"), mapped),
        "items of a dictionary": call(ordered, mapped),
        "__setstate__ of a dictionary": call(ordered) + b"}" + text("__setstate__") + system + b"sb" + shell + b"b",
        "state of a function": rebuild + b"}" + text("x") + run + b"sb",
    }
    return {name: b"\x80\x04" + body + b"." for name, body in bodies.items()}


@pytest.mark.parametrize("container", [*CONTAINERS, "bare"])
@pytest.mark.parametrize("name", list(programs("m")))
def test_hostile_programs_never_run(tmp_path, name, container):
    marker = tmp_path / "MARKER"
    path = contained(tmp_path / "x.ckpt", programs(str(marker))[name], container)
    assert quiet_read(path) is None
    assert not marker.exists()


@pytest.mark.parametrize("name", list(programs("m")))
def test_hostile_programs_are_really_hostile(tmp_path, name):
    """Guards the test above: Python's own unpickler makes the marker."""
    marker = tmp_path / "MARKER"
    with contextlib.suppress(Exception):  # many fail after the deed, and the deed is what counts
        pickle.loads(programs(str(marker))[name])
    assert marker.exists()


@pytest.mark.parametrize("container", CONTAINERS)
def test_arguments_that_are_code(tmp_path, container):
    marker = tmp_path / "MARKER"
    evil = Evil(os.system, f"touch {marker}")
    for storage in (Storage(evil), Storage(4, evil), Storage(4, "0", evil), Storage(tag=evil)):
        path = contained(tmp_path / "x.ckpt", dump({"w": tensor(storage, 0, (4,), (1,))}), container)
        assert quiet_read(path) is None
    for place in range(4):
        args = [evil if i == place else arg for i, arg in enumerate((Storage(), 0, (4,), (1,)))]
        assert quiet_read(contained(tmp_path / "x.ckpt", dump({"w": tensor(*args)}), container)) is None
    assert not marker.exists()


@pytest.mark.parametrize("container", CONTAINERS)
def test_calls_that_load_another_file_do_not(tmp_path, container):
    """torch.load and its kin, on a second, hostile file."""
    marker, other = tmp_path / "MARKER", tmp_path / "other.pt"
    torch.save({"x": Evil(os.system, f"touch {marker}")}, other)
    for function in ("torch:load", "torch.serialization:load", "torch.jit:load", "numpy:load", "torch.hub:load"):
        program = b"\x80\x04" + call(named(function), text(str(other))) + b"."
        assert quiet_read(contained(tmp_path / "x.ckpt", program, container)) is None
    assert not marker.exists()


def against_the_reader() -> dict[str, bytes]:
    """Programs that change what the reader itself has built, and use that."""
    ordered, first = named("collections:OrderedDict"), named("torch._utils:_rebuild_parameter")
    rebuild, system = named("torch._utils:_rebuild_tensor_v2"), named("os:system")
    storage, weight = dump(Storage())[2:-1], dump(HONEST)[2:-1]

    def changed(attribute: str, value: bytes) -> bytes:
        return call(ordered) + b"}" + text(attribute) + value + b"sb"

    def entry_of(name: str, value: bytes) -> bytes:
        return text(name) + value + b"s"

    weights = b"}" + entry_of("w", weight)
    beyond = b"(" + first + storage + b"RK\0(M\xff\xfft(K\x01tt"  # the storage itself, offset, size, stride
    bodies = {
        "slot of a function": first + b"(N}" + text("_function") + system + b"stb",
        "dictionary of a function": first + b"}" + text("_function") + system + b"sb",
        "slot of a type": named("torch:FloatStorage") + b"(N}" + text("dtype") + b"Nstb",
        "items of the file": changed("items", first),
        "items of the file, inert": changed("items", system),
        "get of the file": changed("get", system),
        "items of the weights": b"}" + entry_of("state_dict", changed("items", first)),
        "keys of the metadata": b"}"
        + entry_of("state_dict", weights)
        + entry_of("instruct2dream", changed("keys", system)),
        "state of a tensor": b"}" + entry_of("w", weight + beyond + b"b"),
        "tensor instead of a storage": b"}" + entry_of("w", call(rebuild, dump((HONEST, torch.float32))[2:-1])),
        "extension code": b"\x82\x01",
        "buffer": b"\x97",
        "state of a class": system + b"}b",
        "add to a placeholder": call(system) + b"(K\x01\x90",
        "append to a placeholder": call(system) + b"K\x01a",
        "item of a tensor": weight + b"K\xffK\x01s",
        "name with a zero": b"\x8c\x01\0\x8c\x01\0\x93",
        "name with a surrogate": b"V\\ud800\nV\\ud800\n\x93",
    }
    return {name: b"\x80\x04" + body + b"." for name, body in bodies.items()}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_memo_that_would_fill_the_memory_is_refused(tmp_path, container):
    bomb = b"\x80\x04}r" + struct.pack("<I", 1 << 27) + b"."  # a few bytes that make pickle set aside 2 GiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="absurd amount of memory"):
        read_checkpoint(contained(tmp_path / "x.ckpt", bomb, container))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (256 << 10)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", list(against_the_reader()))
def test_programs_against_the_reader_itself(tmp_path, name, container):
    """Refused in one line, or read without harm; never another error, never a value outside the file."""
    tensors = quiet_read(contained(tmp_path / "x.ckpt", against_the_reader()[name], container))
    for value in (tensors or {}).values():
        assert value.numel() <= 4


CLAIMS = {
    "more than stored": (Storage(1000), 0, (1000,), (1,)),
    "view beyond": (Storage(), 0, (5,), (1,)),
    "offset beyond": (Storage(), 4, (1,), (1,)),
    "offset far beyond": (Storage(), 1 << 60, (1,), (1,)),
    "negative offset": (Storage(), -1, (4,), (1,)),
    "negative size": (Storage(), 0, (-4,), (1,)),
    "negative stride": (Storage(), 3, (4,), (-1,)),
    "stride beyond": (Storage(), 0, (2,), (4,)),
    "huge stride": (Storage(), 0, (2,), (1 << 62,)),
    "overflowing": (Storage(), 0, (1 << 31, 1 << 31, 4), (1 << 31, 1 << 31, 1 << 31)),
    "sizes without strides": (Storage(), 0, (2, 2), (1,)),
    "huge": (Storage(HUGE), 0, (HUGE,), (1,)),
    "huge size only": (Storage(), 0, (HUGE,), (1,)),
    "beyond 64 bits": (Storage(1 << 70), 0, (1 << 70,), (1,)),
    "negative length": (Storage(-4), 0, (4,), (1,)),
    "wider type": (Storage(4, "0", torch.DoubleStorage), 0, (4,), (1,)),
    "another array": (Storage(4, "1"), 0, (4,), (1,)),
    "array outside": (Storage(4, "../data.pkl"), 0, (4,), (1,)),
    "unknown type": (Storage(4, "0", dict), 0, (4,), (1,)),
    "no storage": (Storage(tag="module"), 0, (4,), (1,)),
    "words": (Storage("four"), 0, (4,), (1,)),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", list(CLAIMS))
def test_tensors_that_lie_are_refused(tmp_path, name, container):
    tensors = quiet_read(contained(tmp_path / "x.ckpt", dump({"w": tensor(*CLAIMS[name])}), container))
    # a lie about the stored array's length may be passed over where the tensor itself lies inside the array
    assert tensors is None or (name == "negative length" and tensors["w"].tolist() == [1, 2, 3, 4])


@pytest.mark.parametrize("container", CONTAINERS)
def test_honest_tensors_of_the_same_making_are_read(tmp_path, container):
    """Guards the test above."""
    views = {"w": HONEST, "v": tensor(Storage(), 1, (3,), (1,)), "s": tensor(Storage(), 3, (), ())}
    tensors = quiet_read(contained(tmp_path / "x.ckpt", dump(views), container))
    assert {name: value.tolist() for name, value in tensors.items()} == {"w": [1, 2, 3, 4], "v": [2, 3, 4], "s": 4}


@pytest.mark.parametrize("keys", [(), ("0", "1")])
def test_legacy_list_of_arrays_that_is_not_the_one_in_use_is_refused(tmp_path, keys):
    """An array that is left out has no data in the file: its tensor would hold what memory held before."""
    assert quiet_read(contained(tmp_path / "x.ckpt", dump({"w": HONEST}), "legacy", keys)) is None


# A config inside a checkpoint chooses among our own classes only


def evil_configs(marker: Path) -> dict[str, object]:
    run = {"target": "os.system", "params": {"command": f"touch {marker}"}}
    popen = {"target": "subprocess.Popen", "params": {"args": ["touch", str(marker)]}}
    hidden = f"{{target:os.system,params:{{command:'touch {marker}'}}}}"
    ours = "ldm.models.build.instantiate_from_config"

    def inside(node: object, **more: object) -> dict:
        content = small_config()
        content["model"]["params"]["unet_config"] = node
        return {**content, **more}

    return {
        "whole model": {"model": popen},
        "part": inside(run),
        "list": inside([run]),
        "as YAML text": OmegaConf.to_yaml(OmegaConf.create(inside(run))),
        "as JSON text": json.dumps(inside(run)),
        "made by a resolver": inside(f"${{oc.create:{hidden}}}"),
        "decoded by a resolver": inside(f'${{oc.decode:"{hidden}"}}'),
        "name by interpolation": inside({**run, "target": "${place}"}, place="os.system"),
        "through a function of ours": inside({"target": ours, "params": {"node": run}}),
        "the same, hidden": inside({"target": ours, "params": {"node": f"${{oc.create:{hidden}}}"}}),
        "name in a list": inside({**run, "target": ["os.system"]}),
        "module": inside({**run, "target": "ldm.models.latent_diffusion.torch"}),
        "a number": 3,
        "a list": [1],
    }


@pytest.mark.parametrize("name", list(evil_configs(Path("m"))))
def test_a_config_in_a_file_cannot_choose_code(tmp_path, raw, name):
    marker = tmp_path / "MARKER"
    checkpoint = Checkpoint(Path("x.ckpt"), "ckpt", raw, {"config": small_config()})
    assert load_model(checkpoint)  # an honest config loads
    checkpoint.metadata["config"] = evil_configs(marker)[name]
    error: object = None
    try:
        load_model(checkpoint)
    except Exception as caught:
        error = caught
    time.sleep(0.05)
    assert not marker.exists()
    assert isinstance(error, ValueError)


def test_evil_configs_are_really_evil(tmp_path):
    """Guards the test above: as a config of the user's own, which may name anything, the code runs."""
    marker = tmp_path / "MARKER"
    for name in ("part", "made by a resolver", "decoded by a resolver"):
        with contextlib.suppress(Exception):
            instantiate_from_config(OmegaConf.create(evil_configs(marker)[name])["model"])
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_hostile_config_is_refused_from_either_format(tmp_path, raw, suffix):
    marker = tmp_path / "MARKER"
    save_checkpoint(tmp_path / f"x{suffix}", raw, {"config": evil_configs(marker)["part"]})
    with pytest.raises(ValueError, match=r"names 'os\.system'"):
        load_model(tmp_path / f"x{suffix}")
    assert not marker.exists()
