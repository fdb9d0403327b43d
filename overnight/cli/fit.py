"""`overnight fit`: what every step of a config would take of a card, and what would make it fit."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.artifact import DataSpec
from overnight.errors import FAILURES, ConfigError, OvernightError
from overnight.gpu.card import RESERVE_MIB, Card, find
from overnight.memory.formulas import Formula
from overnight.memory.history import History, family
from overnight.memory.prediction import Constants, MemoryEstimate
from overnight.memory.request import ROUND_MIB, calibrated
from overnight.memory.usage import Usage
from overnight.orchestration.dry_run import PlannedStep, planned_steps
from overnight.orchestration.terminal import table

if TYPE_CHECKING:
    from overnight.memory.search import ScaledPredictions

MOST_GB = 1024
RANGE = 4.0  # times smaller or larger than a run that was measured is still tested
COLUMNS = ("step", "predicted", "band", "lease", "micro-batch", "largest", "verdict")
ON_PROCESSOR = "runs on the processor: nothing of the card"


@dataclass(frozen=True)
class Verdict:
    """A row of the table, MiB.

    parts: by kind at the peak; peak: its phase and operator. changes: what to write into the config -> MiB
    then, the cheapest first. history: how far predictions of its family were off. host_mib: of the machine's
    own memory.
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
    return print_verdicts([verdict_of(step, card) for step in planned_steps(path, overrides)], card, as_json)


def of_size(gib: float) -> Card:
    """With the same reserve for other programs. Raises ConfigError."""
    least = RESERVE_MIB / 1024
    if not (math.isfinite(gib) and least < gib <= MOST_GB):
        raise ConfigError(
            f"--card {gib:g}: give the memory of a card in GB, more than the {least:g} kept for other "
            f"programs, at most {MOST_GB}"
        )
    total = round(gib * 1024)
    return Card(uuid="virtual", name=f"a card of {gib:g} GB", total_mib=total, budget_mib=total - RESERVE_MIB)


def verdict_of(step: PlannedStep, card: Card) -> Verdict:
    """Judge a step as CUDA would run it."""
    try:
        if step.step.recipe is not None:
            return _by_trace(step, card)
        if step.step.peak is not None:
            return _by_formula(step, card)
    except OvernightError as error:
        return Verdict(step.label, "unknown", why=str(error))
    except (ArithmeticError, *FAILURES) as error:
        why = f"it cannot be built for its data: {type(error).__name__}: {error}"
        return Verdict(step.label, "unknown", why=why)
    if not step.step.gpu:
        return Verdict(step.label, "fits", why=ON_PROCESSOR)
    declared = f"the {step.step.vram_mib or card.budget_mib} MiB that it declares, then for what it took"
    return Verdict(step.label, "unknown", why=f"nothing to predict it by; it asks for {declared}")


def constants(card: Card) -> Constants:
    from overnight.gpu.cuda_context import UNMEASURED_MIB, overhead
    from overnight.gpu.memory_limit import expands

    context = float(UNMEASURED_MIB if card.virtual else overhead(card))
    return Constants(context_mib=context, expandable=expands(card))


