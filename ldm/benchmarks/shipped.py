"""Time what a newcomer waits for: loading the shipped editor in a fresh process, and one edit with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ldm.errors import UserError

_CHILD = """
import json, sys, time
import torch
from ldm.checkpoint.read import read_checkpoint
from ldm.data.images import open_rgb
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
ckpt, picture, rounds, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if threads:
    torch.set_num_threads(threads)
began = time.perf_counter()
checkpoint = read_checkpoint(ckpt)
editor = ImageEditor.from_checkpoint(checkpoint, device="cpu", precision="auto")
loaded = time.perf_counter() - began
settings, photo = EditSettings.of_checkpoint(checkpoint.metadata), open_rgb(picture)
edits = []
for seed in range(rounds):
    began = time.perf_counter()
    editor.edit(photo, "replace the wolf with a cat", settings, seeds=[seed])
    edits.append(time.perf_counter() - began)
print(json.dumps({"load": loaded, "edits": edits, "threads": torch.get_num_threads()}))
"""


def benchmark_shipped(ckpt: Path, picture: Path, rounds: int, threads: int | None = None) -> dict:
    """Return seconds on the CPU in a fresh process, after Python's imports: ``load`` of an editor, ``edits`` one after
    the other (the first lays out the weights), and how many ``threads`` it took. Raises UserError if it fails."""
    command = [sys.executable, "-c", _CHILD, str(ckpt), str(picture), str(rounds), str(threads or 0)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"editing with '{ckpt}' failed: {said[-1]}")
    return json.loads(result.stdout.splitlines()[-1])


def report_shipped(results: dict) -> str:
    """Return the seconds of ``benchmark_shipped`` as a few lines."""
    first, *later = results["edits"]
    lines = [f"loading {results['load']:.2f} s, first edit {first:.2f} s"]
    if later:
        lines.append(f"later edits {sorted(later)[len(later) // 2]:.2f} s (median of {len(later)})")
    threads = f"{results['threads']} thread{'s' * (results['threads'] > 1)}"
    return "\n".join([*lines, f"CPU, {threads}, one picture, the settings kept with the weights"])
