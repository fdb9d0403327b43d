"""Predictions that were made before, and what measurements at other micro-batches make of them.

A trace takes seconds, and nothing of it changes from night to night: its band lies beside what was learned of a step, as a file whose
name says it all: band-<version of overnight.memory>-<micro-batch>-<low>-<mid>-<high>-<needed> in KiB, or band-<version>-<micro-batch>-unknown,
which holds the reason.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from overnight.files import source_sha256
from overnight.gpu.card import Card
from overnight.memory import history

KIB = 1024
MOST_KIB = 10**12
BOUND = 2.0  # a measurement moves a prediction by no more than this factor, in either direction
SLACK = 1.03  # what one more run may differ by


class Band(NamedTuple):
    """MiB of the allocator, without the context: between which edges, most likely, and the upper edge of what cannot be cut smaller.

    An evaluation is cut into smaller slices where memory runs out; so `needed`, which is without it, decides what fits.
    """

    low: float
    high: float
    mid: float
    needed: float

    @classmethod
    def of(cls, found: "tuple[float, ...]") -> "Band":
        """Of (low, high) alone the upper edge is the likely figure."""
        return cls(*found) if len(found) == len(cls._fields) else cls(found[0], found[1], found[1], found[1])

    @property
    def training(self) -> float:
        """The likely figure of what cannot be cut smaller."""
        return max(self.low, self.needed - (self.high - self.mid))


class Unknown(NamedTuple):
    """There is no prediction, and why."""

    why: str


Predict = Callable[
    [Any, int, Card], "tuple[float, ...] | None"
]  # (recipe, micro-batch, card) -> a Band, or its edges


def tracing(recipe: Any, micro_batch: int, card: Card) -> "Band | Unknown":
    """The prediction of overnight.memory, made in this very process."""
    from overnight.memory.prediction import Constants, predict

    found = predict(
        recipe, micro_batch, "cpu" if card.virtual else "cuda", constants=Constants.of(card.virtual)
    )
    return (
        Unknown(found.unknown)
        if found.unknown
        else Band(found.low_mib, found.high_mib, found.mib, found.needed_mib)
    )


def remembered(
    predict: "Callable[[Any, int, Card], tuple[Any, ...] | None]", folder: Path, version: str
) -> Predict:
    """The same, asked once for each micro-batch."""

    def known(recipe: Any, micro_batch: int, card: Card) -> "Band | None":
        found = read(folder, version, micro_batch)
        if found is None:
            made = predict(recipe, micro_batch, card)
            found = made if isinstance(made, Unknown) else Band.of(made) if made else Unknown("")
            keep(folder, version, micro_batch, found)
        return found if isinstance(found, Band) else None

    return known


class Known:
    """What was predicted of a step; notes for which micro-batches nothing is there yet, and why one is unknown."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder, self.version, self.missing, self.unknown = folder, version, list[int](), ""

    def __call__(self, _recipe: Any, micro_batch: int, _card: Card) -> "Band | None":
        found = read(self.folder, self.version, micro_batch)
        if found is None and micro_batch not in self.missing:
            self.missing.append(micro_batch)
        if isinstance(found, Unknown):
            self.unknown = found.why
        return found if isinstance(found, Band) else None

    def give_up(self, why: str) -> None:
        """Those that are missing are unknown from now on."""
        for micro_batch in self.missing:
            keep(self.folder, self.version, micro_batch, Unknown(why))
        self.missing.clear()
        self.unknown = why


def read(folder: Path, version: str, micro_batch: int) -> "Band | Unknown | None":
    """What was kept; None for nothing."""
    begin = re.escape(f"band-{version}-{micro_batch}-")
    with suppress(OSError):
        for path in folder.iterdir():
            if re.fullmatch(rf"{begin}unknown", path.name):
                return Unknown(path.read_text(encoding="utf-8", errors="replace")[:500])
            if found := re.fullmatch(begin + "-".join(["([0-9]{1,12})"] * 4), path.name):
                low, mid, high, needed = (int(n) / KIB for n in found.groups())
                return Band(low, high, mid, needed)
    return None


def keep(folder: Path, version: str, micro_batch: int, found: "Band | Unknown") -> None:
    """Note it, without those that other versions made. No figure (NaN, negative, beyond all bounds) is unknown."""
    if isinstance(found, Band) and not all(math.isfinite(m) and 0 <= m * KIB < MOST_KIB for m in found):
        found = Unknown("the prediction is no number")
    with suppress(OSError):
        history.open_folder(folder)
        for old in folder.glob("band-*"):
            if not old.name.startswith(f"band-{version}-"):
                old.unlink(missing_ok=True)
        path = folder / f"band-{version}-{micro_batch}-{_figures(found)}"
        path.write_text(found.why, encoding="utf-8") if isinstance(found, Unknown) else path.touch()


def _figures(found: "Band | Unknown") -> str:
    if isinstance(found, Unknown):
        return "unknown"
    return "-".join(
        str(n)
        for n in (
            math.floor(found.low * KIB),
            *(math.ceil(m * KIB) for m in (found.mid, found.high, found.needed)),
        )
    )


def corrected(
    band: Band, others: Mapping[int, Band], peaks: Mapping[int, float]
) -> "tuple[float, float] | None":
    """Between which figures a micro-batch lies (MiB), by what is predicted of it and the peaks measured at others; None where none ran.

    Each measured peak says two things: by which factor the prediction was off (no more than BOUND is believed), and by how many MiB.
    The part that cannot be cut smaller goes below its prediction only as far as a measured peak lay below that part of its own.
    """
    known = {size: peak for size, peak in peaks.items() if size in others and others[size].mid > 0}
    if not known:
        return None
    readings, share = list[float](), 1.0
    for size, peak in known.items():
        readings += [band.mid * _bounded(peak / others[size].mid), band.mid + peak - others[size].mid]
        share = min(share, peak / others[size].training if others[size].training else 1.0)
    floor = max(band.training * _bounded(share), band.mid / BOUND)
    return max(min(readings), floor), max(*readings, floor)


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / BOUND), BOUND)


@cache
def version() -> str:
    """Digest of the code that predicts, and of the loop that it traces; empty where there is none of it."""
    found = importlib.util.find_spec("overnight.memory")
    if found is None or not found.submodule_search_locations:
        return ""
    folder = Path(found.submodule_search_locations[0])
    files = sorted(
        [*folder.rglob("*.py"), *folder.parent.glob("training.py"), *(folder.parent / "loop").glob("*.py")]
    )
    return source_sha256(files)[:8]
