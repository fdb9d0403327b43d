"""The MiB of the card that a step requests, and for which micro-batch: measured, predicted or declared.

measured   what the micro-batch was measured to need (history.py), plus the CUDA context
predicted  the interval of overnight.memory as other micro-batches that ran have calibrated it, else its upper
           edge as its family has calibrated it (intervals.py), or the step's own formula; plus the context
declared   the step's `vram_mib`: FIXED of it for every micro-batch, the rest in proportion to the micro-batch

Of the divisors and halves of the effective batch, the largest whose amount is within the budget is chosen.
If none is, and micro-batch 1 is not known to be too large, the smallest gets the whole budget.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.artifact import Artifact, DataSpec
from overnight.errors import DoesNotFit, OvernightError
from overnight.gpu.card import Card
from overnight.gpu.cuda_context import overhead
from overnight.memory import history, intervals
from overnight.memory.formulas import Formula
from overnight.memory.history import Requirement
from overnight.memory.intervals import Predict, PredictionInterval

if TYPE_CHECKING:
    from overnight.step import Step

ROUND_MIB = 64
FIXED = 0.25  # of a declared amount, for every micro-batch: weights, optimizer, workspace
REFUSED_DATA = (
    OvernightError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)  # what a recipe raises for data that it cannot take


@dataclass(frozen=True)
class MemoryRequest:
    """What to request from the ledger, MiB. micro_batch: None for a step without one.

    smaller: (MiB, micro-batch) that would do as well, the largest first. predicted: of the micro-batch,
    before calibration. note: why there is no prediction.
    """

    mib: int
    micro_batch: int | None = None
    exclusive: bool = False
    smaller: tuple[tuple[int, int], ...] = ()
    why: str = ""
    predicted: PredictionInterval | None = field(default=None, compare=False)
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
class Candidate:
    """What one micro-batch (0: none) would request. fits: None means perhaps, with the whole budget."""

    size: int
    mib: int
    fits: bool | None
    why: str


def half(size: int) -> int:
    """The next candidate below a micro-batch of `size` samples: half of it, rounded up."""
    return -(-size // 2)


def micro_batches(batch: int) -> list[int]:
    """Candidates, the largest first: the divisors of the batch, and its repeated halves."""
    found = {n for n in range(1, batch + 1) if batch % n == 0}
    while batch > 1:
        batch = half(batch)
        found.add(batch)
    return sorted(found, reverse=True)


def folder_of(step: "Step[Any, Any]", arguments: Sequence[Any], card: Card) -> Path:
    """Folder of a step's usage history and stored predictions."""
    return card.folder / "sizes" / step.memory_key(arguments)[:32]


def plan_request(
    step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, predict: Predict | None = None
) -> MemoryRequest:
    """The micro-batch to start with, and the MiB to lease for it.

    Raises DoesNotFit when the smallest micro-batch is known not to fit: 1, or the one that a user set, or the
    whole of a step that has none.
    """
    planner = _Planner(step, arguments, card, predict)
    candidates = list[Candidate]()
    for size in planner.sizes:
        candidates.append(planner.candidate(size))
        if candidates[-1].fits:
            break
    chosen = next((c for c in reversed(candidates) if c.fits is not False), None)
    if chosen is None:
        raise DoesNotFit(planner.refusal(candidates[-1]))
    below = [n for n in planner.sizes if n < chosen.size] if card.policy == "shrink" else []
    return MemoryRequest(
        chosen.mib,
        chosen.size or None,
        planner.exclusive(chosen.size),
        _descending(chosen.mib, [planner.candidate(size) for size in below]),
        chosen.why,
        planner.interval(chosen.size),
    )


