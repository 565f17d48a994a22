"""The one choice of device and precision."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import Any

import torch

from ldm.checkpoint.diffusers_format import FIRST_STAGE, UNET
from ldm.errors import UserError

WORTH_BF16 = 1.25  # how many times faster than fp32 a CPU must be in bf16 to take it
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device by name; "auto" is this process' GPU if there is one. Raises UserError if it is not there."""
    if name not in DEVICES:
        raise UserError(f"unknown device '{name}'; known: {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but this PyTorch sees no GPU; use --device cpu or auto")
    return local_device() if name != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def local_device() -> torch.device:
    """Return the GPU of this process: by the local rank that torchrun or SLURM gave it, the first one alone.

    A rank beyond the GPUs that this process sees (each may see only its own) counts from the first again.
    Raises UserError for a rank that is no number.
    """
    name = next((name for name in ("LOCAL_RANK", "SLURM_LOCALID") if os.environ.get(name)), None)
    rank = os.environ[name] if name else "0"
    if not rank.isdecimal():
        raise UserError(f"{name}={rank} in the environment is no number of a process; 0, 1, 2 ... is expected")
    return torch.device("cuda", int(rank) % max(1, torch.cuda.device_count()))


def choose_precision(name: str, device: torch.device, training: bool = False) -> str:
    """Return "fp32", "fp16" or "bf16"; "auto" takes what the device is fast in.

    auto: bf16 on a GPU that has it, fp16 on an older one (with a gradient scaler in training); on a CPU bf16 if a trial
    shows that it is clearly faster, else fp32. training: also refuse what a network cannot be trained in.
    Raises UserError for an unknown name, for fp16 on a CPU, where it is slow and not supported throughout, and for
    training in bf16 on a GPU without it.
    """
    if name not in ("auto", *PRECISIONS):
        raise UserError(f"unknown precision '{name}'; known: auto, {', '.join(PRECISIONS)}")
    if device.type == "cpu":
        if name == "fp16":
            raise UserError("precision fp16 is for GPUs; on a CPU use fp32, bf16 or auto")
        return ("bf16" if bf16_is_faster() else "fp32") if name == "auto" else name
    if name in ("fp32", "fp16") or (name == "bf16" and not training):
        return name
    if torch.cuda.get_device_capability(device)[0] >= 8:
        return "bf16"
    if name == "bf16":
        raise UserError("this GPU has no bf16; use fp16 or auto")
    return "fp16"


def dtype_of(precision: str) -> Any:
    """Return the map from a parameter's name to its type: the text encoder always fp32, the first stage never fp16.

    (The text runs once per edit; the published first stage overflows in fp16 on some pictures.)
    """
    main = PRECISIONS[precision]

    def choose(name: str) -> torch.dtype:
        if name.startswith(UNET):
            return main
        return main if name.startswith(FIRST_STAGE) and precision == "bf16" else torch.float32

    return choose


@lru_cache(maxsize=1)
def bf16_is_faster() -> bool:
    """Return whether this CPU multiplies matrices clearly faster in bf16 than in fp32, by trying (some milliseconds).

    Its instructions do not tell: some that have them are only half as fast with them. One thread's own time is taken,
    so that other work on the machine does not decide.
    """
    if not getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"):
        return False
    threads, seconds = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for dtype in (torch.float32, torch.bfloat16):
                seconds[dtype] = _fastest_product(torch.ones(512, 640, dtype=dtype), torch.ones(640, 640, dtype=dtype))
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.float32] > WORTH_BF16 * seconds[torch.bfloat16]


def _fastest_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the least seconds of this thread that one of several products took."""
    times = []
    for _ in range(7):
        start = time.thread_time()
        torch.mm(a, b)
        times.append(time.thread_time() - start)
    return min(times)
