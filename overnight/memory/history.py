"""Usage history: how runs of a step ended, so that the next one asks for what it needs.

Every outcome is an empty file <card's folder>/sizes/<memory key of the
step>/<number>-<micro-batch>-<kind>-<MiB>.
number: order of the outcomes; micro-batch: 0 for a step without one; kind: one of KINDS. Processes write
without a lock: a file is created once and never changed. Obsolete files are removed by the next writer;
files with other names are left alone.
"""

import math
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CLEAN = "clean"  # peak of its allocator, in a run that finished below 95 % of its cap
NEAR = "near"  # a cap that was filled to 95 % or more, without an error
OOM = "oom"  # a cap that was too small
FITS = "fits"  # a cap that sufficed after a larger micro-batch had failed in it; the need is unknown
ALONE = "alone"  # peak of the whole card above its baseline, while the step ran alone
OUTSIDE = "outside"  # it took memory that no cap limits; MiB is 0
CACHED_DATA = "resident"  # share of the last clean peak: data cached on the card because there was room
KINDS = (CLEAN, NEAR, OOM, FITS, ALONE, OUTSIDE, CACHED_DATA)

NEAR_SHARE = 0.95
LAST = 5  # clean runs whose largest peak counts
MARGIN = 1 / 8  # above a peak, so that an equal run stays below 95 % of its cap
LEAST_MARGIN_MIB = 64
RAISE = 1.25  # of a cap that was filled
DOUBLE = 2.0  # of a cap that was too small, until a run has finished since
LARGEST_SHARE = 0.97  # a cap above this share of the room, once filled, is not tried again
MOST_MIB = 10**8  # as many digits as a name has room for
MOST_STEPS = 1000  # folders that are kept
_NAME = re.compile(rf"([0-9]{{1,15}})-([0-9]{{1,9}})-({'|'.join(KINDS)})-([0-9]{{1,8}})")


@dataclass(frozen=True, order=True)
class Outcome:
    """Memory result of one run. size: micro-batch, 0 for a step without one."""

    number: int
    size: int
    kind: str
    mib: int

    @property
    def name(self) -> str:
        return f"{self.number}-{self.size}-{self.kind}-{self.mib}"


@dataclass(frozen=True)
class Requirement:
    """MiB that the allocator needs, without the CUDA context.

    least: known lower bound. wanted: enough if `sure`, else a guess. filled: the cap that was filled or too
    small.
    likely: a cap that probably suffices, tighter than `wanted`; 0 when unknown.
    """

    least: int
    wanted: int
    sure: bool = False
    filled: int = 0
    likely: int = 0

    def fits(self, room_mib: int) -> bool | None:
        """Whether to try a cap of `room_mib`. None: only when there is no smaller micro-batch."""
        if self.least > room_mib:
            return False
        worth_a_try = (
            self.wanted <= room_mib
            or 0 < self.likely <= room_mib
            or (self.sure and self.least < NEAR_SHARE * room_mib)
            or 0 < self.filled <= LARGEST_SHARE * room_mib
        )
        return True if worth_a_try else None


