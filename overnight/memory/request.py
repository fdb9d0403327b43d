"""The MiB of the card that a step requests, and for which micro-batch: measured, predicted or declared.

measured   what the micro-batch took in its own runs (measured())
predicted  a trace of its training, widened by the errors of its family; or the step's own formula
declared   the step's `vram_mib`: FIXED of it for every micro-batch, the rest in proportion to the micro-batch

Of the divisors and halves of the effective batch, the largest whose estimate is within the budget is chosen.
If none is, the smallest that is not known to be too large gets the whole budget.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from overnight.artifact import Artifact, DataSpec
from overnight.errors import DoesNotFit, OvernightError
from overnight.gpu.card import Card
from overnight.gpu.cuda_context import overhead
from overnight.gpu.out_of_memory import NEAR
from overnight.memory import history
from overnight.memory.formulas import Formula
from overnight.memory.history import History
from overnight.memory.prediction import MemoryEstimate
from overnight.memory.usage import Usage, event, half

if TYPE_CHECKING:
    from overnight.step import Step

ROUND_MIB = 64
FIXED = 0.25  # of a declared amount, for every micro-batch: weights, optimizer, workspace
LAST = 5  # clean runs whose largest peak counts
MARGIN = 1 / 8  # above a peak, so that an equal run stays below 95 % of its cap
LEAST_MARGIN_MIB = 64
RAISE = 1.25  # of a cap that was filled
DOUBLE = 2.0  # of a cap that was too small, until a run has finished since
LARGEST_SHARE = 0.97  # a cap above this share of the room, once filled, is not tried again
ERROR_SLACK = 0.01
Predict = Callable[[int], MemoryEstimate | None]  # of a micro-batch


@dataclass(frozen=True)
class MemoryRequest:
    """MiB to request from the ledger. micro_batch: None for a step without one.

    smaller: (MiB, micro-batch) that would do as well, the largest first. predicted: as traced.
    """

    mib: int
    micro_batch: int | None = None
    exclusive: bool = False
    smaller: tuple[tuple[int, int], ...] = ()
    why: str = ""
    predicted: MemoryEstimate | None = field(default=None, compare=False)

    def events(self) -> list[dict[str, Any]]:
        size = f"micro-batch {self.micro_batch}, " if self.micro_batch else ""
        alone = ", alone" if self.exclusive else ""
        line = f"asks for {self.mib:,} MiB of the card{alone} ({size}{self.why})"
        events = [event("log", text=line), event("param", name="usage/why", value=self.why)]
        if self.predicted and self.predicted.unknown:
            note = f"its memory is not predicted: {self.predicted.unknown}"
            events += [event("log", text=note), event("param", name="usage/not_predicted", value=note)]
        return events

    def micro_batch_of(self, granted_mib: int) -> int | None:
        return next((n for mib, n in self.smaller if mib == granted_mib < self.mib), self.micro_batch)

    def usage(self) -> dict[str, float]:
        """Fields of Usage that are known before the run."""
        asked: dict[str, float] = {"asked_mib": self.mib}
        found = self.predicted
        if not found or found.unknown:
            return asked
        edges = {"predicted_low_mib": found.low_mib, "predicted_high_mib": found.high_mib}
        return asked | {"predicted_mib": found.mib} | edges


def declared_mib(step: "Step[Any, Any]", params: Any) -> int | None:
    """MiB of the card by the config (`vram_mib` of its Params), else by the step; None: by neither."""
    given: int | None = getattr(params, "vram_mib", None)
    return step.vram_mib or None if given is None else given


def micro_batches(batch: int) -> list[int]:
    """Divisors of the batch, and its repeated halves; the largest first."""
    found = {n for n in range(1, batch + 1) if batch % n == 0}
    while batch > 1:
        batch = half(batch)
        found.add(batch)
    return sorted(found, reverse=True)


def plan_request(
    step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, predict: Predict | None = None
) -> MemoryRequest:
    """The micro-batch to start with, and the MiB to lease for it. predict: for what is not stored yet.

    Raises DoesNotFit when 1, or the micro_batch that a user set, or the whole of a step without one, is known
    not to fit.
    """
    planner = _Planner(step, arguments, card, predict)
    if declared_mib(step, planner.params) == 0:
        return MemoryRequest(0, why="declared: nothing of the card")
    if planner.formula is not None and planner.formula.none_of(card):
        return MemoryRequest(0, why="it runs on the processor here: nothing of the card")
    estimates = dict[int, MemoryEstimate]()
    for size in planner.sizes:
        estimates[size] = planner.estimate(size)
        if estimates[size].fits(planner.room_mib):
            break
    chosen = min((n for n, found in estimates.items() if found.low_mib <= planner.room_mib), default=None)
    if chosen is None:
        raise DoesNotFit(planner.refusal(min(estimates), estimates[min(estimates)].why))
    return MemoryRequest(
        planner.amount(estimates[chosen]),
        chosen or None,
        planner.exclusive(chosen),
        planner.smaller(chosen, planner.amount(estimates[chosen])),
        estimates[chosen].why,
        planner.prediction(chosen),
    )


def spec_of(arguments: Sequence[Any]) -> DataSpec | None:
    """Shapes of the data that a step trains on; None while they are unknown."""
    found = next((a.spec for a in arguments if isinstance(a, Artifact)), DataSpec())
    return None if found == DataSpec() else found


class _Planner:
    """Estimates are of the allocator, without the CUDA context."""

    def __init__(
        self, step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, predict: Predict | None
    ) -> None:
        self.step = step
        self.arguments = arguments
        self.card = card
        self.predict = predict
        self.params: Any = arguments[0] if arguments else None
        self.batch = getattr(self.params, "batch", 0) if hasattr(self.params, "micro_batch") else 0
        self.overhead_mib = overhead(card)
        self.room_mib = card.budget_mib - self.overhead_mib
        self.key = history.step_key(step, arguments)
        self.history = History(card)
        self.runs = self.history.runs(self.key)
        self.predictions = dict[int, MemoryEstimate | None]()

    @cached_property
    def formula(self) -> Formula | None:
        """The step's own; None without one, or for data of unknown shape."""
        given = [a.spec if isinstance(a, Artifact) else a for a in self.arguments[1:]]
        if self.step.peak is None or DataSpec() in given:
            return None
        with suppress(OvernightError):  # the step itself will report it
            return Formula.of(self.step.peak(self.params, *given))
        return None

    @cached_property
    def sizes(self) -> list[int]:
        """The micro-batch that a user set, the candidates, or [0] for a step without one."""
        given = getattr(self.params, "micro_batch", None)
        if given:
            return [int(given)]
        if self.step.recipe is None or not self.batch:
            return [0]
        found = self.prediction(self.batch)
        return [0] if found and found.whole else micro_batches(self.batch)

    def estimate(self, size: int) -> MemoryEstimate:
        """By measurement, else by prediction, else by declaration; at least what smaller ones needed."""
        found = measured(self.runs, size) or self.predicted(size) or self.declared(size)
        smaller = {n for run in self.runs for n in (*run.too_large, run.ended_with) if 0 < n < size}
        known = [found, *filter(None, (measured(self.runs, n) for n in smaller))]
        low = max(one.low_mib for one in known)
        high = max(LEAST_MARGIN_MIB, *(one.high_mib for one in known))
        found = replace(found, low_mib=low, high_mib=high, needed_mib=max(found.needed_mib, low))
        device = max(self.device_peaks(size), default=0.0)
        if not device or _with_margin(device) <= high + self.overhead_mib:
            return found
        why = f"measured: the whole card held {device:,.0f} MiB more while it ran alone"
        return replace(found, high_mib=_with_margin(device) - self.overhead_mib, why=why)

    def prediction(self, size: int) -> MemoryEstimate | None:
        """Predicted peak of micro-batches of `size` samples; 0: of the whole batch.

        None without a recipe, or for data of unknown shape.
        """
        if self.step.recipe is None or spec_of(self.arguments) is None:
            return None
        n = size or max(self.batch, 1)
        if n not in self.predictions:
            stored = self.history.prediction(self.key, n)
            self.predictions[n] = stored or (self.predict(n) if self.predict else None)
        return self.predictions[n]

    def predicted(self, size: int) -> MemoryEstimate | None:
        traced = self.prediction(size)
        if traced and not traced.unknown:
            found = calibrated(traced, self.history.family(history.family(self.step, self.params)))
            return replace(found, why=f"predicted: {found.low_mib:,.0f} to {found.high_mib:,.0f} MiB")
        if self.formula is None or self.formula.unknown:
            return None
        least, high = self.formula.least, self.formula.high
        why = f"by formula: {self.formula.low:,.0f} to {high:,.0f} MiB"
        if self.formula.advice and high > self.room_mib:
            why += f" ({self.formula.advice(self.card.budget_mib)})"
        return MemoryEstimate(low_mib=least, high_mib=high, needed_mib=high, why=why)

    def declared(self, size: int) -> MemoryEstimate:
        whole = declared_mib(self.step, self.params) or self.card.budget_mib
        mib = float(whole - self.overhead_mib)
        why = f"declared: {whole:,} MiB"
        if not size:
            return MemoryEstimate(
                low_mib=0 if self.step.recipe else mib, high_mib=mib, needed_mib=mib, why=why
            )
        if size < self.batch:
            mib *= FIXED + (1 - FIXED) * size / self.batch
            why += f" for all {self.batch} samples at once"
        return MemoryEstimate(high_mib=mib, needed_mib=mib, why=why)

    def device_peaks(self, size: int) -> list[float]:
        """Of the last runs that ran alone for memory outside the cap."""
        alone = [run for run in self.runs if run.finished and run.exclusive and run.begun_with == size]
        uncapped = [run for run in alone if self.step.uncapped or run.uncapped]
        return [run.device_peak_mib for run in uncapped if run.device_peak_mib is not None][-LAST:]

    def amount(self, found: MemoryEstimate) -> int:
        whole = found.high_mib + self.overhead_mib
        return min(-int(-whole // ROUND_MIB) * ROUND_MIB, self.card.budget_mib)

    def exclusive(self, size: int) -> bool:
        uncapped = self.step.uncapped or any(run.uncapped for run in self.runs)
        return bool(getattr(self.params, "exclusive", False)) or (uncapped and not self.device_peaks(size))

    def smaller(self, chosen: int, mib: int) -> tuple[tuple[int, int], ...]:
        found = list[tuple[int, int]]()
        for size in self.sizes if self.card.policy == "shrink" else []:
            other = self.estimate(size) if size < chosen else None
            if other and other.fits(self.room_mib) and self.amount(other) < mib:
                mib = self.amount(other)
                found.append((mib, size))
        return tuple(found)

    def refusal(self, size: int, why: str) -> str:
        given = getattr(self.params, "micro_batch", None) or 0
        context = f", {self.overhead_mib} of them for the CUDA context" if self.overhead_mib else ""
        fixed = f"leave out micro_batch, which was set to {given} and is not changed then; "
        parts = "the model, its input or the data" if size else "the model, its input, its batch or the data"
        return (
            f"{self.step.name}{f' with micro_batch {size}' if size else ''} does not fit the card: {why}; "
            f"the whole budget is {self.card.budget_mib} MiB{context}. What helps: "
            f"{fixed if given > 1 else ''}make {parts} smaller, compute in bf16, "
            f"{_larger_budget(self.card)}, or use a larger card"
        )


def measured(runs: Sequence[Usage], size: int) -> MemoryEstimate | None:
    """What a micro-batch needs by its own runs; None without any.

    The largest of the last clean peaks, and a margin. A cap that was too small is doubled until a run
    finishes with more; then, and where it was only filled, it is raised by 1.25, until a clean run with more
    holds as much as that cap. Smaller runs never lower it again.
    """
    clean = [run for run in runs if run.outcome(size) == "clean"]
    found = [_from_peaks(clean[-LAST:])] if clean else []
    for run in runs:
        outcome = run.outcome(size)
        cap = run.cap_mib
        if outcome == "enough" and not clean:
            found.append(MemoryEstimate(high_mib=cap, why=f"measured: {cap:,} MiB were enough"))
        elif outcome in ("too small", "filled"):
            more = [other for other in clean if other.cap_mib > cap]
            found.append(_after_filling(cap, outcome == "too small", more))
    if not found:
        return None
    return replace(max(found, key=lambda one: one.high_mib), low_mib=max(one.low_mib for one in found))


def _from_peaks(clean: Sequence[Usage]) -> MemoryEstimate:
    """Data that lay on the card because there was room is asked for, and refuses nothing."""
    peak = max(run.peak_mib or 0.0 for run in clean)
    low = max((run.peak_mib or 0.0) - run.resident_mib for run in clean)
    why = f"measured: it needs {low:,.0f} MiB"
    return MemoryEstimate(low_mib=low, high_mib=_with_margin(peak), needed_mib=low / NEAR, why=why)


def _after_filling(cap_mib: int, too_small: bool, with_more: Sequence[Usage]) -> MemoryEstimate:
    low = cap_mib + 1.0 if too_small else NEAR * cap_mib
    if any((run.peak_mib or 0.0) >= low for run in with_more):
        return _from_peaks(with_more)
    high = cap_mib * (DOUBLE if too_small and not with_more else RAISE) + 1
    why = f"measured: it needs {low:,.0f} MiB or more"
    return MemoryEstimate(low_mib=low, high_mib=high, needed_mib=cap_mib / LARGEST_SHARE, why=why)


def calibrated(found: MemoryEstimate, runs: Sequence[Usage]) -> MemoryEstimate:
    """The prediction with its edges as far out as the errors of its family lie, and 1 %."""
    errors = [run.prediction_error for run in runs if run.prediction_error is not None]
    if not errors:
        return found
    context = found.parts.get("context", 0.0)
    mib = found.mib - context
    high = max(found.high_mib, context + mib * (1 + max(errors) + ERROR_SLACK))
    low = min(found.low_mib, context + mib * (1 + min(errors) - ERROR_SLACK))
    needed = found.needed_mib + high - found.high_mib
    return replace(found, low_mib=max(0.0, low), high_mib=high, needed_mib=needed)


def _with_margin(peak_mib: float) -> float:
    return peak_mib + max(peak_mib * MARGIN, LEAST_MARGIN_MIB)


def _larger_budget(card: Card) -> str:
    if os.environ.get("OVERNIGHT_BUDGET_MIB"):
        return "set OVERNIGHT_BUDGET_MIB higher"
    if card.virtual:
        return "set OVERNIGHT_VIRTUAL_MIB higher"
    return "set OVERNIGHT_RESERVE_MIB lower if the desktop needs less"
