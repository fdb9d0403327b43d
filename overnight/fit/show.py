"""`overnight fit`: what every step of a config would take of a card, and what would fit."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.artifact import DataSpec
from overnight.config import Params
from overnight.errors import BadInput
from overnight.fit.outline import Foreseen, outline
from overnight.gpu.device import RESERVE_MIB, Card

if TYPE_CHECKING:
    from overnight.fit.prediction import Prediction

ROUND_MIB = 64  # leases are multiples of it


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
    changes: dict[str, float] = field(default_factory=dict)  # what to write into the config -> MiB
    why: str = ""


def show(path: Path, overrides: Sequence[str], card: Card, as_json: bool) -> int:
    """Print the table; 3 when a step does not fit, 2 when nobody knows of one, else 0."""
    rows = [judged(step, card) for step in outline(path, overrides) if step.step.gpu]
    if as_json:
        print(json.dumps({"card": card.model_dump(), "steps": [asdict(row) for row in rows]}, indent=1))
    else:
        _print(rows, card)
    verdicts = {row.verdict for row in rows}
    return 3 if "does not fit" in verdicts else 2 if "unknown" in verdicts else 0


def of_size(gib: float) -> Card:
    """A card that is not here: what other programs need is kept back, as on a real one."""
    total = round(gib * 1024)
    return Card(uuid="virtual", name=f"a card of {gib:g} GB", total_mib=total, budget_mib=total - RESERVE_MIB)


def judged(step: Foreseen, card: Card) -> Judged:
    """One step on one card, real or imagined: always as CUDA would run it."""
    try:
        if step.step.recipe is not None:
            return _by_trace(step, card)
        if step.step.peak is not None and None not in step.given:
            return _by_formula(step, card)
    except BadInput as error:
        return Judged(step.label, "unknown", why=str(error))
    return Judged(step.label, "unknown", why=f"nothing to predict it by; it asks for the {step.step.vram_mib} MiB that it declares")


def _by_trace(step: Foreseen, card: Card) -> Judged:
    from overnight.fit.prediction import Constants
    from overnight.fit.search import Scaled, changes

    spec = next((given for given in step.given if isinstance(given, DataSpec)), None)
    if spec is None or step.step.recipe is None:
        return Judged(step.label, "unknown", why="shapes of its data are unknown: run the steps before it once, or describe the set")
    recipe = step.step.recipe(step.params, spec)
    micro = recipe.params.micro_batch or recipe.params.batch
    scaled = Scaled(recipe, "cuda", 0.0, Constants(context_mib=_context(card)))
    found = scaled.exact(micro)
    if found.unknown:
        return Judged(step.label, "unknown", why=found.unknown)
    best = scaled.largest(card.budget_mib) if recipe.split.__name__ == "rows" else None
    if found.verdict(card.budget_mib) == "fits":
        return _row(step.label, found, "fits", best, card)
    ways = {c.what: round(c.prediction.mib) for c in changes(scaled, card.budget_mib, micro, best)}
    if best is not None and _chosen(step.params):  # the engine chooses the micro-batch
        return replace(_row(step.label, best, "fits", best, card), changes=dict(ways))
    return replace(_row(step.label, found, "does not fit", best, card), changes=dict(ways))


def _row(label: str, found: "Prediction", verdict: str, best: "Prediction | None", card: Card) -> Judged:
    return Judged(
        step=label,
        verdict=verdict,
        mib=round(found.mib, 1),
        low_mib=round(found.low_mib, 1),
        high_mib=round(found.high_mib, 1),
        lease_mib=min(_rounded(found.high_mib), card.budget_mib),
        micro_batch=found.micro_batch if best else None,
        largest_micro_batch=best.micro_batch if best else None,
        parts={kind: round(mib, 1) for kind, mib in found.parts.items()},
        peak=f"{found.phase}, {found.operator}",
    )


def _rounded(mib: float) -> int:
    return -int(-mib // ROUND_MIB) * ROUND_MIB


def _by_formula(step: Foreseen, card: Card) -> Judged:
    band = step.step.peak(step.params, *step.given) if step.step.peak else None
    if band is None:
        return Judged(step.label, "unknown", why="the size of its tables is unknown: get the data, or write `bytes` into the set's entry")
    low, high = (mib + _context(card) for mib in band)
    verdict = "fits" if high <= card.budget_mib else "does not fit"
    return Judged(
        step.label,
        verdict,
        round(high, 1),
        round(low, 1),
        round(high, 1),
        _rounded(high),
        parts={"context": _context(card), "data": round(band[1], 1)},
    )


def _chosen(params: Any) -> bool:
    return isinstance(params, Params) and getattr(params, "micro_batch", 0) is None


def _context(card: Card) -> float:
    from overnight.gpu.context import UNMEASURED_MIB, overhead

    return float(UNMEASURED_MIB if card.virtual else overhead(card))


def _print(rows: Sequence[Judged], card: Card) -> None:
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(box=None, pad_edge=False, header_style="bold dim")
    console.print(f"{card.name}: {card.budget_mib} of {card.total_mib} MiB may be granted", highlight=False)
    for name in ("step", "predicted", "band", "lease", "micro-batch", "largest", "verdict"):
        table.add_column(name, overflow="fold")
    for row in rows:
        numbers = [f"{row.mib:,.0f} MiB", f"{row.low_mib:,.0f}-{row.high_mib:,.0f}", f"{row.lease_mib:,}"] if row.mib else [""] * 3
        sizes = ["" if n is None else f"{n:,}" for n in (row.micro_batch, row.largest_micro_batch)]
        table.add_row(row.step, *numbers, *sizes, row.verdict)
    console.print(table, highlight=False)
    for row in rows:
        console.print(f"{row.step}: {_explained(row)}", highlight=False, markup=False)


def _explained(row: Judged) -> str:
    """What the peak is made of, when it is, and what would make it fit; or why nobody knows."""
    if row.verdict == "unknown":
        return row.why
    made = ", ".join(f"{kind} {mib:,.0f}" for kind, mib in sorted(row.parts.items(), key=lambda part: -part[1]) if mib >= 1)
    ways = "; ".join(f"{what} takes {mib:,.0f} MiB" for what, mib in row.changes.items())
    return f"{made}{f' (in {row.peak})' if row.peak else ''}{f'. {ways}' if ways else ''}"
