"""Latents with the pictures that they should decode to, kept in files: what a decoder alone learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils.data import Dataset

from ldm.checkpoint import replacing, write_safetensors

NAMES = ("z", "edited", "weight")


class LatentPictures(Dataset):
    """Items ``z`` (c h w, unscaled), ``edited`` (3 H W, [-1, 1]) and ``weight`` (1 H W) for ``decoder_only`` training.

    The latents may be an editor's, and the pictures what it should have made: its decoder then learns to draw from
    latents as they come (DREAM's idea, one network further on).
    """

    def __init__(self, files: str | Sequence[str]):
        """files: one or several that ``save_latent_pictures`` wrote. Raises FileNotFoundError or ValueError for what
        is none."""
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
        for path in [files] if isinstance(files, str) else list(files):
            if not Path(path).is_file():
                raise FileNotFoundError(f"no latents '{path}'; scripts/spriteworld.py latents makes such a file")
            with safe_open(path, framework="pt") as stored:
                if set(stored.keys()) != set(NAMES):
                    raise ValueError(f"'{path}' holds no latents with pictures: {', '.join(NAMES)} are expected")
                for name in NAMES:
                    parts[name].append(stored.get_tensor(name))
        if not parts["z"]:
            raise ValueError("files is empty; at least one file of latents is needed")
        if len({part.shape[1:] for part in parts["z"]}) > 1:
            raise ValueError(f"latents of different shapes: {sorted({tuple(p.shape[1:]) for p in parts['z']})}")
        self.tensors = {name: torch.cat(values) for name, values in parts.items()}

    def __len__(self) -> int:
        return len(self.tensors["z"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return item ``index`` in fp32."""
        z, edited, weight = (self.tensors[name][index].float() for name in NAMES)
        return {"z": z, "edited": edited / 127.5 - 1, "weight": weight}


def save_latent_pictures(path: str | Path, z: torch.Tensor, edited: torch.Tensor, weight: torch.Tensor) -> None:
    """Write latents ``n c h w`` (unscaled), pictures ``n 3 H W`` in [-1, 1] and weights ``n 1 H W`` as one file, at 2,
    1 and 2 bytes a value."""
    pixels = ((edited + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    with replacing(path) as temporary:
        write_safetensors({"z": z.half(), "edited": pixels, "weight": weight.half()}, temporary)