class _Planner:
    """What is known of one step on one card."""

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
        self.outcomes = history.read_outcomes(folder_of(step, arguments, card))
        self.measured_sizes = {o.size for o in self.outcomes}

    @cached_property
    def recipe(self) -> Any:
        """How the step trains; None without a recipe, for data of unknown shape or that it refuses."""
        spec = next((a.spec for a in self.arguments if isinstance(a, Artifact)), None)
        if self.step.recipe is None or spec in (None, DataSpec()):
            return None
        with suppress(*REFUSED_DATA):  # the step itself will report it
            return self.step.recipe(self.params, spec)
        return None

    @cached_property
    def sizes(self) -> list[int]:
        """Candidate micro-batches, the largest first: the one that a user set, those of the batch, or [0]."""
        given = getattr(self.params, "micro_batch", None)
        if given:
            return [int(given)]
        if self.step.recipe is None or not self.batch or not _splittable(self.recipe):
            return [0]
        return micro_batches(self.batch)

    def exclusive(self, size: int) -> bool:
        """Whether it must run alone: by request, or for memory outside the cap that was not measured yet."""
        uncapped = self.step.uncapped or any(o.kind == history.OUTSIDE for o in self.outcomes)
        unmeasured = uncapped and history.device_mib(self.outcomes, size) is None
        return bool(getattr(self.params, "exclusive", False)) or unmeasured

    def candidate(self, size: int) -> Candidate:
        """By measurement, else by prediction (a trace, a formula), else by declaration."""
        if self.formula is not None and self.formula.none_of(self.card):
            return Candidate(size, 0, fits=True, why="it runs on the processor here: nothing of the card")
        found = (
            self._measured(size) or self._predicted(size) or self._by_formula(size) or self._declared(size)
        )
        device = history.device_mib(self.outcomes, size)
        if device is None or found.mib >= history.with_margin(device):
            return found
        mib = min(_rounded(history.with_margin(device)), self.card.budget_mib)
        why = f"measured: the whole card held {device:,} MiB more while it ran alone"
        return Candidate(size, mib, found.fits, why)

    def _measured(self, size: int) -> Candidate | None:
        found = history.requirement(self.outcomes, size)
        if found is None:
            return None
        return self._sized(
            size, found, f"measured: it needs {found.least:,} MiB{'' if found.sure else ' or more'}"
        )

    def interval(self, size: int) -> PredictionInterval | None:
        """The prediction for a micro-batch, before calibration."""
        if not self.predict or not self.recipe:
            return None
        found = self.predict(self.recipe, size or max(self.batch, 1), self.card)
        return PredictionInterval.of(found) if found else None

    def _predicted(self, size: int) -> Candidate | None:
        interval = self.interval(size)
        if interval is None:
            return None
        return self._calibrated_by_runs(size, interval) or self._calibrated_by_family(size, interval)

    def _calibrated_by_runs(self, size: int, interval: PredictionInterval) -> Candidate | None:
        """Tried if the lower figure fits: where that is wrong, a training continues with less, once."""
        measured = {n: history.measured_peak(self.outcomes, n) for n in self.measured_sizes - {size}}
        peaks = {n: peak for n, peak in measured.items() if peak is not None}
        predicted = {n: self.interval(n) for n in peaks}
        others = {n: other for n, other in predicted.items() if other}
        between = intervals.calibrated_by_runs(interval, others, peaks)
        if between is None:
            return None
        low, high = between
        runs = ", ".join(map(str, sorted(peaks)))
        return self._sized(
            size,
            Requirement(
                int(min(interval.low, low)),
                history.with_margin(high),
                likely=int(low * intervals.SLACK / history.NEAR_SHARE) + 1,
            ),
            f"predicted: {low:,.0f} to {high:,.0f} MiB, corrected by what micro-batch {runs} took",
        )

    def _calibrated_by_family(self, size: int, interval: PredictionInterval) -> Candidate:
        errors = intervals.read_errors(self.card, intervals.family(self.step, self.params))
        found = intervals.calibrated(interval, errors)
        need = Requirement(int(found.low), int(found.high) + 1, likely=int(found.needed) + 1)
        tested = intervals.describe_errors(found.mid, errors)
        return self._sized(size, need, f"predicted: {found.low:,.0f} to {found.high:,.0f} MiB; {tested}")

    @cached_property
    def formula(self) -> Formula | None:
        """The step's own formula for its data; None without one, or for data of unknown shape."""
        given = [a.spec if isinstance(a, Artifact) else a for a in self.arguments[1:]]
        if self.step.peak is None or DataSpec() in given:
            return None
        with suppress(OvernightError):  # the step itself will report it
            return Formula.of(self.step.peak(self.params, *given))
        return None

    def _by_formula(self, size: int) -> Candidate | None:
        if self.formula is None or self.formula.unknown:
            return None
        low, high = self.formula.low, self.formula.high
        need = Requirement(0, int(high) + 1, likely=int(high) + 1)
        return self._sized(size, need, f"by formula: {low:,.0f} to {high:,.0f} MiB")

    def _declared(self, size: int) -> Candidate:
        """In proportion to other micro-batches that ran, else to the declaration for the whole batch."""
        whole = self.step.vram_mib or self.card.budget_mib
        if not size:
            wanted = whole - self.overhead_mib
            least = 0 if self.step.recipe else wanted
            return self._sized(size, Requirement(least, wanted), f"declared: {whole:,} MiB")
        measured = {n: history.requirement(self.outcomes, n) for n in self.measured_sizes if n}
        needs = {n: need for n, need in measured.items() if need}
        batch = self.batch or size
        wanted = self._scaled(size, batch, whole, needs)
        if needs:
            why = f"scaled from micro-batches {sorted(needs)} that ran"
        else:
            why = f"declared: {whole:,} MiB{'' if size == batch else f' for all {batch} samples at once'}"
        if wanted + self.overhead_mib > self.card.budget_mib:
            why += f", so about {wanted + self.overhead_mib:,} for {size}"
            why += f"; there is no more than {self.card.budget_mib:,}, which may do"
        return self._sized(size, Requirement(0, wanted), why)

    def _scaled(self, size: int, batch: int, whole_mib: int, needs: dict[int, Requirement]) -> int:
        """Least estimate in MiB from the next larger micro-batch that ran and from all smaller ones."""

        def share(n: int) -> float:
            return FIXED + (1 - FIXED) * n / batch

        larger = min((n for n in needs if n > size), default=0)
        estimates = [needs[larger].wanted / share(larger) if larger else whole_mib - self.overhead_mib]
        estimates += [need.wanted / share(n) for n, need in needs.items() if n < size and need.sure]
        return int(min(estimates) * share(size))

    def _sized(self, size: int, need: Requirement, why: str) -> Candidate:
        """In MiB of the card. It needs at least what smaller micro-batches are known to need."""
        below = [history.requirement(self.outcomes, n) for n in self.measured_sizes if 0 < n < size]
        least = max([need.least, *(n.least for n in below if n)])
        need = replace(need, least=least, wanted=max(need.wanted, least, history.LEAST_MARGIN_MIB))
        mib = min(_rounded(need.wanted + self.overhead_mib), self.card.budget_mib)
        return Candidate(size, mib, need.fits(self.card.budget_mib - self.overhead_mib), why)

    def refusal(self, last: Candidate) -> str:
        """Why it does not fit, and what would change that."""
        given = getattr(self.params, "micro_batch", None) or 0
        context = f", {self.overhead_mib} of them for the CUDA context" if self.overhead_mib else ""
        fixed = f"leave out micro_batch, which was set to {given} and is not changed then; "
        parts = (
            "the model, its input or the data" if last.size else "the model, its input, its batch or the data"
        )
        return (
            f"{self.step.name}{f' with micro_batch {last.size}' if last.size else ''} does not fit the card: "
            f"{last.why}; the whole budget is {self.card.budget_mib} MiB{context}. What helps: "
            f"{fixed if given > 1 else ''}make {parts} smaller, compute in bf16, "
            f"{_larger_budget(self.card)}, or use a larger card"
        )


def _larger_budget(card: Card) -> str:
    """The setting that grants more of a card."""
    if os.environ.get("OVERNIGHT_BUDGET_MIB"):
        return "set OVERNIGHT_BUDGET_MIB higher"
    if card.virtual:
        return "set OVERNIGHT_VIRTUAL_MIB higher"
    return "set OVERNIGHT_RESERVE_MIB lower if the desktop needs less"


def _splittable(recipe: Any) -> bool:
    """Whether a batch can be computed in parts; a graph cannot."""
    if recipe is None:
        return True
    import torch

    with suppress(KeyError):  # it splits by more than the number of samples
        return len(list(recipe.micro_batches({"samples": torch.empty(2, 1)}, 1))) > 1
    return True


def _descending(mib: int, candidates: Sequence[Candidate]) -> tuple[tuple[int, int], ...]:
    """(MiB, micro-batch) of those that fit, each for less than the one before."""
    found = list[tuple[int, int]]()
    for candidate in candidates:
        if candidate.fits and candidate.mib < (found[-1][0] if found else mib):
            found.append((candidate.mib, candidate.size))
    return tuple(found)


def _rounded(mib: float) -> int:
    return -int(-mib // ROUND_MIB) * ROUND_MIB
