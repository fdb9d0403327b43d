"""Steps of one length in every direction of a matrix: Muon, with Adam for what is no matrix of a layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95  # of matrices, after Nesterov
BETAS = (0.9, 0.98)  # of Adam's
SMALLEST = 1e-8  # that Adam divides by
ROUNDS = 4  # of Newton and Schulz


class MuonAdam(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups that are `orthogonal`, for the others Adam; decay is decoupled.

    A matrix steps by lr times sqrt(rows / columns) where it is tall, otherwise by lr, in every direction.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"orthogonal": False, "weight_decay": 0.0, "lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of everything that has a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    by = self._muon if group["orthogonal"] else self._adam
                    by(weight, weight.grad, group["lr"])
        return loss

    def _muon(self, weight: Tensor, gradient: Tensor, lr: float) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        kept = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        tall = max(1.0, len(weight) / weight.shape[1]) ** 0.5
        weight.add_(orthogonal(gradient.lerp(kept, MOMENTUM), ROUNDS), alpha=-lr * tall)

    def _adam(self, weight: Tensor, gradient: Tensor, lr: float) -> None:
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
        state["step"] += 1
        mean = state["mean"].lerp_(gradient, 1 - BETAS[0])
        square = state["square"].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        root = (square / (1 - BETAS[1] ** state["step"])).sqrt_().add_(SMALLEST)
        weight.addcdiv_(mean, root, value=-lr / (1 - BETAS[0] ** state["step"]))


def orthogonal(matrix: Tensor, rounds: int = 3) -> Tensor:
    """Nearly the orthogonal factor of the polar decomposition, by Newton-Schulz rounds of fifth degree.

    Singular values end near 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(rounds):
        square = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=b, alpha=c), wide, beta=a)
    found: Tensor = wide if x.shape[0] <= x.shape[1] else wide.T
    return found.to(matrix.dtype)
