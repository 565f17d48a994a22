"""Read the tensors of a PyTorch pickle file without running anything that the file says.

A pickle is a small program: it names functions and calls them. Here every name resolves either to one of the few
tensor-building functions below or to an inert placeholder; nothing is imported. The tensors are views of the mapped
file: reading a 7.7 GB checkpoint costs no memory until a tensor is used.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
MEMO_SLACK = 65_536
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_pickle(path: Path) -> Any:
    """Return the object that ``torch.save`` wrote, zip or legacy format, with placeholders for unknown classes.

    Raises UserError for a truncated or malformed file.
    """
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        return _read_zip(path) if is_zip else _read_legacy(path)
    except _Refused as error:
        raise UserError(f"'{path}' {error}") from None
    except Exception as error:  # a hostile or broken pickle can fail in any way; all of them mean the same
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"'{path}' is truncated or no PyTorch checkpoint ({said})") from None


class _Refused(UserError):
    pass


class Placeholder:
    """Stands for an object of a class that is not built: accepts everything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignore an item."""

    def extend(self, items: Any) -> None:
        """Ignore items."""


class _Builder:
    """One of the allowed functions, with no attribute that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Any):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused("tries to change a function; refused")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _StorageType:
    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype):
        object.__setattr__(self, "dtype", dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused("tries to change a storage type; refused")


class _Dict(dict):
    """A dictionary that a pickle cannot give attributes to (state_dicts carry some, which are not needed)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild(storage: Any, offset: int, size: tuple, stride: tuple, *ignored: Any) -> torch.Tensor:
    untyped, dtype = storage
    return torch.empty(0, dtype=dtype).set_(untyped, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _first(value: Any, *ignored: Any) -> Any:
    return value


_BUILDERS = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): lambda values=(): tuple(values),
    ("collections", "OrderedDict"): lambda *items: _Dict(*items),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, load_storage: Any):
        super().__init__(file, encoding="latin-1")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _BUILDERS:
            return _Builder(_BUILDERS[module, name])
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(name.rpartition(".")[2] or "unknown", (Placeholder,), {"__module__": f"inert.{module}"})

    def persistent_load(self, saved_id: Any) -> Any:
        kind, storage_type, key, _location, numel, *_ = saved_id
        kind = kind.decode() if isinstance(kind, bytes) else kind
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise _Refused(f"is damaged: unknown kind of stored data {kind!r}"[:200])
        return self._load_storage(str(key), storage_type.dtype, int(numel)), storage_type.dtype


def _load(file: Any, load_storage: Any) -> Any:
    """Read one pickle, after a look at its program: a memo number far beyond what was put into the memo would make
    the reader set aside gigabytes for nothing."""
    start = file.tell()
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > steps + MEMO_SLACK:
            raise _Refused("is no checkpoint: its program asks for an absurd amount of memory")
    file.seek(start)
    return _Unpickler(file, load_storage).load()


def map_file(path: Path) -> torch.UntypedStorage:
    """Return a file's bytes as a privately mapped storage (read from disk when touched)."""
    return torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refused("is a zip archive, but not one that torch.save wrote")
        root = pickles[0][: -len("data.pkl")]
        for name in (pickles[0], f"{root}byteorder"):
            if name in entries and entries[name].compress_type != zipfile.ZIP_STORED:
                raise _Refused("is a compressed archive; torch.save writes uncompressed ones")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != sys.byteorder.encode():
            raise _Refused("was written on a machine of the other byte order")
        program = archive.read(pickles[0])
    mapped = map_file(path)
    storages: dict[str, torch.UntypedStorage] = {}

    def load_storage(key: str, dtype: torch.dtype, numel: int) -> torch.UntypedStorage:
        if key not in storages:
            info = entries[f"{root}data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED:
                raise _Refused("is a compressed archive; torch.save writes uncompressed ones")
            head = bytes(mapped[info.header_offset : info.header_offset + 30])
            start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
            if info.file_size < numel * dtype.itemsize or start + info.file_size > len(mapped):
                raise _Refused(f"is truncated: the data of tensor {key} is not all there")
            storages[key] = mapped[start : start + info.file_size]
        return storages[key]

    return _load(io.BytesIO(program), load_storage)


def _read_legacy(path: Path) -> Any:
    """Read the format of torch < 1.6: five pickles, then the raw storages."""
    storages: dict[str, torch.UntypedStorage] = {}

    def load_storage(key: str, dtype: torch.dtype, numel: int) -> torch.UntypedStorage:
        size = numel * dtype.itemsize
        if size > path.stat().st_size:
            raise _Refused(f"is truncated: tensor {key} is larger than the file")
        return storages.setdefault(key, torch.UntypedStorage(size))

    with open(path, "rb") as file:
        magic, _protocol, _system = (_load(file, load_storage) for _ in range(3))
        if magic != _LEGACY_MAGIC:
            raise _Refused("is a pickle, but not a PyTorch checkpoint")
        result = _load(file, load_storage)
        keys = [str(key) for key in _load(file, load_storage)]
        if sorted(keys) != sorted(storages):
            raise _Refused("is damaged: the data that it holds is not the data that it names")
        for key in keys:
            (numel,) = struct.unpack("<q", file.read(8))
            storage = storages[key]
            if numel < 0 or len(storage) % max(numel, 1):
                raise _Refused(f"is truncated or damaged at tensor {key}")
            data = file.read(len(storage))
            if len(data) != len(storage):
                raise _Refused(f"is truncated: the data of tensor {key} is not all there")
            if data:
                storage.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage())
    return result