def row(
    label: str,
    found: MemoryEstimate,
    card: Card,
    best: MemoryEstimate | None = None,
    changes: Mapping[str, float] | None = None,
    why: str = "",
    moved: MemoryEstimate | None = None,
) -> Verdict:
    """best: of the largest micro-batch that fits. moved: with other edges."""
    if found.unknown:
        return Verdict(label, "unknown", why=found.unknown)
    edges = moved or found
    lease_mib = -int(-edges.high_mib // ROUND_MIB) * ROUND_MIB
    fits = found.fits(card.budget_mib)
    return Verdict(
        step=label,
        verdict="fits" if fits else "does not fit",
        mib=round(found.mib, 1),
        low_mib=round(edges.low_mib, 1),
        high_mib=round(edges.high_mib, 1),
        lease_mib=min(lease_mib, card.budget_mib) if fits else lease_mib,
        micro_batch=found.micro_batch or None,
        largest_micro_batch=best.micro_batch if best else None,
        parts={kind: round(mib, 1) for kind, mib in found.parts.items()},
        peak=f"{found.phase}, {found.operator}".strip(", "),
        changes={what: round(mib) for what, mib in (changes or {}).items()},
        why=why,
    )


def _by_trace(step: PlannedStep, card: Card) -> Verdict:
    from overnight.cli.fit_suggestions import changes, splittable
    from overnight.memory.search import ScaledPredictions

    spec = step.shapes
    if spec is None or step.step.recipe is None:
        return Verdict(step.label, "unknown", why=step.missing)
    recipe = step.step.recipe(step.params, spec)
    micro = recipe.params.micro_batch or recipe.params.batch
    scaled = ScaledPredictions(recipe, constants(card))
    found = scaled.exact(micro)
    if found.unknown:
        return row(step.label, found, card)
    best = scaled.largest(card.budget_mib) if splittable(scaled) else None
    ways = dict[str, float]()
    why = ""
    if not found.fits(card.budget_mib):
        fitting = changes(step, spec, scaled, card.budget_mib, micro, best)
        ways = {what: other.needed_mib for what, other in fitting.items()}
        why = "" if ways else f"none of its own settings makes it fit {_shortfall(scaled, card)}"
        if best is not None and getattr(step.params, "micro_batch", 0) is None:
            found = best  # the engine chooses it
    if found.fits(card.budget_mib):
        cut = "its evaluation is cut into smaller slices; the training takes"
        why = f"{cut} {found.needed_mib:,.0f} MiB at most" if found.mib > card.budget_mib else ""
    moved, history = _calibrated(step, found, card)
    made = row(step.label, found, card, best, ways, why, moved)
    return replace(made, micro_batch=found.micro_batch if best else None, history=history)


def _shortfall(scaled: "ScaledPredictions", card: Card) -> str:
    from overnight.cli.fit_suggestions import splittable

    least = scaled.exact(1 if splittable(scaled) else scaled.recipe.params.batch)
    return f"(it takes {least.needed_mib:,.0f} MiB at the least, of {card.budget_mib:,})"


def _calibrated(step: PlannedStep, found: MemoryEstimate, card: Card) -> tuple[MemoryEstimate, str]:
    """With the edges where the family's errors put them; those measured on a processor do not calibrate."""
    measured_on = card if not card.virtual else find()
    runs = History(measured_on).family(family(step.step, step.params))
    history = describe_errors(found.mib - found.parts["context"], runs)
    if not measured_on.virtual:
        return calibrated(found, runs), history
    return found, f"on the processor: {history}" if runs else history


def describe_errors(mib: float, runs: Sequence[Usage]) -> str:
    """`12 runs of its family measured, -1.2 % to +3.4 %`, and the tested range if it is left."""
    if not runs:
        return "no run of its family was measured: outside the tested range"
    errors = [run.prediction_error or 0.0 for run in runs]
    between = f"{min(errors):+.1%} to {max(errors):+.1%}".replace("%", " %")
    measured = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of its family measured, {between}"
    sizes = [run.predicted_mib or 0.0 for run in runs]
    if any(mib / RANGE <= size <= mib * RANGE for size in sizes):
        return measured
    return f"{measured}; outside the tested range of {min(sizes):,.0f} to {max(sizes):,.0f} MiB"


def _by_formula(step: PlannedStep, card: Card) -> Verdict:
    given = [g if g is not None else DataSpec() for g in step.given]
    found = Formula.of(step.step.peak(step.params, *given)) if step.step.peak else None
    if found is None or found.unknown:
        return Verdict(step.label, "unknown", why=found.unknown if found else step.missing)
    if not found.high:
        return Verdict(step.label, "fits", host_mib=round(found.host_mib, 1), why=found.why or ON_PROCESSOR)
    context = constants(card).context_mib
    high = found.high + context
    without = f"; without {found.needs} it runs on the processor and takes nothing" if found.needs else ""
    estimate = MemoryEstimate(
        mib=high,
        low_mib=found.low + context,
        high_mib=high,
        needed_mib=high,
        parts={"context": context, **found.parts},
    )
    advice = found.advice(card.budget_mib) if found.advice and high > card.budget_mib else ""
    return row(step.label, estimate, card, why=". ".join(filter(None, [f"{found.why}{without}", advice])))


def print_verdicts(rows: Sequence[Verdict], card: Card, as_json: bool) -> int:
    """3 when a step does not fit, 2 when one is unknown, else 0."""
    if as_json:
        print(json.dumps({"card": card.model_dump(), "steps": [asdict(row) for row in rows]}, indent=1))
    else:
        _print_table(rows, card)
    verdicts = {row.verdict for row in rows}
    return 3 if "does not fit" in verdicts else 2 * ("unknown" in verdicts)


def _print_table(rows: Sequence[Verdict], card: Card) -> None:
    from rich.console import Console
    from rich.table import Column

    console = Console(highlight=False)
    console.print(f"{card.name}: {card.budget_mib:,} of {card.total_mib:,} MiB may be granted")
    # figures stay whole in a narrow terminal
    columns = [Column(name, overflow="fold", no_wrap=name != "step") for name in COLUMNS]
    console.print(table(columns, ([row.step, *_cells(row), row.verdict] for row in rows)))
    for row in rows:
        console.print(f"{row.step}: {explain(row)}", markup=False)


def _cells(row: Verdict) -> list[str]:
    numbers = ["none" if row.verdict == "fits" else "", "", ""]
    if row.mib:
        numbers = [f"{row.mib:,.0f} MiB", f"{row.low_mib:,.0f}-{row.high_mib:,.0f}", f"{row.lease_mib:,}"]
    return numbers + ["" if n is None else f"{n:,}" for n in (row.micro_batch, row.largest_micro_batch)]


def explain(row: Verdict) -> str:
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
    return ". ".join(filter(None, sentences))
