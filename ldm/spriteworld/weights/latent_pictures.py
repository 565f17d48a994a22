"""Latents with the pictures that they should decode to, kept in files: what a decoder alone learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Dataset

from ldm.checkpoint.save import write_safetensors
from ldm.errors import MissingFileError, UserError
from ldm.files import replacing

NAMES = ("z", "edited", "weight")


class LatentPictures(Dataset):
    """Items ``z`` (c h w, unscaled), ``edited`` (3 H W, [-1, 1]) and ``weight`` (1 H W) for ``decoder_only`` training.

    The latents may be an editor's, and the pictures what it should have made: its decoder then learns to draw from
    latents as they come (DREAM's idea, one network further on).
    """

    def __init__(self, files: str | Sequence[str]):
        """files: one or several that ``save_latent_pictures`` wrote. Raises MissingFileError for none, UserError for
        what is no such file, or files that do not belong together."""
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
        for path in [files] if isinstance(files, str) else list(files):
            if not Path(path).is_file():
                raise MissingFileError(f"no latents '{path}'; scripts/spriteworld.py latents makes such a file")
            for name, tensor in _read(path).items():
                parts[name].append(tensor)
        if not parts["z"]:
            raise UserError("files is empty; at least one file of latents is needed")
        for name, values in parts.items():
            if len(shapes := {tuple(part.shape[1:]) for part in values}) > 1:
                raise UserError(f"files with '{name}' of different shapes do not belong together: {sorted(shapes)}")
        self.tensors = {name: torch.cat(values) for name, values in parts.items()}

    def __len__(self) -> int:
        return len(self.tensors["z"])

    def check_model(self, model: Any) -> None:
        """Raise UserError for a first stage whose decoder cannot learn from these latents."""
        if not getattr(model, "decoder_only", False):
            raise UserError("these data hold latents: an encoder learns nothing from them; set decoder_only: true")
        item = self[0]
        shape, size = tuple(item["z"].shape), tuple(item["edited"].shape[1:])
        wanted = (model.embed_dim, *(side // model.downsampling for side in size))
        if shape != wanted:
            raise UserError(
                f"latents of {shape} with pictures of {size}: this first stage makes {wanted} of such pictures"
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return item ``index`` in fp32."""
        z, edited, weight = (self.tensors[name][index].float() for name in NAMES)
        return {"z": z, "edited": edited / 127.5 - 1, "weight": weight}


def _read(path: str) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in NAMES if name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{path}' is not a readable file of latents ({error})") from error
    if len(tensors) < len(NAMES) or len({len(tensor) for tensor in tensors.values()}) > 1:
        raise UserError(f"'{path}' holds no latents with pictures: {', '.join(NAMES)}, as many of each, are expected")
    return tensors


def save_latent_pictures(path: str | Path, z: torch.Tensor, edited: torch.Tensor, weight: torch.Tensor) -> None:
    """Write latents ``n c h w`` (unscaled), pictures ``n 3 H W`` in [-1, 1] and weights ``n 1 H W`` as one file, at 2,
    1 and 2 bytes a value; its folder is made. Raises UserError for latents that are not finite in half precision."""
    if not z.half().isfinite().all():
        raise UserError(
            f"the latents are not finite; '{path}' is not written (fp16 overflows; a GPU with bf16, or a CPU)"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = ((edited + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    with replacing(path) as temporary:
        write_safetensors({"z": z.half(), "edited": pixels, "weight": weight.half()}, temporary)
