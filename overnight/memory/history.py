"""What steps needed before: every outcome is an empty file whose name says it all, so nothing of it can be torn or half written.

Files of <card's folder>/sizes/<memory fingerprint>/:

    <number>-<micro-batch>-<kind>-<MiB>

number: outcomes in their order; micro-batch: 0 for a step that has none. Several processes write at once without a lock: an outcome is
made in one step, is never changed, and what newer ones made worthless is removed by whoever comes next. Other names are left alone.
"""

import math
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CLEAN = "clean"  # the most its allocator held, in a run that stayed below 95 % of its cap and reached its end
NEAR = "near"  # a cap that was filled to 95 % or more, without an error
OOM = "oom"  # a cap that was not enough
FITS = "fits"  # a cap in which it came through, after a larger micro-batch had failed in it; how much it needs is not known
ALONE = "alone"  # the most the whole card held above its baseline while the step ran alone
OUTSIDE = "outside"  # it took memory that no cap holds; MiB is 0
RESIDENT = "resident"  # of the last clean peak: data that lay on the card because there was room, and would go where there is none
KINDS = (CLEAN, NEAR, OOM, FITS, ALONE, OUTSIDE, RESIDENT)

NEAR_SHARE = 0.95
LAST = 5  # clean runs whose largest peak counts
MARGIN = 1 / 8  # above a peak, so that an equal run stays below 95 % of its cap
LEAST_MARGIN_MIB = 64
RAISE, DOUBLE = 1.25, 2.0  # of a cap that was met; the second until a run has come through since
WORTH = 0.97  # of the largest cap there is: with one above that, which was met, it is not tried again
MOST_MIB = 10**8  # as many digits as a name has room for
MOST_STEPS = 1000  # fingerprints that are kept
_NAME = re.compile(rf"([0-9]{{1,15}})-([0-9]{{1,9}})-({'|'.join(KINDS)})-([0-9]{{1,8}})")


@dataclass(frozen=True, order=True)
class Outcome:
    """How one run ended, as far as memory goes."""

    number: int
    size: int  # micro-batch, 0: none
    kind: str
    mib: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.number}-{self.size}-{self.kind}-{self.mib}"


@dataclass(frozen=True)
class Need:
    """What the allocator needs (MiB): at least `least`, that is known; `wanted` is enough if `sure`, else a guess. met: the cap it met.

    likely: a cap that will probably do, with less to spare than `wanted`; 0 where there is no such figure.
    """

    least: int
    wanted: int
    sure: bool = False
    met: int = 0
    likely: int = 0

    def fits(self, room_mib: int) -> bool | None:
        """Whether a cap of `room_mib` is worth a try. None: only if nothing smaller can be had."""
        if (
            self.wanted <= room_mib
            or 0 < self.likely <= room_mib
            or (self.sure and self.least < NEAR_SHARE * room_mib)
            or (self.met and self.met <= WORTH * room_mib)
        ):
            return self.least <= room_mib
        return None if self.least <= room_mib else False


def read(folder: Path) -> list[Outcome]:
    """Every outcome of a fingerprint, in order; what is no outcome is passed over."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    found = [m for m in map(_NAME.fullmatch, names) if m]
    return sorted(Outcome(int(m[1]), int(m[2]), m[3], int(m[4])) for m in found)


def add(folder: Path, size: int, kind: str, mib: float) -> None:
    """Note an outcome. Where that cannot be (a full disk, a folder that may not be written, no figure) nothing is learned."""
    if not 0 <= mib < MOST_MIB or size < 0:  # NaN is neither
        return
    known = read(folder)
    new = Outcome(known[-1].number + 1 if known else 1, size, kind, math.ceil(mib))
    with suppress(OSError):
        open_folder(folder)
        os.close(os.open(folder / new.name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for old in worthless([*known, new]):
            (folder / old.name).unlink(missing_ok=True)


def worthless(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no figure needs: all but the last of each kind, the highest cap that was met, and the clean run that explains it."""
    kept = set[Outcome]()
    for size in {o.size for o in outcomes}:
        mine = [o for o in outcomes if o.size == size]
        for kind in (CLEAN, ALONE):
            kept |= set([o for o in mine if o.kind == kind][-LAST:])
        for kind in (OUTSIDE, FITS, RESIDENT):
            kept |= set([o for o in mine if o.kind == kind][-1:])
        met = [o for o in mine if o.kind in (NEAR, OOM)]
        for one in [max(met, key=lambda o: (o.mib, o.kind == OOM, o.number))] if met else []:
            kept |= {
                one,
                *sorted([o for o in mine if o.kind == CLEAN and o.number > one.number], key=lambda o: o.mib)[
                    -1:
                ],
            }
    return [o for o in outcomes if o not in kept]


