"""MemoryEstimate intervals of a step's memory, how they are stored, and how measurements calibrate them.

A trace takes seconds and its result does not change from night to night, so it is stored in the step's folder
(see history.py) as a file name: band-<version of overnight.memory>-<micro-batch>-<low>-<mid>-<high>-<needed>
in KiB, or band-<version>-<micro-batch>-unknown, which contains the reason.

Every run that finished below its cap leaves <card's folder>/families/<family>/<number>-<predicted
KiB>-<measured KiB>. A family is a step and the kind of net that it trains. Its errors calibrate the next
prediction: a peak outside the interval widens it at once; from the fifth run on it is narrowed to the errors
seen plus 1 %, but to no less than half of its width, and only within a factor of 4 of what was measured.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overnight.files import source_sha256
from overnight.gpu.card import Card
from overnight.memory import history

if TYPE_CHECKING:
    from overnight.step import Step

KIB = 1024
MOST_KIB = 10**12
BOUND = 2.0  # a measurement moves a prediction by no more than this factor, in either direction
SLACK = 1.03  # factor by which one more run may differ
KINDS_OF_NET = ("arch", "recipe", "conv", "algorithm", "model")  # fields of Params that name one
MOST_RUNS = 200  # of a family, that are kept
ENOUGH = 5  # runs from which on the interval is narrowed
RANGE = 4.0
LEAST = 0.5  # of an edge's distance, however good the predictions were
ERROR_SLACK = 0.01
_ERROR_NAME = re.compile(r"([0-9]{1,9})-([0-9]{1,12})-([0-9]{1,12})")


class PredictionInterval(NamedTuple):
    """MiB of the allocator, without the context: both edges, the likely figure, the upper edge of the need.

    An evaluation is cut into smaller slices when memory runs out, so `needed`, which excludes it, decides
    what fits.
    """

    low: float
    high: float
    mid: float
    needed: float

    @classmethod
    def of(cls, found: "tuple[float, ...]") -> "PredictionInterval":
        """From all four figures, or from (low, high), whose upper edge is the likely figure."""
        return cls(*found) if len(found) == len(cls._fields) else cls(found[0], found[1], found[1], found[1])

    @property
    def training(self) -> float:
        """The likely figure without the evaluation."""
        return max(self.low, self.needed - (self.high - self.mid))


class Unknown(NamedTuple):
    """There is no prediction, and why."""

    why: str


Predict = Callable[[Any, int, Card], "tuple[float, ...] | None"]  # (recipe, micro-batch, card) -> an interval


def predict_here(recipe: Any, micro_batch: int, card: Card) -> "PredictionInterval | Unknown":
    """Trace the recipe in this process."""
    from overnight.memory.prediction import Constants, predict

    found = predict(
        recipe, micro_batch, "cpu" if card.virtual else "cuda", constants=Constants.of(card.virtual)
    )
    if found.unknown:
        return Unknown(found.unknown)
    return PredictionInterval(found.low_mib, found.high_mib, found.mib, found.needed_mib)


# ---------------------------------------------------------------------- stored


def stored(
    predict: "Callable[[Any, int, Card], tuple[Any, ...] | None]", folder: Path, version: str
) -> Predict:
    """`predict` behind the stored intervals: called once for each micro-batch."""

    def lookup(recipe: Any, micro_batch: int, card: Card) -> "PredictionInterval | None":
        found = read_interval(folder, version, micro_batch)
        if found is None:
            made = predict(recipe, micro_batch, card)
            if isinstance(made, Unknown):
                found = made
            else:
                found = PredictionInterval.of(made) if made else Unknown("")
            store_interval(folder, version, micro_batch, found)
        return found if isinstance(found, PredictionInterval) else None

    return lookup


class StoredIntervals:
    """Looks intervals up; collects the micro-batches that are missing, and the reason why one is unknown."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder
        self.version = version
        self.missing = list[int]()
        self.unknown = ""

    def __call__(self, _recipe: Any, micro_batch: int, _card: Card) -> "PredictionInterval | None":
        found = read_interval(self.folder, self.version, micro_batch)
        if found is None and micro_batch not in self.missing:
            self.missing.append(micro_batch)
        if isinstance(found, Unknown):
            self.unknown = found.why
        return found if isinstance(found, PredictionInterval) else None

    def give_up(self, why: str) -> None:
        """Store the missing ones as unknown."""
        for micro_batch in self.missing:
            store_interval(self.folder, self.version, micro_batch, Unknown(why))
        self.missing.clear()
        self.unknown = why


def read_interval(folder: Path, version: str, micro_batch: int) -> "PredictionInterval | Unknown | None":
    """What is stored, None for nothing."""
    begin = re.escape(f"band-{version}-{micro_batch}-")
    with suppress(OSError):
        for path in folder.iterdir():
            if re.fullmatch(rf"{begin}unknown", path.name):
                return Unknown(path.read_text(encoding="utf-8", errors="replace")[:500])
            found = re.fullmatch(begin + "-".join(["([0-9]{1,12})"] * 4), path.name)
            if found:
                low, mid, high, needed = (int(n) / KIB for n in found.groups())
                return PredictionInterval(low, high, mid, needed)
    return None


def store_interval(
    folder: Path, version: str, micro_batch: int, found: "PredictionInterval | Unknown"
) -> None:
    """Store it, and remove those of other versions. NaN, negative and huge figures are stored as unknown."""
    if isinstance(found, PredictionInterval) and not all(0 <= m * KIB < MOST_KIB for m in found):
        found = Unknown("the prediction is no number")
    with suppress(OSError):
        history.open_folder(folder)
        for old in folder.glob("band-*"):
            if not old.name.startswith(f"band-{version}-"):
                old.unlink(missing_ok=True)
        begin = f"band-{version}-{micro_batch}-"
        if isinstance(found, Unknown):
            (folder / f"{begin}unknown").write_text(found.why, encoding="utf-8")
        else:
            upper = [math.ceil(m * KIB) for m in (found.mid, found.high, found.needed)]
            (folder / (begin + "-".join(map(str, [math.floor(found.low * KIB), *upper])))).touch()


