"""How much of the card a step asks for, and with which micro-batch: what it needed before, else what is predicted, else what it declares.

The amount of a micro-batch is what it was measured to need (history.py) and the CUDA context; without a measurement the prediction and the
context: as other micro-batches that ran have corrected it (intervals.py), else its upper edge, as its family has moved it (calibration.py);
without one the step's own `vram_mib`, of which a quarter is taken to be the same for every micro-batch and the rest to be in proportion to
it, as with other micro-batches where those have run. Of the divisors and the halves of the effective batch, the largest whose amount is
within the budget is chosen. Where none is, and micro-batch 1 is not known to be too large, the smallest gets the whole budget.
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
from overnight.memory import calibration, history, intervals
from overnight.memory.formulas import Formula
from overnight.memory.history import Need
from overnight.memory.intervals import Band, Predict
from overnight.memory.micro_batches import even, half

if TYPE_CHECKING:
    from overnight.memory.usage import Usage
    from overnight.step import Step

ROUND_MIB = 64
FIXED = 0.25  # of a declared amount, whatever the micro-batch: weights, optimizer, workspace


@dataclass(frozen=True)
class Ask:
    """What to ask the ledger for. micro_batch: None for a step that has none; smaller: (MiB, micro-batch), the largest first."""

    mib: int
    micro_batch: int | None = None
    exclusive: bool = False
    smaller: tuple[tuple[int, int], ...] = ()
    why: str = ""
    predicted: Band | None = field(
        default=None, compare=False
    )  # of the micro-batch, before anything corrected it
    note: str = field(default="", compare=False)  # what a person should know of the prediction


@dataclass(frozen=True)
class Amount:
    """What one micro-batch (0: none) would ask. fits: None means perhaps, with the whole budget."""

    size: int
    mib: int
    fits: bool | None
    why: str


def ask(step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, predict: Predict | None = None) -> Ask:
    """The micro-batch to start with, and the amount to lease for it.

    Raises DoesNotFit when micro-batch 1 is known not to fit, or the one that a user set, or a step that has none.
    """
    question = _Question(step, arguments, card, predict)
    amounts = list[Amount]()
    for size in question.sizes:
        amounts.append(question.amount(size))
        if amounts[-1].fits:
            break
    chosen = next((a for a in reversed(amounts) if a.fits is not False), None)
    if chosen is None:
        raise DoesNotFit(question.refusal(amounts[-1]))
    below = [n for n in question.sizes if n < chosen.size] if card.policy == "shrink" else []
    smaller = _descending(chosen.mib, [question.amount(size) for size in below])
    return Ask(
        chosen.mib,
        chosen.size or None,
        question.exclusive(chosen.size),
        smaller,
        chosen.why,
        question.band(chosen.size),
    )


def learn(
    step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, used: "Usage", finished: bool
) -> None:
    """Remember how a run ended. One that met its cap only raises the figure; only one that came through below it may lower it."""
    if not used.cap_mib or (card.virtual and not card.count):
        return
    folder, first = folder_of(step, arguments, card), used.asked_micro_batch or 0
    last = (used.micro_batch or first) if first else 0
    filled = used.peak_mib is not None and used.peak_mib >= history.NEAR_SHARE * used.cap_mib
    survived = (
        finished and last == first
    )  # what ran out had no part in the micro-batch: an evaluation, say, that was done in slices
    if used.out_of_memory and not survived:
        for size in _failed(first, last) if filled or not _crowded(card, used) else []:
            history.add(folder, size, history.OOM, used.cap_mib)
        if finished and last < first:
            history.add(folder, last, history.FITS, used.cap_mib)
    elif filled or (used.met_cap and not (used.out_of_memory and _crowded(card, used))):
        history.add(folder, last, history.NEAR, used.cap_mib)
    elif finished and used.peak_mib is not None and not used.out_of_memory:
        if used.resident_mib or history.resident(history.read(folder), last):
            history.add(folder, last, history.RESIDENT, used.resident_mib)
        history.add(folder, last, history.CLEAN, used.peak_mib)
        _tell_family(step, arguments, card, last, used.peak_mib - used.resident_mib)
    if step.outside or used.outside:
        history.add(folder, first, history.OUTSIDE, 0)
        if finished and used.exclusive and used.device_peak_mib:
            history.add(folder, first, history.ALONE, used.device_peak_mib)


def _failed(first: int, last: int) -> list[int]:
    """The micro-batches that were too large: from the one it began with, by halves, to the one before the last."""
    found = [first]
    while half(found[-1]) > last:
        found.append(half(found[-1]))
    return found


def _crowded(card: Card, used: "Usage") -> bool:
    """Whether other programs took more than the card keeps for them: then the card was full, not the lease too small."""
    return not card.virtual and (used.foreign_peak_mib or 0) > card.total_mib - card.budget_mib


def _tell_family(
    step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, size: int, peak_mib: float
) -> None:
    """How far the prediction was off, for those that are made of the same family."""
    params = arguments[0] if arguments else None
    band = intervals.read(
        folder_of(step, arguments, card),
        intervals.version(),
        size or max(int(getattr(params, "batch", 1)), 1),
    )
    if isinstance(band, Band):
        calibration.add(card, calibration.name(step, params), band.mid, peak_mib)


class _Question:
    """What is known of one step on one card."""

    def __init__(
        self, step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, predict: Predict | None
    ) -> None:
        self.step, self.arguments, self.card, self.predict = step, arguments, card, predict
        self.params: Any = arguments[0] if arguments else None
        self.batch = getattr(self.params, "batch", 0) if hasattr(self.params, "micro_batch") else 0
        self.overhead_mib = overhead(card)
        self.outcomes = history.read(folder_of(step, arguments, card))

    @cached_property
    def recipe(self) -> Any:
        """How the step trains; None without a Recipe, while nobody knows the shapes of its data, and where it refuses them."""
        spec = next((a.spec for a in self.arguments if isinstance(a, Artifact)), None)
        if self.step.recipe is None or spec in (None, DataSpec()):
            return None
        with suppress(
            OvernightError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
        ):
            return self.step.recipe(self.params, spec)
        return None  # the step itself is about to say what is wrong

    @cached_property
    def sizes(self) -> list[int]:
        """The micro-batches to choose from, the largest first: the one that a user set, or those that cut the batch evenly, or [0]."""
        if given := getattr(self.params, "micro_batch", None):
            return [int(given)]
        if self.step.recipe is None or not self.batch or not _cuts(self.recipe):
            return [0]
        return even(self.batch)

    def exclusive(self, size: int) -> bool:
        """Whether nobody may run beside it: asked for, or memory outside the cap that nobody has measured yet."""
        outside = self.step.outside or any(o.kind == history.OUTSIDE for o in self.outcomes)
        return bool(getattr(self.params, "exclusive", False)) or (
            outside and history.device_mib(self.outcomes, size) is None
        )

    def amount(self, size: int) -> Amount:
        """By measurement, else by prediction (a trace, a formula), else by declaration."""
        if nothing := self._nothing(size):
            return nothing
        found = self._learned(size) or self._predicted(size) or self._formula(size) or self._declared(size)
        device = history.device_mib(self.outcomes, size)
        if device is None or found.mib >= history.with_margin(device):
            return found
        mib = min(_rounded(history.with_margin(device)), self.card.budget_mib)
        return Amount(
            size, mib, found.fits, f"learned: the whole card held {device:,} MiB more while it ran alone"
        )

    def _learned(self, size: int) -> Amount | None:
        need = history.need(self.outcomes, size)
        return (
            self._sized(size, need, f"learned: it needs {need.least:,} MiB{'' if need.sure else ' or more'}")
            if need
            else None
        )

    def band(self, size: int) -> Band | None:
        """What is predicted of a micro-batch, before any measurement."""
        found = (
            self.predict(self.recipe, size or max(self.batch, 1), self.card)
            if self.predict and self.recipe
            else None
        )
        return Band.of(found) if found else None

    def _predicted(self, size: int) -> Amount | None:
        band = self.band(size)
        if band is None:
            return None
        peaks = {
            n: peak
            for n in {o.size for o in self.outcomes} - {size}
            if (peak := history.peak(self.outcomes, n)) is not None
        }
        between = intervals.corrected(band, {n: found for n in peaks if (found := self.band(n))}, peaks)
        if (
            between is not None
        ):  # tried if the lower figure fits: where that was wrong, a training goes on with less, once
            enough = int(between[0] * intervals.SLACK / history.NEAR_SHARE) + 1
            by = f"corrected by what micro-batch {', '.join(map(str, sorted(peaks)))} took"
            why = f"predicted: {between[0]:,.0f} to {between[1]:,.0f} MiB, {by}"
            return self._sized(
                size,
                Need(int(min(band.low, between[0])), history.with_margin(between[1]), likely=enough),
                why,
            )
        seen = calibration.errors(self.card, calibration.name(self.step, self.params))
        band = calibration.moved(band, seen)
        why = f"predicted: {band.low:,.0f} to {band.high:,.0f} MiB; {calibration.told(band.mid, seen)}"
        return self._sized(size, Need(int(band.low), int(band.high) + 1, likely=int(band.needed) + 1), why)

    @cached_property
    def formula(self) -> Formula | None:
        """What the step's own formula says, where it has one and knows its data."""
        given = [a.spec if isinstance(a, Artifact) else a for a in self.arguments[1:]]
        if self.step.peak is None or DataSpec() in given:
            return None
        with suppress(OvernightError):  # the step itself is about to say what is wrong
            return Formula.of(self.step.peak(self.params, *given))
        return None

    def _nothing(self, size: int) -> Amount | None:
        """Of a step that computes on the processor here."""
        nothing = self.formula is not None and self.formula.none_of(self.card)
        return (
            Amount(size, 0, fits=True, why="it runs on the processor here: nothing of the card")
            if nothing
            else None
        )

    def _formula(self, size: int) -> Amount | None:
        if self.formula is None or self.formula.unknown:
            return None
        low, high = self.formula.low, self.formula.high
        return self._sized(
            size, Need(0, int(high) + 1, likely=int(high) + 1), f"by formula: {low:,.0f} to {high:,.0f} MiB"
        )

    def _declared(self, size: int) -> Amount:
        """In proportion to other micro-batches that ran, else to what the step says of its whole batch; one that says nothing gets all."""
        if not size:
            mib = self.step.vram_mib or self.card.budget_mib
            wanted = mib - self.overhead_mib
            return self._sized(
                size, Need(0 if self.step.recipe else wanted, wanted), f"declared: {mib:,} MiB"
            )
        needs = {
            n: need for n in {o.size for o in self.outcomes} if n and (need := history.need(self.outcomes, n))
        }
        whole, batch = self.step.vram_mib or self.card.budget_mib, self.batch or size

        def share(n: int) -> float:
            return FIXED + (1 - FIXED) * n / batch

        near = min((n for n in needs if n > size), default=0)
        guesses = [needs[near].wanted / share(near) if near else whole - self.overhead_mib]
        guesses += [need.wanted / share(n) for n, need in needs.items() if n < size and need.sure]
        why = (
            f"scaled from micro-batches {sorted(needs)} that ran"
            if needs
            else f"declared: {whole:,} MiB{'' if size == batch else f' for all {batch} samples at once'}"
        )
        wanted = int(min(guesses) * share(size))
        if wanted + self.overhead_mib > self.card.budget_mib:
            why += f", so about {wanted + self.overhead_mib:,} for {size}; there is no more than {self.card.budget_mib:,}, which may do"
        return self._sized(size, Need(0, wanted), why)

    def _sized(self, size: int, need: Need, why: str) -> Amount:
        """In MiB of the card. What smaller micro-batches are known to need, this one needs as well."""
        below = [history.need(self.outcomes, s) for s in {o.size for o in self.outcomes} if 0 < s < size]
        least = max([need.least, *(n.least for n in below if n)])
        need = replace(need, least=least, wanted=max(need.wanted, least, history.LEAST_MARGIN_MIB))
        mib = min(_rounded(need.wanted + self.overhead_mib), self.card.budget_mib)
        return Amount(size, mib, need.fits(self.card.budget_mib - self.overhead_mib), why)

    def refusal(self, last: Amount) -> str:
        """Why it does not fit, and what would change that."""
        given = getattr(self.params, "micro_batch", None) or 0
        what = f"{self.step.name}{f' with micro_batch {last.size}' if last.size else ''}"
        fixed = (
            f"leave out micro_batch, which was set to {given} and is not changed then; " if given > 1 else ""
        )
        parts = (
            "the model, its input or the data" if last.size else "the model, its input, its batch or the data"
        )
        return (
            f"{what} does not fit the card: {last.why}; the whole budget is {self.card.budget_mib} MiB"
            f"{f', {self.overhead_mib} of them for the CUDA context' if self.overhead_mib else ''}. What helps: {fixed}make {parts} smaller, "
            f"compute in bf16, {_more(self.card)}, or use a larger card"
        )


