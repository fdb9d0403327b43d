"""When a run is expected to end, and what of a night fits before its time is up.

How long a step takes is the median of the last nights in which it ran; what it leases, the last amount. The
steps are laid out as they run: each when those above it have ended, a place on this machine is free and the
card has room, in the order in which they were submitted. A step that never ran here counts as nothing, and is
named.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from overnight.night.record import NightRecord

LAST = 5  # nights whose median counts
NIGHTS = 30  # that are looked at
START_S = 4.0  # of a step's process, until its body begins
OVERDUE = 0.1  # of its usual duration, that a step which takes longer is given
SLACK = 1.1  # what is planned before a deadline may take this much longer


@dataclass(frozen=True)
class Known:
    """What earlier nights say of a step: seconds from its start to its end, MiB of its lease."""

    seconds: float
    mib: int = 0


@dataclass(frozen=True)
class Job:
    """A step of a plan. part: of the night; after: the labels above it; known: None: it never ran."""

    label: str
    part: str = ""
    after: tuple[str, ...] = ()
    known: Known | None = None
    began: float | None = None  # unix time, of one that runs
    ended: bool = False

    def left(self, now: float) -> float:
        """Seconds that it still takes."""
        if self.ended or self.known is None:
            return 0.0
        whole = self.known.seconds
        if self.began is None:
            return whole
        return max(whole - (now - self.began), OVERDUE * whole)


@dataclass(frozen=True)
class Plan:
    """jobs: that are run; left_out: parts that are not, with when they would have ended (unix time)."""

    jobs: tuple[Job, ...] = ()
    left_out: Mapping[str, float] = field(default_factory=dict)

    @property
    def unknown(self) -> list[str]:
        return [job.label for job in self.jobs if job.known is None]


@dataclass(frozen=True)
class Machine:
    """What steps share: MiB of the card, places for their processes."""

    budget_mib: int
    places: int


def learned(nights: Iterable[NightRecord]) -> dict[str, Known]:
    """By label, of the newest nights first. Steps that were skipped or did not end well say nothing."""
    seconds = dict[str, list[float]]()
    amounts = dict[str, int]()
    for night, _count in zip(nights, range(NIGHTS), strict=False):
        for step in night.steps:
            if step.state == "done" and step.began is not None and step.ended is not None:
                took = max(step.ended - step.began - step.wait_s, step.run_s)
                seconds.setdefault(step.label, []).append(took)
                amounts.setdefault(step.label, step.lease_mib)
    return {
        label: Known(statistics.median(found[:LAST]) + START_S, amounts[label])
        for label, found in seconds.items()
    }


def ends(jobs: Sequence[Job], machine: Machine, now: float) -> dict[str, float]:
    """When each step ends (unix time). A step that runs already holds its place and its lease."""
    by_label = {job.label: job for job in jobs}
    found = {job.label: now for job in jobs if job.ended}
    running = {job.label: now + job.left(now) for job in jobs if job.began is not None and not job.ended}
    waiting = [job for job in jobs if job.label not in found and job.label not in running]
    clock = now
    while waiting or running:
        for job in list(waiting):
            held = sum(_mib(by_label[label], machine) for label in running)
            ready = all(label in found for label in job.after if label in by_label)
            if ready and len(running) < machine.places and held + _mib(job, machine) <= machine.budget_mib:
                running[job.label] = clock + job.left(clock)
                waiting.remove(job)
        if not running:  # above it is what is not part of the plan: it is never started
            break
        label = min(running, key=lambda one: running[one])
        clock = found[label] = running.pop(label)
    return found


def _mib(job: Job, machine: Machine) -> int:
    return min(job.known.mib, machine.budget_mib) if job.known else 0


def expected_end(jobs: Sequence[Job], machine: Machine, now: float) -> float:
    return max(ends(jobs, machine, now).values(), default=now)


def plan(
    outline: Callable[[frozenset[str]], Sequence[Job]], machine: Machine, now: float, until: float | None
) -> Plan:
    """All jobs; before a deadline those of the parts that fit beside the parts before them.

    outline: the jobs without those parts of the night. A part of which nothing is known is not left out.
    """
    jobs = outline(frozenset())
    if until is None or _fits(jobs, machine, now, until):
        return Plan(tuple(jobs))
    parts = list(dict.fromkeys(job.part for job in jobs))
    left_out = dict[str, float]()
    for number, part in enumerate(parts):
        more = outline(frozenset([*left_out, *parts[number + 1 :]]))
        if not _fits(more, machine, now, until) and any(job.known for job in more if job.part == part):
            left_out[part] = expected_end(more, machine, now)
    return Plan(tuple(outline(frozenset(left_out))), left_out)


def _fits(jobs: Sequence[Job], machine: Machine, now: float, until: float) -> bool:
    return now + SLACK * (expected_end(jobs, machine, now) - now) <= until


def updated(jobs: Sequence[Job], states: Mapping[str, tuple[float | None, bool]]) -> list[Job]:
    """The jobs as they are now. states: by label when it began (unix time), and whether it has ended."""
    return [
        replace(job, began=states[job.label][0], ended=states[job.label][1]) if job.label in states else job
        for job in jobs
    ]
