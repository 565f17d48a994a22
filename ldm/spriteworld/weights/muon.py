"""Muon for matrices and convolutions, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError

# Quintic Newton-Schulz iteration (Jordan et al. 2024): five rounds bring all singular values to about 1.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5
WIDE = 2  # times as many columns as rows: from there on fewer products do
# Embeddings, and the first and last layers of a network, do better with AdamW; a discriminator must not run ahead.
NOT_HIDDEN = ("embedding", "conv_in.", "conv_out.", "quant_conv.", "input_blocks.0.0.", "out.2.", "discriminator.")


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Return about ``U V^T`` of a matrix' singular value decomposition ``U S V^T``: singular values 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    if wide.shape[1] < WIDE * wide.shape[0]:
        for _ in range(ROUNDS):
            gram = wide @ wide.T
            wide = a * wide + (b * gram + c * gram @ gram) @ wide
    else:  # every round is a polynomial of the first gram matrix: the wide matrix is multiplied once, at the end
        gram, eye = wide @ wide.T, torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
        product = None
        for left in reversed(range(ROUNDS)):
            factor = a * eye + b * gram + c * gram @ gram
            product = factor if product is None else factor @ product
            gram = factor @ gram @ factor if left else gram
        wide = product @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Momentum whose update of every hidden matrix is orthogonalised; a convolution counts as the matrix of its
    flattened filters. The other parameters take AdamW with ``lr``.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". It needs names: ``make_optimizer``
    hands over ``named_parameters``.
    """

    wants_names = True

    def __init__(
        self,
        params: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        muon_lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        """lr: of AdamW; muon_lr: of the orthogonalised updates; weight_decay: of both, decoupled.

        Raises UserError for parameters without names or a rate that is not above 0.
        """
        params = list(params)
        if any(not isinstance(p, tuple) for p in params):
            raise UserError("Muon needs named parameters: (name, parameter) pairs")
        if lr <= 0 or muon_lr <= 0 or not 0 <= momentum < 1:
            raise UserError(f"lr {lr} and muon_lr {muon_lr} must be above 0, momentum {momentum} in [0, 1)")
        hidden = [p for name, p in params if _is_hidden(name, p)]
        rest = [p for name, p in params if not _is_hidden(name, p)]
        shared = {"momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        groups = [{"params": hidden, "lr": muon_lr, "muon": True}, {"params": rest, "lr": lr, "muon": False}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, **shared})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters that have a gradient; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = self._muon if group["muon"] else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    move(parameter, group)
        return loss

    def _muon(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(state["average"], group["momentum"]).flatten(1)
        rows, columns = update.shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        parameter.add_(orthogonalised(update).view_as(parameter), alpha=-scale)

    def _adamw(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state.update(step=0, average=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        first, second = group["betas"]
        state["average"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["average"], root, value=-group["lr"] / (1 - first ** state["step"]))


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not any(part in name for part in NOT_HIDDEN)