def read_outcomes(folder: Path) -> list[Outcome]:
    """All outcomes in order. Files with other names are ignored."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    found = [m for m in map(_NAME.fullmatch, names) if m]
    return sorted(Outcome(int(m[1]), int(m[2]), m[3], int(m[4])) for m in found)


def add_outcome(folder: Path, size: int, kind: str, mib: float) -> None:
    """Record an outcome.

    NaN, negative and huge values are ignored, and so is a disk that cannot be written.
    """
    if not 0 <= mib < MOST_MIB or size < 0:  # false for NaN
        return
    known = read_outcomes(folder)
    new = Outcome(known[-1].number + 1 if known else 1, size, kind, math.ceil(mib))
    with suppress(OSError):
        open_folder(folder)
        os.close(os.open(folder / new.name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for old in obsolete([*known, new]):
            (folder / old.name).unlink(missing_ok=True)


def obsolete(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """All outcomes but the last of each kind, the highest filled cap and the largest clean run after it."""
    kept = set[Outcome]()
    for size in {o.size for o in outcomes}:
        own = [o for o in outcomes if o.size == size]
        for kind in (CLEAN, ALONE):
            kept |= set([o for o in own if o.kind == kind][-LAST:])
        for kind in (OUTSIDE, FITS, CACHED_DATA):
            kept |= set([o for o in own if o.kind == kind][-1:])
        filled = [o for o in own if o.kind in (NEAR, OOM)]
        if filled:
            highest = max(filled, key=lambda o: (o.mib, o.kind == OOM, o.number))
            since = [o for o in own if o.kind == CLEAN and o.number > highest.number]
            kept |= {highest, *sorted(since, key=lambda o: o.mib)[-1:]}
    return [o for o in outcomes if o not in kept]


def requirement(outcomes: Sequence[Outcome], size: int) -> Requirement | None:
    """MiB that a micro-batch needs by its own outcomes, None without any.

    Clean runs need the largest of their last peaks plus a margin. A cap that was too small is doubled until a
    run finishes; then, and where a cap was nearly filled, it is raised by 1.25 until a later clean run holds
    as much as the cap itself, which measures the need. Smaller runs never lower it again.
    """
    clean = [o for o in outcomes if o.size == size and o.kind == CLEAN]
    recent = [o.mib for o in clean[-LAST:]]
    found = list[Requirement]()
    if recent:
        peak = max(recent)
        found.append(
            Requirement(max(0, peak - cached_data_mib(outcomes, size)), with_margin(peak), sure=True)
        )
    fits = [o.mib for o in outcomes if o.size == size and o.kind == FITS]
    if fits and not recent:
        found.append(Requirement(0, fits[-1], sure=True))
    found += [_after_filling(o, clean) for o in outcomes if o.size == size and o.kind in (NEAR, OOM)]
    if not found:
        return None
    most = max(found, key=lambda n: n.wanted)
    return Requirement(max(n.least for n in found), most.wanted, most.sure, most.filled)


def _after_filling(outcome: Outcome, clean: Sequence[Outcome]) -> Requirement:
    """Requirement from one filled cap and the clean runs since."""
    since = [o.mib for o in clean if o.number > outcome.number]
    too_small = outcome.kind == OOM
    least = outcome.mib + 1 if too_small else math.ceil(NEAR_SHARE * outcome.mib)
    if since and max(since) >= least:
        return Requirement(max(since), with_margin(max(since)), sure=True)
    factor = DOUBLE if too_small and not since else RAISE
    return Requirement(least, math.ceil(outcome.mib * factor) + 1, filled=outcome.mib)


def measured_peak(outcomes: Sequence[Outcome], size: int) -> int | None:
    """Largest of the last clean peaks of a micro-batch, without cached data.

    None without any since the last filled cap.
    """
    own = [o for o in outcomes if o.size == size and o.kind in (CLEAN, NEAR, OOM)]
    filled = max((o.number for o in own if o.kind != CLEAN), default=0)
    most = max([o.mib for o in own if o.kind == CLEAN and o.number > filled][-LAST:], default=None)
    return None if most is None else max(0, most - cached_data_mib(outcomes, size))


def cached_data_mib(outcomes: Sequence[Outcome], size: int) -> int:
    """Share of a micro-batch's peak that is data which need not lie on the card."""
    return next((o.mib for o in reversed(outcomes) if o.size == size and o.kind == CACHED_DATA), 0)


def device_mib(outcomes: Sequence[Outcome], size: int) -> int | None:
    """Peak of the whole card for a micro-batch that ran alone; None until measured."""
    return max([o.mib for o in outcomes if o.size == size and o.kind == ALONE][-LAST:], default=None)


def with_margin(peak_mib: float) -> int:
    """The cap for an expected peak."""
    return math.ceil(peak_mib + max(peak_mib * MARGIN, LEAST_MARGIN_MIB))


def open_folder(folder: Path) -> None:
    """Create a step's folder when it is missing, and keep the MOST_STEPS folders used last."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    steps = list(folder.parent.iterdir())
    if len(steps) > MOST_STEPS:
        for step in sorted(steps, key=lambda p: p.stat().st_mtime)[:-MOST_STEPS]:
            shutil.rmtree(step, ignore_errors=True)
