"""Divergence: a NaN, infinite or far too large loss, traced to its step without a wait at each step."""

import json
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from overnight.run import Run
from overnight.training.accumulate import LossSum

LIMIT = 1e4  # times the first loss (at least 1): no training recovers from more


@dataclass(frozen=True)
class StepIndex:
    """An optimizer step: number `step` of all, `index` of its epoch, both from 0."""

    step: int
    epoch: int
    index: int


@dataclass(frozen=True)
class Divergence:
    """A bad loss and where it was found. divisor: of the gradients, where they are sums."""

    at: StepIndex
    loss: float
    divisor: float = 1.0

    def __str__(self) -> str:
        what = "is no number" if math.isnan(self.loss) else f"is {self.loss:g}: training has diverged"
        where = f"epoch {self.at.epoch + 1}, batch {self.at.index + 1}"
        return f"the loss of optimizer step {self.at.step + 1} ({where}) {what}"


class LossMonitor:
    """Checks losses, some steps at a time: until then they stay on the card. A part of the checkpoint."""

    def __init__(self) -> None:
        self.pending = list[tuple[StepIndex, LossSum]]()
        self.last = deque[float](maxlen=20)
        self.first: float | None = None

    def add(self, at: StepIndex, loss: LossSum) -> None:
        """Take the loss of one optimizer step."""
        self.pending.append((at, loss))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"first": self.first, "last": list(self.last)}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Restore what state_dict returned."""
        self.first = found["first"]
        self.last.extend(found["last"])

    @property
    def is_free(self) -> bool:
        """Whether checking costs no wait: the pending losses are on the host."""
        return all(not isinstance(loss.total, Tensor) for _, loss in self.pending)

    def check(self) -> Divergence | None:
        """The first bad loss among those pending."""
        pending = self.pending
        self.pending = []
        for (at, summed), loss in zip(pending, _means([summed for _, summed in pending]), strict=True):
            too_large = self.first is not None and abs(loss) > LIMIT * max(1.0, abs(self.first))
            if not math.isfinite(loss) or too_large:
                return Divergence(at, loss, 1.0 if summed.averaged else float(summed.divisor))
            self.first = loss if self.first is None else self.first
            self.last.append(loss)
        return None


def _means(sums: list[LossSum]) -> list[float]:
    """Losses per sample, with a single wait for the card."""
    values = [value for one in sums for value in (one.total, one.divisor)]
    on_card = [value.double() for value in values if isinstance(value, Tensor)]
    fetched = iter(torch.stack(on_card).tolist() if on_card else [])
    plain = [next(fetched) if isinstance(value, Tensor) else value for value in values]
    return [total / count for total, count in zip(plain[::2], plain[1::2], strict=True)]


def report(
    run: Run,
    found: Divergence,
    model: nn.Module,
    samples: list[int],
    monitor: LossMonitor,
    more: dict[str, Any],
) -> None:
    """Publish divergence.json: where, which samples, the losses before, and the norm of each gradient."""
    norms = {
        name: float(p.grad.norm() / found.divisor)
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    odd = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    facts = {
        "reason": str(found),
        **vars(found.at),
        "loss": found.loss,
        "losses_before": list(monitor.last),
        "samples": samples,
        "gradient_norms": norms,
        "weights_not_finite": odd,
        **more,
    }
    path = run.folder / "divergence.json"
    path.write_text(
        json.dumps({name: _as_json(value) for name, value in facts.items()}, indent=1), encoding="utf-8"
    )
    run.publish(path)


def _as_json(value: Any) -> Any:
    """NaN and infinities as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