def _more(card: Card) -> str:
    """The setting that grants more of a card."""
    if os.environ.get("OVERNIGHT_BUDGET_MIB"):
        return "set OVERNIGHT_BUDGET_MIB higher"
    return (
        "set OVERNIGHT_VIRTUAL_MIB higher"
        if card.virtual
        else "set OVERNIGHT_RESERVE_MIB lower if the desktop needs less"
    )


def _cuts(recipe: Any) -> bool:
    """Whether a batch can be computed in parts; a graph, say, cannot."""
    if recipe is None:
        return True
    import torch

    with suppress(KeyError):  # it splits by more than the number of samples
        return len(list(recipe.micro_batches({"samples": torch.empty(2, 1)}, 1))) > 1
    return True


def _descending(mib: int, amounts: Sequence[Amount]) -> tuple[tuple[int, int], ...]:
    """Those that fit and ask for less, each for less than the one before."""
    found = list[tuple[int, int]]()
    for amount in amounts:
        if amount.fits and amount.mib < (found[-1][0] if found else mib):
            found.append((amount.mib, amount.size))
    return tuple(found)


def _rounded(mib: float) -> int:
    return -int(-mib // ROUND_MIB) * ROUND_MIB


def folder_of(step: "Step[Any, Any]", arguments: Sequence[Any], card: Card) -> Path:
    """Where all is kept that is known of a step's memory."""
    return card.folder / "sizes" / step.memory_key(arguments)[:32]
