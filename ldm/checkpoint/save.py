"""Write weights by their published names, all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ldm.checkpoint.read import METADATA_KEY
from ldm.errors import UserError
from ldm.files import replacing


def save_checkpoint(path: str | Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write weights by their published names, ``.safetensors`` or ``.ckpt`` by the path's ending, all or nothing.

    metadata: JSON values, among them ``config``; kept inside the file. Raises UserError for another ending, OSError
    (one line) if the file cannot be written: the disk is full, say.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"cannot save '{path}': the name must end in .safetensors or .ckpt")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        try:
            if path.suffix == ".safetensors":
                write_safetensors(state, temporary, {METADATA_KEY: json.dumps(dict(metadata))})
            else:
                torch.save({"state_dict": state, METADATA_KEY: dict(metadata)}, temporary)
        except (OSError, RuntimeError) as error:  # torch says a full disk with a RuntimeError
            raise OSError(f"cannot write '{path}' ({error})") from error


def write_safetensors(state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors, with the permissions that other files get. Raises OSError if that fails."""
    from safetensors.torch import save_file

    try:
        save_file(dict(state), path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read


def exported(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a module's weights without its averages, tensor by tensor in fp16 on the CPU: no second copy
    of them all is ever on the training's device."""
    return {
        name: tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in module.state_dict().items()
        if not name.startswith("model_ema.")
    }


def weights_hash(network: Any) -> str:
    """Return 16 hex digits that tell a network's weights (or those of its ``model``) from any others; "" of none."""
    module = network if isinstance(network, nn.Module) else getattr(network, "model", None)
    if not isinstance(module, nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
