"""`overnight fit`: what every step of a config would take of a card, and what would fit."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.artifact import DataSpec
from overnight.errors import ConfigError, OvernightError
from overnight.gpu.card import RESERVE_MIB, Card, find
from overnight.memory import calibration
from overnight.memory.formulas import Formula
from overnight.memory.intervals import Band
from overnight.orchestration.dry_run import Foreseen, outline

if TYPE_CHECKING:
    from overnight.memory.prediction import Prediction
    from overnight.memory.search import Scaled

ROUND_MIB = 64  # leases are multiples of it
MOST_GB = 1024
MISTAKES = (
    OvernightError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)  # of a recipe, of a formula


@dataclass(frozen=True)
class Judged:
    """A row: MiB as predicted, between which edges, the lease, whether that fits, what would."""

    step: str
    verdict: str
    mib: float = 0.0
    low_mib: float = 0.0
    high_mib: float = 0.0
    lease_mib: int = 0
    micro_batch: int | None = None
    largest_micro_batch: int | None = None
    parts: dict[str, float] = field(default_factory=dict)
    peak: str = ""  # phase and operator
    changes: dict[str, float] = field(
        default_factory=dict
    )  # what to write into the config -> MiB, the cheapest first
    history: str = ""  # how far predictions of its family were off
    host_mib: float = 0.0  # of the machine's own memory, where a formula tells it
    why: str = ""


def show(path: Path, overrides: Sequence[str], card: Card, as_json: bool) -> int:
    """Print the table; 3 when a step does not fit, 2 when nobody knows of one, else 0."""
    rows = [judged(step, card) for step in outline(path, overrides)]
    if as_json:
        print(json.dumps({"card": card.model_dump(), "steps": [asdict(row) for row in rows]}, indent=1))
    else:
        from overnight.cli.fit_report import printed

        printed(rows, card)
    verdicts = {row.verdict for row in rows}
    return 3 if "does not fit" in verdicts else 2 if "unknown" in verdicts else 0


def of_size(gib: float) -> Card:
    """A card that is not here: what other programs need is kept back, as on a real one. Raises ConfigError."""
    least = RESERVE_MIB / 1024
    if not (math.isfinite(gib) and least < gib <= MOST_GB):
        raise ConfigError(
            f"--card {gib:g}: give the memory of a card in GB, more than the {least:g} kept for other programs, at most {MOST_GB}"
        )
    total = round(gib * 1024)
    return Card(uuid="virtual", name=f"a card of {gib:g} GB", total_mib=total, budget_mib=total - RESERVE_MIB)


def judged(step: Foreseen, card: Card) -> Judged:
    """One step on one card, real or imagined: always as CUDA would run it."""
    try:
        if step.step.recipe is not None:
            return _by_trace(step, card)
        if step.step.peak is not None:
            return _by_formula(step, card)
    except MISTAKES as error:
        what = (
            str(error)
            if isinstance(error, OvernightError)
            else f"it cannot be built for its data: {type(error).__name__}: {error}"
        )
        return Judged(step.label, "unknown", why=what)
    if not step.step.gpu:
        return Judged(step.label, "fits", why="runs on the processor: nothing of the card")
    why = f"nothing to predict it by; it asks for the {step.step.vram_mib or card.budget_mib} MiB that it declares, then for what it took"
    return Judged(step.label, "unknown", why=why)


def _by_trace(step: Foreseen, card: Card) -> Judged:
    from overnight.memory.prediction import Constants
    from overnight.memory.search import Scaled
    from overnight.memory.suggestions import changes

    spec = step.shapes
    if spec is None or step.step.recipe is None:
        return Judged(step.label, "unknown", why=step.missing)
    recipe = step.step.recipe(step.params, spec)
    micro = recipe.params.micro_batch or recipe.params.batch
    scaled = Scaled(recipe, "cuda", 0.0, Constants(context_mib=_context(card)))
    found = scaled.exact(micro)
    if found.unknown:
        return Judged(step.label, "unknown", why=found.unknown)
    best = scaled.largest(card.budget_mib) if recipe.micro_batches.__name__ == "split_by_sample" else None
    if found.verdict(card.budget_mib) == "fits":
        return _row(step, found, "fits", best, card)
    ways = {
        c.what: round(c.prediction.needed_mib)
        for c in changes(step, spec, scaled, card.budget_mib, micro, best)
    }
    if best is not None and getattr(step.params, "micro_batch", 0) is None:  # the engine chooses it
        return replace(_row(step, best, "fits", best, card), changes=dict(ways))
    why = "" if ways else f"none of its own settings makes it fit {_short(scaled, card)}"
    return replace(_row(step, found, "does not fit", best, card), changes=dict(ways), why=why)


def _short(scaled: "Scaled", card: Card) -> str:
    """What it takes at the least."""
    least = (
        scaled.exact(1)
        if scaled.recipe.micro_batches.__name__ == "split_by_sample"
        else scaled.exact(scaled.recipe.params.batch)
    )
    return f"(it takes {least.needed_mib:,.0f} MiB at the least, of {card.budget_mib:,})"


def _row(step: Foreseen, found: "Prediction", verdict: str, best: "Prediction | None", card: Card) -> Judged:
    low, high, history = _edges(step, found, card)
    sliced = verdict == "fits" and found.mib > card.budget_mib
    return Judged(
        step=step.label,
        verdict=verdict,
        mib=round(found.mib, 1),
        low_mib=round(low, 1),
        high_mib=round(high, 1),
        lease_mib=_lease(high, verdict, card),
        micro_batch=found.micro_batch if best else None,
        largest_micro_batch=best.micro_batch if best else None,
        parts={kind: round(mib, 1) for kind, mib in found.parts.items()},
        peak=f"{found.phase}, {found.operator}",
        history=history,
        why=f"its evaluation is cut into smaller slices; the training takes {found.needed_mib:,.0f} MiB at most"
        if sliced
        else "",
    )


def _edges(step: Foreseen, found: "Prediction", card: Card) -> tuple[float, float, str]:
    """The band as what was measured of the family moves it, and that in words; what a processor measured moves none of a card's."""
    measured_on = card if not card.virtual else find()
    context = found.parts.get("context", 0.0)
    seen = calibration.errors(measured_on, calibration.name(step.step, step.params))
    band = Band(*(mib - context for mib in (found.low_mib, found.high_mib, found.mib, found.needed_mib)))
    moved = band if measured_on.virtual else calibration.moved(band, seen)
    told = calibration.told(band.mid, seen)
    return (
        moved.low + context,
        moved.high + context,
        f"on the processor: {told}" if measured_on.virtual and seen else told,
    )


