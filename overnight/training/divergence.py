"""A loss that is no number, or beyond all bounds: found at the step where it happened, without waiting for the card at every step."""

import json
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from overnight.run import Run
from overnight.training.accumulate import Sums

BEYOND = 1e4  # times the first loss (at least 1): nothing comes back from there


@dataclass(frozen=True)
class Place:
    """An optimizer step: number `step` of all, `index` of its epoch, both from 0."""

    step: int
    epoch: int
    index: int


@dataclass(frozen=True)
class Fault:
    """What went wrong, where."""

    place: Place
    loss: float
    divisor: float = 1.0  # of the gradients, where they are sums

    def __str__(self) -> str:
        what = "is no number" if math.isnan(self.loss) else f"is {self.loss:g}: training has diverged"
        return f"the loss of optimizer step {self.place.step + 1} (epoch {self.place.epoch + 1}, batch {self.place.index + 1}) {what}"


class Watch:
    """The losses since the last look; on a card they stay there until somebody looks. What the next are measured by is in the checkpoint."""

    def __init__(self) -> None:
        self.pending = list[tuple[Place, Sums]]()
        self.last = deque[float](maxlen=20)
        self.first: float | None = None

    def add(self, place: Place, sums: Sums) -> None:
        """One optimizer step's loss."""
        self.pending.append((place, sums))

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {"first": self.first, "last": list(self.last)}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """What state_dict gave."""
        self.first = found["first"]
        self.last.extend(found["last"])

    @property
    def free(self) -> bool:
        """Whether looking costs nothing: the losses are on the host."""
        return all(not isinstance(sums.loss, Tensor) for _, sums in self.pending)

    def look(self) -> Fault | None:
        """The first bad one among the pending losses."""
        pending, self.pending = self.pending, []
        for (place, sums), loss in zip(pending, _means([sums for _, sums in pending]), strict=True):
            if not math.isfinite(loss) or (
                self.first is not None and abs(loss) > BEYOND * max(1.0, abs(self.first))
            ):
                return Fault(place, loss, 1.0 if sums.averaged else float(sums.divisor))
            self.first = loss if self.first is None else self.first
            self.last.append(loss)
        return None


def _means(sums: list[Sums]) -> list[float]:
    """Losses per sample, with a single wait for the card."""
    values = [v for s in sums for v in (s.loss, s.divisor)]
    waiting = [v.double() for v in values if isinstance(v, Tensor)]
    fetched = iter(torch.stack(waiting).tolist() if waiting else [])
    found = [next(fetched) if isinstance(v, Tensor) else v for v in values]
    return [loss / count for loss, count in zip(found[::2], found[1::2], strict=True)]


def report(
    run: Run, fault: Fault, model: nn.Module, samples: list[int], watch: Watch, more: dict[str, Any]
) -> None:
    """Publish divergence.json: where, which samples, the losses before, and the norm of each gradient."""
    norms = {
        name: float(p.grad.norm() / fault.divisor)
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    odd = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    found = {
        "reason": str(fault),
        **vars(fault.place),
        "loss": fault.loss,
        "losses_before": list(watch.last),
        "samples": samples,
        "gradient_norms": norms,
        "weights_not_finite": odd,
        **more,
    }
    path = run.folder / "divergence.json"
    path.write_text(
        json.dumps({name: _plain(value) for name, value in found.items()}, indent=1), encoding="utf-8"
    )
    run.publish(path)


def _plain(value: Any) -> Any:
    """JSON has no NaN: such numbers become text."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
