"""Files: written whole or not at all, and told apart by a hash of their contents."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.errors import MissingFileError, UserError


@contextmanager
def replacing(path: str | Path):
    """Give a temporary path beside ``path``, and put it in its place when the block ends without an error.

    So a reader never sees half a file, and a full disk leaves what was there before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(path: str | Path) -> str:
    """Return 16 hex digits that tell checkpoints apart: SHA-256 over the size and samples of the contents.

    Files up to 64 MiB are hashed whole; larger ones by their first and last MiB and 256 blocks of 64 KiB between, so
    that a 7.7 GB file takes a moment. A folder is hashed over its safetensors files.
    """
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with open(file, "rb") as stream:
            if size <= 64 << 20:
                digest.update(stream.read())
                continue
            digest.update(stream.read(1 << 20))
            for i in range(256):
                stream.seek((1 << 20) + (size - (2 << 20)) * i // 256)
                digest.update(stream.read(64 << 10))
            stream.seek(size - (1 << 20))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def content_hash(content: bytes | str) -> str:
    """Return 16 hex digits of the SHA-256 of bytes, or of a text as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the ``content_hash`` of a whole file."""
    return content_hash(path.read_bytes())


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds (UTF-8, with or without a byte order mark).

    Raises MissingFileError if it is not there, UserError (which names it) if it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"'{path}' does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"'{path}' is no JSON that can be read ({error})") from error


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON whole or not at all. indent: spaces, None for one line."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Raise UserError now if a file at ``path`` could not be written later (nothing is left behind)."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    probe = folder / f".{Path(path).name}.probe.tmp"
    try:
        if not folder.is_dir():
            raise NotADirectoryError(20, f"'{folder}' is not a folder")
        if Path(path).is_dir():
            raise IsADirectoryError(21, "it is a folder")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror or error})") from error
