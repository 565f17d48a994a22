"""Learning-rate schedules: classes whose ``schedule(step)`` is a factor on the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ldm.errors import UserError


class LambdaLinearScheduler:
    """Cycles of a linear warm-up and a linear decay (upstream's, by its parameter names)."""

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
    ):
        """One value per cycle: from f_start to f_max over warm_up_steps, then towards f_min at the cycle's end."""
        lengths = {len(v) for v in (warm_up_steps, f_min, f_max, f_start, cycle_lengths)}
        if len(lengths) != 1:
            raise UserError("warm_up_steps, f_min, f_max, f_start and cycle_lengths need one value per cycle each")
        self.cycles = list(zip(warm_up_steps, f_min, f_max, f_start, cycle_lengths, strict=True))

    def schedule(self, step: int) -> float:
        """Return the factor at an optimiser step."""
        start = 0
        cycle = 0
        while cycle < len(self.cycles) - 1 and step - start > self.cycles[cycle][-1]:
            start += self.cycles[cycle][-1]
            cycle += 1
        warm_up, low, high, first, length = self.cycles[cycle]
        step -= start
        if step < warm_up:
            return first + (high - first) * step / warm_up
        return low + (high - low) * max(0, length - step) / length


class CosineSchedule:
    """A linear warm-up, then half a cosine down to ``f_min`` at ``total_steps``."""

    def __init__(self, warm_up_steps: int, total_steps: int, f_min: float = 0.0):
        """Raises UserError unless 0 <= warm_up_steps < total_steps."""
        if not 0 <= warm_up_steps < total_steps:
            raise UserError(f"warm_up_steps {warm_up_steps} must lie between 0 and total_steps {total_steps}")
        self.warm_up_steps, self.total_steps, self.f_min = warm_up_steps, total_steps, f_min

    def schedule(self, step: int) -> float:
        """Return the factor at an optimiser step."""
        if step < self.warm_up_steps:
            return (step + 1) / self.warm_up_steps
        done = min(1.0, (step - self.warm_up_steps) / (self.total_steps - self.warm_up_steps))
        return self.f_min + (1 - self.f_min) * (1 + math.cos(math.pi * done)) / 2
