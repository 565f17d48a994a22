"""Exponential moving average of the weights, stored under the published names (``model_ema.`` without dots)."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

from ldm.errors import UserError


def ema_name(name: str) -> str:
    """Return the name of a parameter's average inside ``model_ema``: its own name without the dots."""
    return name.replace(".", "")


class LitEma(nn.Module):
    """Averages of a module's trainable parameters, as buffers.

    The decay warms up: ``min(decay, (1 + n) / (10 + n))`` at update n (CompVis ``LitEma``).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        """Start from the model's present values. Raises UserError for a decay outside [0, 1] or colliding names."""
        super().__init__()
        if not 0 <= decay <= 1:
            raise UserError(f"ema decay is {decay}; it must lie in [0, 1]")
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32, device="cpu"))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int, device="cpu"))
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        self._shadow_of = {n: ema_name(n) for n in names}
        if len(set(self._shadow_of.values())) != len(names):
            raise UserError("two parameter names are equal without their dots; the EMA file format cannot hold both")
        parameters = dict(model.named_parameters())
        for name, shadow in self._shadow_of.items():
            self.register_buffer(shadow, parameters[name].detach().clone())
        self._stored: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move every average towards the model's present value."""
        self.num_updates += 1
        n = int(self.num_updates)
        weight = 1 - min(float(self.decay), (1 + n) / (10 + n))
        parameters = dict(model.named_parameters())
        shadows = [getattr(self, s) for s in self._shadow_of.values()]
        present = [parameters[n].detach().to(s) for n, s in zip(self._shadow_of, shadows, strict=True)]
        torch._foreach_lerp_(shadows, present, weight)

    @contextmanager
    def swapped_into(self, model: nn.Module):
        """Let the model hold the averages inside the ``with`` block, and its own values again afterwards."""
        parameters = dict(model.named_parameters())
        pairs = [(parameters[n], getattr(self, s)) for n, s in self._shadow_of.items()]
        own = [p.data for p, _ in pairs]
        for p, shadow in pairs:
            p.data = shadow.data.to(p.dtype)
        try:
            yield
        finally:
            for (p, _), data in zip(pairs, own, strict=True):
                p.data = data
