"""The losses of optimizer steps, kept on the card until they are read, and the report of a bad one."""

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overnight.run import Run

LIMIT = 1e4  # times the first loss (at least 1): no training recovers from more


@dataclass
class LossSum:
    """The loss of an optimizer step summed over its samples, and their count.

    step: in all; index: in its epoch; all from 0. averaged: the gradients are of the loss per sample, because
    the whole batch was computed at once; else they are sums. parts: how many micro-batches.
    """

    step: int
    epoch: int
    index: int
    averaged: bool
    total: float | Tensor = 0.0
    count: float | Tensor = 0.0
    parts: int = 0

    def add(self, loss: Tensor, counted: float | Tensor) -> None:
        self.total = self.total + detached(loss)
        self.count = self.count + counted
        self.parts += 1

    def mean(self) -> float:
        return float(self.total) / float(divisor(self.count))


def divisor(count: float | Tensor) -> float | Tensor:
    """1 for 0. Counts may be sums of weights, so that those below 1 are valid."""
    if isinstance(count, Tensor):
        return torch.where(count <= 0, 1, count)
    return 1.0 if count <= 0 else count


def detached(value: Tensor | float) -> float | Tensor:
    """A number if it is on the host, otherwise a tensor that needs no wait for the card."""
    if not isinstance(value, Tensor):
        return float(value)
    return float(value.detach()) if value.device.type == "cpu" else value.detach().double()


@dataclass(frozen=True)
class Divergence:
    at: LossSum
    loss: float

    def __str__(self) -> str:
        what = "is no number" if math.isnan(self.loss) else f"is {self.loss:g}: training has diverged"
        where = f"epoch {self.at.epoch + 1}, batch {self.at.index + 1}"
        return f"the loss of optimizer step {self.at.step + 1} ({where}) {what}"


class LossMonitor:
    """A part of the checkpoint. first: what is far too large is measured by it."""

    def __init__(self) -> None:
        self.pending = list[LossSum]()
        self.last = deque[float](maxlen=20)
        self.first: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": list(self.last)}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        self.first = found["first"]
        self.last.extend(found["last"])

    @property
    def is_free(self) -> bool:
        """Whether checking costs no wait: the pending losses are on the host."""
        return not any(isinstance(loss.total, Tensor) for loss in self.pending)

    def check(self) -> Divergence | None:
        pending = self.pending
        self.pending = []
        for summed, loss in zip(pending, _means(pending), strict=True):
            too_large = self.first is not None and abs(loss) > LIMIT * max(1.0, abs(self.first))
            if not math.isfinite(loss) or too_large:
                return Divergence(summed, loss)
            self.first = loss if self.first is None else self.first
            self.last.append(loss)
        return None


def _means(sums: list[LossSum]) -> list[float]:
    values = [value for one in sums for value in (one.total, divisor(one.count))]
    on_card = [value.double() for value in values if isinstance(value, Tensor)]
    fetched = iter(torch.stack(on_card).tolist() if on_card else [])
    plain = [next(fetched) if isinstance(value, Tensor) else value for value in values]
    return [total / count for total, count in zip(plain[::2], plain[1::2], strict=True)]


def report(run: Run, found: Divergence, parameters: Mapping[str, Tensor], more: dict[str, Any]) -> None:
    """Publish divergence.json: where, the norm of each gradient, and more facts."""
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    count = 1.0 if found.at.averaged else float(divisor(found.at.count))
    facts = {
        "reason": str(found),
        "step": found.at.step,
        "epoch": found.at.epoch,
        "index": found.at.index,
        "loss": found.loss,
        "gradient_norms": {name: float(grad.norm() / count) for name, grad in gradients.items()},
        "weights_not_finite": [name for name, p in parameters.items() if not bool(torch.isfinite(p).all())],
        **more,
    }
    path = run.folder / "divergence.json"
    path.write_text(json.dumps(_as_json(facts), indent=1), encoding="utf-8")
    run.publish(path)


def _as_json(value: Any) -> Any:
    """NaN and infinities as text."""
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
