"""What would fit: the largest micro-batch, out of few traces."""

from collections.abc import Callable
from typing import Any

from overnight.memory.micro_batches import even, half
from overnight.memory.prediction import Constants, Prediction, Target, Unknown, traced, weighed
from overnight.memory.trace import Trace

MOST = 2**20  # samples at once
TRIES = 12  # looks after the first two
Peak = Callable[[int], Prediction]


class Scaled:
    """Predictions of one recipe for any micro-batch out of few traces: a program's allocations grow evenly with its samples.

    Two traces tell how, for micro-batches below the effective batch (which are added up) and from it on. Where the two differ in
    more than sizes, every micro-batch is traced.
    """

    def __init__(self, recipe: Any, target: Target, data_mib: float, constants: Constants) -> None:
        self.recipe, self.target, self.data_mib, self.constants = recipe, target, data_mib, constants
        self.traces = dict[int, Trace]()

    def exact(self, n: int) -> Prediction:
        """By a trace of its own."""
        try:
            return self._weighed(self._traced(n), n)
        except Unknown as error:
            return Prediction(self.target, n, unknown=str(error))

    def near(self, n: int) -> Prediction:
        """Out of the two traces next to it."""
        batch = self.recipe.params.batch
        one, other = (batch, 2 * batch) if n >= batch else (half(batch), half(half(batch)))
        try:
            found = (
                self._traced(one).between(self._traced(other), (n - one) / (other - one))
                if one != other
                else None
            )
        except Unknown as error:
            return Prediction(self.target, n, unknown=str(error))
        return self.exact(n) if found is None else self._weighed(found, n)

    def _traced(self, n: int) -> Trace:
        if n not in self.traces:
            self.traces[n] = traced(self.recipe, n, self.target)
        return self.traces[n]

    def _weighed(self, trace: Trace, n: int) -> Prediction:
        return weighed(
            trace, n, self.target, self.data_mib, self.constants, self.recipe.eval_example is not None
        )

    def largest(self, budget_mib: float) -> Prediction | None:
        """Of the largest micro-batch that fits: any number above the effective batch, one that cuts it evenly below. None: not one sample."""
        batch = self.recipe.params.batch
        if self.exact(batch).verdict(budget_mib) == "fits":
            found = largest(self.near, budget_mib, MOST, batch)
            n = found.micro_batch if found else batch
            return next(
                (p for p in map(self.exact, (n, n * 63 // 64)) if p.verdict(budget_mib) == "fits"),
                self.exact(batch),
            )
        near = [n for n in even(batch)[1:] if self.near(n).verdict(budget_mib) == "fits"]
        return next((p for p in map(self.exact, near[:2]) if p.verdict(budget_mib) == "fits"), None)


def largest(peak: Peak, budget_mib: float, most: int, start: int) -> Prediction | None:
    """The prediction of the largest micro-batch up to `most` that fits, None when not even one sample does.

    Memory grows nearly evenly with the samples, so a line through the last two looks says where to look next.
    """
    looked = list[Prediction]()

    def look(n: int) -> None:
        looked.append(peak(n))

    look(min(start, most))
    if looked[0].unknown:
        return None
    look(max(1, looked[0].micro_batch // 2) if looked[0].micro_batch > 1 else min(2, most))
    for _ in range(TRIES):
        fits = [p.micro_batch for p in looked if p.verdict(budget_mib) == "fits"]
        low, high = (
            max(fits, default=0),
            min((p.micro_batch for p in looked if p.micro_batch not in fits), default=most + 1),
        )
        if high - low <= max(1, low // 64):
            break
        look(min(max(_line(looked[-2], looked[-1], budget_mib), low + 1), high - 1))
    return max(
        (p for p in looked if p.verdict(budget_mib) == "fits"), key=lambda p: p.micro_batch, default=None
    )


def _line(one: Prediction, other: Prediction, budget_mib: float) -> int:
    """Where the line through two predictions meets the budget."""
    if one.micro_batch == other.micro_batch:
        return one.micro_batch
    slope = (one.needed_mib - other.needed_mib) / (one.micro_batch - other.micro_batch)
    return 2**31 if slope <= 0 else max(1, int(other.micro_batch + (budget_mib - other.needed_mib) / slope))