def _lease(high_mib: float, verdict: str, card: Card) -> int:
    """What it would ask for: all of the card at most, where it fits."""
    rounded = -int(-high_mib // ROUND_MIB) * ROUND_MIB
    return min(rounded, card.budget_mib) if verdict == "fits" else rounded


def _by_formula(step: Foreseen, card: Card) -> Judged:
    given = [g if g is not None else DataSpec() for g in step.given]
    found = Formula.of(step.step.peak(step.params, *given)) if step.step.peak else None
    if found is None or found.unknown:
        return Judged(step.label, "unknown", why=found.unknown if found else step.missing)
    if not found.high:
        return Judged(
            step.label,
            "fits",
            host_mib=round(found.host_mib, 1),
            why=found.why or "runs on the processor: nothing of the card",
        )
    context = _context(card)
    low, high = found.low + context, found.high + context
    verdict = "fits" if high <= card.budget_mib else "does not fit"
    without = f"; without {found.needs} it runs on the processor and takes nothing" if found.needs else ""
    return Judged(
        step=step.label,
        verdict=verdict,
        mib=round(high, 1),
        low_mib=round(low, 1),
        high_mib=round(high, 1),
        lease_mib=_lease(high, verdict, card),
        parts={"context": context, **{kind: round(mib, 1) for kind, mib in found.parts.items()}},
        why=f"{found.why}{without}",
    )


def _context(card: Card) -> float:
    from overnight.gpu.cuda_context import UNMEASURED_MIB, overhead

    return float(UNMEASURED_MIB if card.virtual else overhead(card))
