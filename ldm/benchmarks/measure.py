"""Measure speed and memory in one process: variants in turn, ratios between them.

Only ratios taken in one run mean anything: other work on the machine moves every absolute figure.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Series:
    """The times of one measured thing, by variant."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    extra_memory: dict[str, int] = field(default_factory=dict)

    def median(self, variant: str) -> float:
        """Return a variant's median time in seconds."""
        return statistics.median(self.seconds[variant])

    def ratio(self, variant: str, reference: str) -> float:
        """Return how many times faster ``variant`` is than ``reference``: the median over rounds of the ratios."""
        pairs = zip(self.seconds[reference], self.seconds[variant], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleave(name: str, variants: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> Series:
    """Call every variant once per round, in turn, after a warm-up call each."""
    series = Series(name)
    for label, call in variants.items():
        with peak_memory(device) as peak:
            call()
        series.extra_memory[label] = peak()
    for _ in range(rounds):
        for label, call in variants.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            series.seconds.setdefault(label, []).append(time.perf_counter() - start)
    return series


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def private_memory() -> int:
    """Return this process's private resident memory in bytes (Linux; pages of mapped files do not count)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon; memory is measured on Linux only")


@contextmanager
def peak_memory(device: torch.device):
    """Measure the peak memory inside the ``with`` block, above what was in use before: ``with ... as peak: peak()``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    before = highest = private_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, private_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(highest, private_memory()) - before
    finally:
        done.set()
        thread.join()


def report(results: list[Series], reference: str = "diffusers fp32") -> str:
    """Return the table: medians in seconds, how many times faster than the reference, and peak extra memory."""
    lines = [f"{'':<18}{'variant':<18}{'median':>10}{'ratio':>8}{'extra memory':>16}"]
    for series in results:
        for variant in series.seconds:
            memory = series.extra_memory.get(variant)
            shown = "" if memory is None else f"{memory / 2**20:.0f} MiB"
            ratio = series.ratio(variant, reference)
            lines.append(f"{series.name:<18}{variant:<18}{series.median(variant):>9.3f}s{ratio:>7.2f}x{shown:>16}")
    return "\n".join(lines)
