"""How far predictions were off, by family: the step and the kind of net that it trains.

Every run that came through below its cap leaves an empty file in <card's folder>/families/<family>/:

    <number>-<predicted KiB>-<measured KiB>

What they say moves the edges of the next prediction. A peak outside them widens them at once. From the fifth run on they are as
narrow as the errors that were seen, and 1 %, but never narrower than half of what they were, and only where the prediction lies
within a factor of 4 of what was measured: beyond that nothing is known to hold.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.gpu.card import Card
from overnight.memory.intervals import KIB, MOST_KIB, Band

if TYPE_CHECKING:
    from overnight.step import Step

KINDS_OF_NET = ("arch", "recipe", "conv", "algorithm", "model")  # fields of Params that name one
MOST = 200  # runs of a family that are kept
ENOUGH = 5  # runs from which on the edges are narrowed
RANGE = 4.0
LEAST = 0.5  # of an edge's distance, however good the predictions were
SLACK = 0.01
_NAME = re.compile(r"([0-9]{1,9})-([0-9]{1,12})-([0-9]{1,12})")


@dataclass(frozen=True)
class Error:
    """One run: MiB as predicted and as measured."""

    predicted_mib: float
    measured_mib: float

    @property
    def share(self) -> float:
        """Of the prediction, by which the measurement was above it."""
        return self.measured_mib / self.predicted_mib - 1


def name(step: "Step[Any, Any]", params: Any) -> str:
    """The family: `train_gnn-gat`."""
    kind = next(
        (
            str(getattr(params, field))
            for field in KINDS_OF_NET
            if isinstance(getattr(params, field, None), str)
        ),
        "",
    )
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{step.name}-{kind}" if kind else step.name)[:80]


def errors(card: Card, family: str) -> list[Error]:
    """Those of a family, in order."""
    return [Error(int(m[2]) / KIB, int(m[3]) / KIB) for m in _found(_folder(card, family))]


def add(card: Card, family: str, predicted_mib: float, measured_mib: float) -> None:
    """Note one. Where that cannot be, or where one of the two is no figure, nothing is learned."""
    if not all(0 < mib * KIB < MOST_KIB for mib in (predicted_mib, measured_mib)):
        return
    folder = _folder(card, family)
    known = _found(folder)
    number = int(known[-1][1]) + 1 if known else 1
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (
            folder / f"{number}-{max(1, round(predicted_mib * KIB))}-{max(1, round(measured_mib * KIB))}"
        ).touch()
        for old in known[: max(0, len(known) + 1 - MOST)]:
            (folder / old[0]).unlink(missing_ok=True)


def moved(band: Band, seen: Sequence[Error]) -> Band:
    """The band with its edges where the errors that were seen put them."""
    if not seen or band.mid <= 0:
        return band
    most, least = max(e.share for e in seen), min(e.share for e in seen)
    high, low = band.mid * (1 + most + SLACK), band.mid * (1 + least - SLACK)
    if len(seen) < ENOUGH or not within(band.mid, seen):  # only ever wider
        high, low = max(high, band.high), min(low, band.low)
    else:
        high, low = (
            max(high, band.mid + LEAST * (band.high - band.mid)),
            min(low, band.mid - LEAST * (band.mid - band.low)),
        )
    return Band(max(0.0, low), high, band.mid, max(0.0, band.needed + high - band.high))


def within(mid_mib: float, seen: Sequence[Error]) -> bool:
    """Whether a prediction lies in the range that was tested."""
    return any(mid_mib / RANGE <= e.predicted_mib <= mid_mib * RANGE for e in seen)


def told(mid_mib: float, seen: Sequence[Error]) -> str:
    """`12 runs of its family measured, -1.2 % to +3.4 %`, and where the prediction lies outside of what was tested, that."""
    if not seen:
        return "no run of its family was measured: outside the tested range"
    shares = [e.share for e in seen]
    runs = f"{len(seen)} run{'s' if len(seen) > 1 else ''} of its family measured, {min(shares):+.1%} to {max(shares):+.1%}".replace(
        "%", " %"
    )
    if within(mid_mib, seen):
        return runs
    sizes = [e.predicted_mib for e in seen]
    return f"{runs}; outside the tested range of {min(sizes):,.0f} to {max(sizes):,.0f} MiB"


def _found(folder: Path) -> list[re.Match[str]]:
    """Names of runs, in order; what is no run is passed over."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    return sorted((m for m in map(_NAME.fullmatch, names) if m and int(m[2])), key=lambda m: int(m[1]))


def _folder(card: Card, family: str) -> Path:
    return card.folder / "families" / family