def need(outcomes: Sequence[Outcome], size: int) -> Need | None:
    """What a micro-batch needs by its own outcomes; None where there are none.

    Clean runs count by the largest of their last peaks, and a margin. A cap that was met raises that: one that was not enough to its
    double until a run comes through; then, and where a cap was nearly filled, to 1.25 times the cap, until a later clean run holds as
    much as that itself and so shows what is needed. That stays, too: no number of smaller runs lets the cap be asked again.
    """
    clean = [o for o in outcomes if o.size == size and o.kind == CLEAN]
    recent = [o.mib for o in clean[-LAST:]]
    needs = (
        [Need(max(0, max(recent) - resident(outcomes, size)), with_margin(max(recent)), sure=True)]
        if recent
        else []
    )
    fits = [o.mib for o in outcomes if o.size == size and o.kind == FITS]
    needs += [Need(0, fits[-1], sure=True)] if fits and not recent else []
    needs += [_met(o, clean) for o in outcomes if o.size == size and o.kind in (NEAR, OOM)]
    if not needs:
        return None
    most = max(needs, key=lambda n: n.wanted)
    return Need(max(n.least for n in needs), most.wanted, most.sure, most.met)


def _met(one: Outcome, clean: Sequence[Outcome]) -> Need:
    """What a cap that was met says, in the light of the clean runs since."""
    since = [o.mib for o in clean if o.number > one.number]
    least = one.mib + 1 if one.kind == OOM else math.ceil(NEAR_SHARE * one.mib)
    if since and max(since) >= least:
        return Need(max(since), with_margin(max(since)), sure=True)
    return Need(
        least, math.ceil(one.mib * (DOUBLE if one.kind == OOM and not since else RAISE)) + 1, met=one.mib
    )


def peak(outcomes: Sequence[Outcome], size: int) -> int | None:
    """The largest peak that the last clean runs of a micro-batch had, without data that need not lie on the card.

    None where a cap was met since, which says that it needs more.
    """
    mine = [o for o in outcomes if o.size == size and o.kind in (CLEAN, NEAR, OOM)]
    met = max((o.number for o in mine if o.kind != CLEAN), default=0)
    most = max([o.mib for o in mine if o.kind == CLEAN and o.number > met][-LAST:], default=None)
    return None if most is None else max(0, most - resident(outcomes, size))


def resident(outcomes: Sequence[Outcome], size: int) -> int:
    """What of a micro-batch's peak is data that need not lie on the card."""
    return next((o.mib for o in reversed(outcomes) if o.size == size and o.kind == RESIDENT), 0)


def device_mib(outcomes: Sequence[Outcome], size: int) -> int | None:
    """What the whole card held for a micro-batch that ran alone; None until measured."""
    return max([o.mib for o in outcomes if o.size == size and o.kind == ALONE][-LAST:], default=None)


def with_margin(peak_mib: float) -> int:
    """The cap for an expected peak."""
    return math.ceil(peak_mib + max(peak_mib * MARGIN, LEAST_MARGIN_MIB))


def open_folder(folder: Path) -> None:
    """Make a fingerprint's folder where it is missing, and keep no more than those that were used last."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    steps = list(folder.parent.iterdir())
    if len(steps) > MOST_STEPS:
        for step in sorted(steps, key=lambda p: p.stat().st_mtime)[:-MOST_STEPS]:
            shutil.rmtree(step, ignore_errors=True)
