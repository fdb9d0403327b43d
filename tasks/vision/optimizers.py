"""Which weights are updated how, and Muon."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from overnight.training.recipe import cosine
from tasks.shared.muon import orthogonal
from tasks.vision.params import CnnParams

PLAIN = 6.0  # times lr: the rate of what Muon leaves to plain Nesterov steps, the linear layer and the biases


def optimizer(params: CnnParams, model: nn.Module) -> torch.optim.Optimizer:
    """The one asked for; norms and biases do not decay, and the norms' biases have a rate of their own."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    shifts = {id(m.bias) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    filters, matrices = [p for p in learnt if p.ndim == 4], [p for p in learnt if p.ndim == 2]
    others, scaled = (
        [p for p in learnt if p.ndim not in {2, 4} and (id(p) in shifts) is yes] for yes in (False, True)
    )
    muon, lr = params.optimizer == "muon", params.lr
    rest = lr * (PLAIN if muon else 1.0)
    groups: list[dict[str, Any]] = [
        {"params": filters, "lr": lr, "weight_decay": params.weight_decay}
        | ({"orthogonal": True} if muon else {}),
        {"params": matrices, "lr": rest, "weight_decay": params.weight_decay},
        {"params": others, "lr": rest, "weight_decay": 0.0},
        {"params": scaled, "lr": rest * params.bias_scale, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if muon:
        return Muon(groups, params.momentum)
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=params.momentum, nesterov=params.momentum > 0)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, with orthogonal updates for groups that are `orthogonal` (Jordan et al. 2024).

    Such an update is replaced by the nearest orthogonal matrix.
    Such filters are held at a norm of sqrt(filters): they come before a norm, so their length means nothing
    but how far a step turns them.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum, "orthogonal": False, "weight_decay": 0.0, "lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of everything that has a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[weight], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        if group["weight_decay"] and not group["orthogonal"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        kept = state["momentum_buffer"].mul_(momentum).add_(gradient)
        update = gradient.add(kept, alpha=momentum)
        if group["orthogonal"]:
            weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=1e-7))
            update = orthogonal(update.flatten(1)).view_as(update)
        weight.add_(update, alpha=-group["lr"])


def schedule(params: CnnParams) -> Callable[[int, int], float]:
    """Up over the share `warmup` of the steps, then down to zero."""
    if params.schedule == "cosine":
        return cosine(params.warmup)

    def triangle(done: int, total: int) -> float:
        rise = max(1, int(total * params.warmup))
        return min((done + 1) / rise, (total - done) / max(1, total - rise))

    return triangle
