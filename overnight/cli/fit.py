"""`overnight fit`: what every step of a config would take of a card, and what would make it fit."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.artifact import DataSpec
from overnight.errors import ConfigError, OvernightError
from overnight.gpu.card import RESERVE_MIB, Card, find
from overnight.memory.formulas import Formula
from overnight.memory.history import History, family
from overnight.memory.request import REFUSED_DATA, ROUND_MIB, calibrated
from overnight.memory.usage import Usage
from overnight.orchestration.dry_run import PlannedStep, planned_steps

if TYPE_CHECKING:
    from overnight.memory.prediction import MemoryEstimate
    from overnight.memory.search import ScaledPredictions

MOST_GB = 1024
RANGE = 4.0  # times smaller or larger than a run that was measured is still tested
COLUMNS = ("step", "predicted", "band", "lease", "micro-batch", "largest", "verdict")


@dataclass(frozen=True)
class Verdict:
    """A row of the table, MiB.

    parts: MiB by kind at the peak; peak: its phase and operator. changes: what to write into the config ->
    MiB then, the cheapest change first. history: how far predictions of its family were off. host_mib: of the
    machine's own memory, where a formula gives it.
    """

    step: str
    verdict: str
    mib: float = 0.0
    low_mib: float = 0.0
    high_mib: float = 0.0
    lease_mib: int = 0
    micro_batch: int | None = None
    largest_micro_batch: int | None = None
    parts: dict[str, float] = field(default_factory=dict)
    peak: str = ""
    changes: dict[str, float] = field(default_factory=dict)
    history: str = ""
    host_mib: float = 0.0
    why: str = ""


def show(path: Path, overrides: Sequence[str], card: Card, as_json: bool) -> int:
    """Print the table; 3 when a step does not fit, 2 when one is unknown, else 0."""
    rows = [verdict_of(step, card) for step in planned_steps(path, overrides)]
    print_verdicts(rows, card, as_json)
    verdicts = {row.verdict for row in rows}
    if "does not fit" in verdicts:
        return 3
    return 2 if "unknown" in verdicts else 0


def of_size(gib: float) -> Card:
    """A card that is not in this machine, with the same reserve for other programs. Raises ConfigError."""
    least = RESERVE_MIB / 1024
    if not (math.isfinite(gib) and least < gib <= MOST_GB):
        raise ConfigError(
            f"--card {gib:g}: give the memory of a card in GB, more than the {least:g} kept for other "
            f"programs, at most {MOST_GB}"
        )
    total = round(gib * 1024)
    return Card(uuid="virtual", name=f"a card of {gib:g} GB", total_mib=total, budget_mib=total - RESERVE_MIB)


# ---------------------------------------------------------------------- verdicts


def verdict_of(step: PlannedStep, card: Card) -> Verdict:
    """One step on one card, real or imagined, as CUDA would run it."""
    try:
        if step.step.recipe is not None:
            return _by_trace(step, card)
        if step.step.peak is not None:
            return _by_formula(step, card)
    except OvernightError as error:
        return Verdict(step.label, "unknown", why=str(error))
    except REFUSED_DATA as error:
        why = f"it cannot be built for its data: {type(error).__name__}: {error}"
        return Verdict(step.label, "unknown", why=why)
    if not step.step.gpu:
        return Verdict(step.label, "fits", why="runs on the processor: nothing of the card")
    declared = step.step.vram_mib or card.budget_mib
    why = f"nothing to predict it by; it asks for the {declared} MiB that it declares, then for what it took"
    return Verdict(step.label, "unknown", why=why)


def context_mib(card: Card) -> float:
    """The CUDA context of a process on the card, measured or assumed."""
    from overnight.gpu.cuda_context import UNMEASURED_MIB, overhead

    return float(UNMEASURED_MIB if card.virtual else overhead(card))


def _by_trace(step: PlannedStep, card: Card) -> Verdict:
    from overnight.cli.fit_suggestions import changes, splittable
    from overnight.memory.prediction import Constants
    from overnight.memory.search import ScaledPredictions

    spec = step.shapes
    if spec is None or step.step.recipe is None:
        return Verdict(step.label, "unknown", why=step.missing)
    recipe = step.step.recipe(step.params, spec)
    micro = recipe.params.micro_batch or recipe.params.batch
    scaled = ScaledPredictions(recipe, "cuda", 0.0, Constants(context_mib=context_mib(card)))
    found = scaled.exact(micro)
    if found.unknown:
        return Verdict(step.label, "unknown", why=found.unknown)
    best = scaled.largest(card.budget_mib) if splittable(scaled) else None
    if found.fits(card.budget_mib):
        return _row(step, found, "fits", best, card)
    fitting = changes(step, spec, scaled, card.budget_mib, micro, best)
    ways: dict[str, float] = {change.what: round(change.prediction.needed_mib) for change in fitting}
    if best is not None and getattr(step.params, "micro_batch", 0) is None:  # the engine chooses it
        return replace(_row(step, best, "fits", best, card), changes=ways)
    why = "" if ways else f"none of its own settings makes it fit {_shortfall(scaled, card)}"
    return replace(_row(step, found, "does not fit", best, card), changes=ways, why=why)


def _shortfall(scaled: "ScaledPredictions", card: Card) -> str:
    """The least that it takes, against the budget."""
    from overnight.cli.fit_suggestions import splittable

    least = scaled.exact(1 if splittable(scaled) else scaled.recipe.params.batch)
    return f"(it takes {least.needed_mib:,.0f} MiB at the least, of {card.budget_mib:,})"


def _row(
    step: PlannedStep, found: "MemoryEstimate", verdict: str, best: "MemoryEstimate | None", card: Card
) -> Verdict:
    low, high, history = _edges(step, found, card)
    sliced = verdict == "fits" and found.mib > card.budget_mib
    slices = (
        f"its evaluation is cut into smaller slices; the training takes {found.needed_mib:,.0f} MiB at most"
    )
    return Verdict(
        step=step.label,
        verdict=verdict,
        mib=round(found.mib, 1),
        low_mib=round(low, 1),
        high_mib=round(high, 1),
        lease_mib=_lease_mib(high, verdict, card),
        micro_batch=found.micro_batch if best else None,
        largest_micro_batch=best.micro_batch if best else None,
        parts={kind: round(mib, 1) for kind, mib in found.parts.items()},
        peak=f"{found.phase}, {found.operator}",
        history=history,
        why=slices if sliced else "",
    )


def _edges(step: PlannedStep, found: "MemoryEstimate", card: Card) -> tuple[float, float, str]:
    """The calibrated edges, and how far the family was off.

    Errors measured on a processor do not calibrate.
    """
    measured_on = card if not card.virtual else find()
    runs = History(measured_on).family(family(step.step, step.params))
    described = describe_errors(found.mib - found.parts.get("context", 0.0), runs)
    if not measured_on.virtual:
        found = calibrated(found, runs)
    elif runs:
        described = f"on the processor: {described}"
    return found.low_mib, found.high_mib, described


def describe_errors(mib: float, runs: Sequence[Usage]) -> str:
    """`12 runs of its family measured, -1.2 % to +3.4 %`, and the tested range if it is left."""
    errors = [run.prediction_error or 0.0 for run in runs]
    if not runs:
        return "no run of its family was measured: outside the tested range"
    between = f"{min(errors):+.1%} to {max(errors):+.1%}".replace("%", " %")
    said = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of its family measured, {between}"
    sizes = [run.predicted_mib or 0.0 for run in runs]
    if any(mib / RANGE <= size <= mib * RANGE for size in sizes):
        return said
    return f"{said}; outside the tested range of {min(sizes):,.0f} to {max(sizes):,.0f} MiB"


def _lease_mib(high_mib: float, verdict: str, card: Card) -> int:
    """What it would ask for: at most all of the card, where it fits."""
    rounded = -int(-high_mib // ROUND_MIB) * ROUND_MIB
    return min(rounded, card.budget_mib) if verdict == "fits" else rounded


def _by_formula(step: PlannedStep, card: Card) -> Verdict:
    given = [g if g is not None else DataSpec() for g in step.given]
    found = Formula.of(step.step.peak(step.params, *given)) if step.step.peak else None
    if found is None or found.unknown:
        return Verdict(step.label, "unknown", why=found.unknown if found else step.missing)
    if not found.high:
        why = found.why or "runs on the processor: nothing of the card"
        return Verdict(step.label, "fits", host_mib=round(found.host_mib, 1), why=why)
    context = context_mib(card)
    high = found.high + context
    verdict = "fits" if high <= card.budget_mib else "does not fit"
    without = f"; without {found.needs} it runs on the processor and takes nothing" if found.needs else ""
    return Verdict(
        step=step.label,
        verdict=verdict,
        mib=round(high, 1),
        low_mib=round(found.low + context, 1),
        high_mib=round(high, 1),
        lease_mib=_lease_mib(high, verdict, card),
        parts={"context": context, **{kind: round(mib, 1) for kind, mib in found.parts.items()}},
        why=f"{found.why}{without}",
    )


# ---------------------------------------------------------------------- the table


def print_verdicts(rows: Sequence[Verdict], card: Card, as_json: bool) -> None:
    """To the terminal, or as JSON."""
    if as_json:
        print(json.dumps({"card": card.model_dump(), "steps": [asdict(row) for row in rows]}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    granted = f"{card.name}: {card.budget_mib:,} of {card.total_mib:,} MiB may be granted"
    console.print(granted, highlight=False)
    for name in COLUMNS:
        # figures stay whole in a narrow terminal
        table.add_column(name, overflow="fold", no_wrap=name != "step")
    for row in rows:
        table.add_row(row.step, *_cells(row), row.verdict)
    console.print(table, highlight=False)
    for row in rows:
        console.print(f"{row.step}: {explain(row)}", highlight=False, markup=False)


def _cells(row: Verdict) -> list[str]:
    numbers = ["none" if row.verdict == "fits" else "", "", ""]
    if row.mib:
        numbers = [f"{row.mib:,.0f} MiB", f"{row.low_mib:,.0f}-{row.high_mib:,.0f}", f"{row.lease_mib:,}"]
    return numbers + ["" if n is None else f"{n:,}" for n in (row.micro_batch, row.largest_micro_batch)]


def explain(row: Verdict) -> str:
    """Parts and moment of the peak, errors of the family, what would make it fit; or why it is unknown."""
    largest_first = sorted(row.parts.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{kind} {mib:,.0f}" for kind, mib in largest_first if mib >= 1)
    ways = "; ".join(f"{what} takes {mib:,.0f} MiB" for what, mib in row.changes.items())
    verb = "what makes it fit" if row.verdict == "does not fit" else "chosen by itself to fit"
    at = f" (in {row.peak})" if row.peak else ""
    sentences = [
        f"{parts} MiB{at}" if parts else "",
        row.why,
        row.history,
        f"{row.host_mib:,.0f} MiB of the machine's memory" if row.host_mib else "",
        f"{verb}: {ways}" if ways else "",
    ]
    return ". ".join(sentence for sentence in sentences if sentence)
