"""The shipped pictures of the world: photos of every subject, pictures of every class, and a sheet of all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.images import save_image
from ldm.spriteworld.world.grids import grid
from ldm.spriteworld.world.scene import ANIMALS, PLACES, STYLES, SUBJECTS, Scene, draw, random_scene, subject_scene


def all_photos(data: Path) -> list[Path]:
    """Write twelve photos of every subject and twelve pictures of every class; return their paths.

    data: the folder; they go into ``subjects/<name>/`` and ``pictures/<class>/`` in it.
    """
    paths = [path for name in SUBJECTS for path in write_photos(data / "subjects" / name, name)]
    return paths + [path for animal in ANIMALS for path in write_pictures(data / "pictures" / animal, animal)]


def write_photos(folder: Path, name: str, n: int = 12, size: int = 64) -> list[Path]:
    """Write a subject's photos ``01.png`` to ``n.png``: different places and poses, by day. Returns the paths."""
    return _write(folder, name, 81, n, size, lambda rng: subject_scene(rng, name, style="day", hat=None))


def write_pictures(folder: Path, animal: str, n: int = 12, size: int = 64) -> list[Path]:
    """Write pictures ``01.png`` to ``n.png`` of an animal in its natural coats, by day. Returns the paths."""
    bare = {"style": "day", "hat": None, "collar": None}
    return _write(folder, animal, 83, n, size, lambda rng: random_scene(rng, animal=animal, **bare))


def _write(
    folder: Path, name: str, series: int, n: int, size: int, scene: Callable[[np.random.Generator], Scene]
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(n):
        rng = np.random.default_rng([sum(map(ord, name)), i, series])
        paths.append(folder / f"{i + 1:02d}.png")
        draw(scene(rng), size).save(paths[-1])
    return paths


def world_sheet(path: Path) -> Path:
    """Write a sheet of the world: every animal and subject in every place, then the styles; return its path."""
    columns: list[list[Any]] = []
    makers: list[Callable] = [lambda rng, a=a, **fixed: random_scene(rng, animal=a, **fixed) for a in ANIMALS]
    makers += [lambda rng, s=s, **fixed: subject_scene(rng, s, **fixed) for s in SUBJECTS]
    for k, make in enumerate(makers):
        column = [draw(make(np.random.default_rng([3, k, i]), place=p, style="day")) for i, p in enumerate(PLACES)]
        column += [draw(make(np.random.default_rng([4, k, i]), style=s)) for i, s in enumerate(STYLES[1:])]
        columns.append(column)
    save_image(grid(columns), path)
    return path
