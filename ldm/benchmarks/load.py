"""Measure the memory that loading a published-like checkpoint takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from ldm.benchmarks.reference import our_config
from ldm.config import instantiate_from_config
from ldm.errors import UserError
from ldm.typed import plain

_CHILD = """
import json, sys, torch
from ldm.benchmarks.measure import peak_memory
from ldm.models.build import pack_for_cpu, load_model
import transformers.models.clip.modeling_clip
with peak_memory(torch.device("cpu")) as peak:
    model = load_model(sys.argv[1], None if sys.argv[3] == "-" else json.loads(sys.argv[3]), precision=sys.argv[2])
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    pack_for_cpu(model)
print(json.dumps({"peak": peak(), "model": size}))
"""


def write_checkpoint_like_published(path: Path, size: str) -> int:
    """Write a ``.ckpt`` with random raw and EMA weights, Lightning's other entries around them; return its bytes."""
    with torch.device("meta"):
        model = instantiate_from_config(our_config(size)["model"])
    state = {}
    for name, tensor in model.state_dict().items():
        value = torch.empty(tensor.shape, dtype=tensor.dtype)
        state[name] = (
            value.normal_(0, 0.02) if tensor.is_floating_point() else torch.arange(value.numel()).view_as(value)
        )
        if name.startswith("model."):
            state["model_ema." + name[len("model.") :].replace(".", "")] = state[name].clone()
    extras = {"global_step": 22000, "epoch": 3, "pytorch-lightning_version": "1.4.2", "callbacks": {}}
    torch.save({"state_dict": state, **extras}, path)
    return path.stat().st_size


def benchmark_load(size: str, precision: str, folder: Path) -> dict[str, int]:
    """Load such a file in a fresh process, as editing does; return its and the model's bytes (``file``, ``model``), and
    the most private memory that it took (``peak``)."""
    path = folder / "like-published.ckpt"
    try:
        written = write_checkpoint_like_published(path, size)

        config = "-" if size == "full" else json.dumps(plain(our_config(size)))
        command = [sys.executable, "-c", _CHILD, str(path), precision, config]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            said = result.stderr.strip().splitlines() or ["it said nothing"]
            raise UserError(f"loading failed: {said[-1]}")
        return {"file": written, **json.loads(result.stdout.splitlines()[-1])}
    finally:
        path.unlink(missing_ok=True)
