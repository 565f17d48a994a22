"""Files: written whole or not at all, and told apart by a hash of their contents."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path


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


def picture_hash(path: Path) -> str:
    """Return 16 hex digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
