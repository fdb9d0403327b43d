"""The largest micro-batch that fits, from few traces."""

from collections.abc import Callable
from typing import Any

from overnight.memory.prediction import Constants, MemoryEstimate, estimated, traced
from overnight.memory.request import micro_batches
from overnight.memory.trace import Trace
from overnight.memory.usage import half

MOST = 2**20  # samples at once
TRIES = 12  # predictions after the first two
Peak = Callable[[int], MemoryEstimate]


class ScaledPredictions:
    """Predictions of one recipe for any micro-batch: allocations grow linearly with samples.

    Two traces give the slope below the effective batch (whose micro-batches are accumulated), two others from
    it on. Where the two differ in more than sizes, every micro-batch is traced.
    """

    def __init__(self, recipe: Any, constants: Constants) -> None:
        self.recipe = recipe
        self.batch = recipe.params.batch
        self.constants = constants
        self.traces = dict[int, Trace]()

    def exact(self, n: int) -> MemoryEstimate:
        return self._estimate(n, lambda: self._traced(n))

    def near(self, n: int) -> MemoryEstimate:
        one = self.batch if n >= self.batch else half(self.batch)
        other = 2 * self.batch if n >= self.batch else half(one)

        def between() -> Trace:
            found = self._traced(one).between(self._traced(other), (n - one) / (other - one))
            return found or self._traced(n)

        return self.exact(n) if one == other else self._estimate(n, between)

    def _traced(self, n: int) -> Trace:
        if n not in self.traces:
            self.traces[n] = self.trace(n)
        return self.traces[n]

    def trace(self, n: int) -> Trace:
        return traced(self.recipe, n, "cuda")

    def _estimate(self, n: int, trace: Callable[[], Trace]) -> MemoryEstimate:
        sliced = self.recipe.eval_example is not None
        return estimated(trace, n, "cuda", 0.0, self.constants, sliced)

    def largest(self, budget_mib: float) -> MemoryEstimate | None:
        """Of the largest micro-batch above the effective batch that fits, else one that cuts it evenly.

        None when not even one sample fits.
        """
        batch = self.batch
        if self.exact(batch).fits(budget_mib):
            found = largest(self.near, budget_mib, MOST, batch)
            n = found.micro_batch if found else batch
            return next(
                (p for p in map(self.exact, (n, n * 63 // 64)) if p.fits(budget_mib)), self.exact(batch)
            )
        near = [n for n in micro_batches(batch)[1:] if self.near(n).fits(budget_mib)]
        return next((p for p in map(self.exact, near[:2]) if p.fits(budget_mib)), None)


def largest(peak: Peak, budget_mib: float, most: int, start: int) -> MemoryEstimate | None:
    """Of the largest micro-batch up to `most` that fits; None when not even one sample does.

    Memory grows nearly linearly, so the line through the last two predictions gives the next one to try.
    """
    tried = [peak(min(start, most))]
    if tried[0].unknown:
        return None
    tried.append(peak(max(1, tried[0].micro_batch // 2) if tried[0].micro_batch > 1 else min(2, most)))
    for _ in range(TRIES):
        fits = [p.micro_batch for p in tried if p.fits(budget_mib)]
        low = max(fits, default=0)
        high = min((p.micro_batch for p in tried if p.micro_batch not in fits), default=most + 1)
        if high - low <= max(1, low // 64):
            break
        tried.append(peak(min(max(_line(tried[-2], tried[-1], budget_mib), low + 1), high - 1)))
    return max((p for p in tried if p.fits(budget_mib)), key=lambda p: p.micro_batch, default=None)


def _line(one: MemoryEstimate, other: MemoryEstimate, budget_mib: float) -> int:
    if one.micro_batch == other.micro_batch:
        return one.micro_batch
    slope = (one.needed_mib - other.needed_mib) / (one.micro_batch - other.micro_batch)
    return 2**31 if slope <= 0 else max(1, int(other.micro_batch + (budget_mib - other.needed_mib) / slope))