@cache
def version() -> str:
    """Digest of the code that predicts and of the loop that it traces; empty when it is not installed."""
    found = importlib.util.find_spec("overnight.memory")
    if found is None or not found.submodule_search_locations:
        return ""
    folder = Path(found.submodule_search_locations[0])
    files = sorted([*folder.rglob("*.py"), *(folder.parent / "training").glob("*.py")])
    return source_sha256(files)[:8]


# ---------------------------------------------------------------------- calibrated by the step's own runs


def calibrated_by_runs(
    interval: PredictionInterval, others: Mapping[int, PredictionInterval], peaks: Mapping[int, float]
) -> "tuple[float, float] | None":
    """(low, high) MiB of a micro-batch from its prediction and the peaks of others; None where none ran.

    Each measured peak gives two estimates: the prediction times the factor by which it was off (at most
    BOUND), and the prediction plus the difference in MiB. The training goes below its prediction only as far
    as a measured peak lay below the predicted training of that micro-batch.
    """
    known = {size: peak for size, peak in peaks.items() if size in others and others[size].mid > 0}
    if not known:
        return None
    estimates = list[float]()
    share = 1.0
    for size, peak in known.items():
        other = others[size]
        estimates += [interval.mid * _bounded(peak / other.mid), interval.mid + peak - other.mid]
        share = min(share, peak / other.training if other.training else 1.0)
    floor = max(interval.training * _bounded(share), interval.mid / BOUND)
    return max(min(estimates), floor), max(*estimates, floor)


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / BOUND), BOUND)


# ---------------------------------------------------------------------- calibrated by the family


@dataclass(frozen=True)
class PredictionError:
    """One run: MiB as predicted and as measured."""

    predicted_mib: float
    measured_mib: float

    @property
    def share(self) -> float:
        """(measured - predicted) / predicted."""
        return self.measured_mib / self.predicted_mib - 1


def family(step: "Step[Any, Any]", params: Any) -> str:
    """The step and the kind of net: `train_gnn-gat`."""
    fields = (getattr(params, field, None) for field in KINDS_OF_NET)
    kind = next((value for value in fields if isinstance(value, str)), "")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{step.name}-{kind}" if kind else step.name)[:80]


def read_errors(card: Card, family: str) -> list[PredictionError]:
    """Errors of a family, in order."""
    names = _error_names(_family_folder(card, family))
    return [PredictionError(int(m[2]) / KIB, int(m[3]) / KIB) for m in names]


def add_error(card: Card, family: str, predicted_mib: float, measured_mib: float) -> None:
    """Record an error. NaN, zero and huge values are ignored, and so is a disk that cannot be written."""
    if not all(0 < mib * KIB < MOST_KIB for mib in (predicted_mib, measured_mib)):
        return
    folder = _family_folder(card, family)
    known = _error_names(folder)
    number = int(known[-1][1]) + 1 if known else 1
    predicted, measured = (max(1, round(mib * KIB)) for mib in (predicted_mib, measured_mib))
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}-{predicted}-{measured}").touch()
        for old in known[: max(0, len(known) + 1 - MOST_RUNS)]:
            (folder / old[0]).unlink(missing_ok=True)


def calibrated(interval: PredictionInterval, errors: Sequence[PredictionError]) -> PredictionInterval:
    """The interval with its edges where the errors of the family put them."""
    if not errors or interval.mid <= 0:
        return interval
    mid = interval.mid
    high = mid * (1 + max(e.share for e in errors) + ERROR_SLACK)
    low = mid * (1 + min(e.share for e in errors) - ERROR_SLACK)
    if len(errors) < ENOUGH or not in_range(mid, errors):  # only ever wider
        high = max(high, interval.high)
        low = min(low, interval.low)
    else:
        high = max(high, mid + LEAST * (interval.high - mid))
        low = min(low, mid - LEAST * (mid - interval.low))
    return PredictionInterval(max(0.0, low), high, mid, max(0.0, interval.needed + high - interval.high))


def in_range(mid_mib: float, errors: Sequence[PredictionError]) -> bool:
    """Whether runs of about this size were measured."""
    return any(mid_mib / RANGE <= e.predicted_mib <= mid_mib * RANGE for e in errors)


def describe_errors(mid_mib: float, errors: Sequence[PredictionError]) -> str:
    """`12 runs of its family measured, -1.2 % to +3.4 %`, and the tested range if it is left."""
    if not errors:
        return "no run of its family was measured: outside the tested range"
    shares = [e.share for e in errors]
    between = f"{min(shares):+.1%} to {max(shares):+.1%}".replace("%", " %")
    runs = f"{len(errors)} run{'s' if len(errors) > 1 else ''} of its family measured, {between}"
    if in_range(mid_mib, errors):
        return runs
    sizes = [e.predicted_mib for e in errors]
    return f"{runs}; outside the tested range of {min(sizes):,.0f} to {max(sizes):,.0f} MiB"


def _error_names(folder: Path) -> list[re.Match[str]]:
    """File names of errors, in order. Other names are ignored."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    return sorted((m for m in map(_ERROR_NAME.fullmatch, names) if m and int(m[2])), key=lambda m: int(m[1]))


def _family_folder(card: Card, family: str) -> Path:
    return card.folder / "families" / family
