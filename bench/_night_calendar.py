"""Months of nights on a simulated clock: slept-through nights, both changes of summer time, long nights.

`python -m bench.night calendar`. Prefect's scheduler is modelled as it was measured: while it is up the next
three runs of a schedule are in its database; when the machine returns, all that are due start at once, the
oldest first. What becomes of them is decided by overnight/night/calendar.py; a night that runs holds the lock
of its config. No process, server or training takes part: those are tests/chaos and tests/services.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from overnight.files import atomic_write
from overnight.night.calendar import GRACE, Policy, reason_to_skip, runs

OUT = Path(__file__).resolve().parent / "out" / "night_calendar.json"
AHEAD = 3  # runs that Prefect has in its database
NIGHTS = 30
SEEDS = 20
POLICIES: tuple[Policy, ...] = ("latest", "all", "skip")
MONTHS = (
    ("Europe/Berlin", "2026-03-10", "30 3 * * *"),
    ("Europe/Berlin", "2026-10-10", "30 3 * * *"),
    ("Europe/Berlin", "2026-03-10", "30 2 * * *"),  # inside the hours of the changes
    ("Europe/Berlin", "2026-10-10", "30 2 * * *"),
    ("America/New_York", "2026-02-20", "30 2 * * *"),
    ("America/New_York", "2026-10-15", "30 1 * * *"),
    ("Australia/Lord_Howe", "2026-03-20", "45 1 * * *"),  # by half an hour
    ("Asia/Kolkata", "2026-03-10", "30 3 * * *"),
)


@dataclass
class Start:
    """A run that its worker starts. due, now: when it was to start, and when it does (unix time)."""

    due: float
    now: float
    outcome: str = ""  # ran, skipped, or not started since a night still ran


@dataclass
class Month:
    due: list[datetime]
    starts: list[Start] = field(default_factory=list)
    ran: list[tuple[float, float]] = field(default_factory=list)  # begin and end (unix time)

    @property
    def overlaps(self) -> int:
        return sum(later[0] < earlier[1] for earlier, later in pairwise(sorted(self.ran)))

    @property
    def returns(self) -> list[list[Start]]:
        """Of each return of the machine, the runs that started at it."""
        instants = dict.fromkeys(start.now for start in self.starts if start.now > start.due)
        return [[start for start in self.starts if start.now == now] for now in instants]

    def problems(self, policy: Policy) -> list[str]:
        found = [] if len({when.date() for when in self.due}) == len(self.due) else ["a day with two nights"]
        found += ["a day without a night"] if len(self.due) != NIGHTS else []
        found += [f"{self.overlaps} overlaps"] if self.overlaps else []
        for group in self.returns:
            begun = sum(start.outcome != "skipped" for start in group)
            in_time = sum(start.now - start.due <= GRACE.total_seconds() for start in group)
            wanted = {"latest": 1, "all": len(group), "skip": in_time}[policy]
            if begun != wanted:
                found.append(f"{begun} nights at a return, {wanted} expected")
        return found


def simulate(zone: str, first: str, cron: str, policy: Policy, seed: int) -> Month:
    """A month with three stretches in which the machine is off: of 1, 2 and up to 6 nights."""
    dice = random.Random(f"{zone} {first} {cron} {seed}")
    begin = datetime.fromisoformat(first).replace(tzinfo=ZoneInfo(zone))
    month = Month(runs(cron, zone, begin, begin + timedelta(days=NIGHTS)))
    due = [when.timestamp() for when in month.due]
    waiting = dict[int, float]()  # number of a night that is slept through -> return of the machine
    for start, nights in ((4, 1), (9, 2), (16 + dice.randrange(4), 1 + dice.randrange(6))):
        back = due[start + nights - 1] + 60 * dice.choice((5, 25, 120, 340, 700))
        waiting |= dict.fromkeys(range(start, start + min(nights, AHEAD)), back)
        waiting |= dict.fromkeys(range(start + AHEAD, start + nights), 0.0)  # Prefect never made them
    for number, when in enumerate(due):
        now = waiting.get(number, when)
        if now:
            known = [due[n] for n in range(len(due)) if waiting.get(n, 1) and when < due[n] <= now]
            _start(month, policy, Start(when, now), known, ZoneInfo(zone), dice)
    return month


def _start(
    month: Month, policy: Policy, start: Start, newer: Sequence[float], zone: ZoneInfo, dice: random.Random
) -> None:
    due, now, *others = (datetime.fromtimestamp(at, zone) for at in (start.due, start.now, *newer))
    begin = start.now
    free = max((end for _begin, end in month.ran), default=begin)
    waits = policy == "all" and begin - start.due > GRACE.total_seconds()
    if reason_to_skip(policy, due, others, now):
        start.outcome = "skipped"
    elif begin < free and not waits:
        start.outcome = "in the way"
    else:
        start.outcome = "ran"
        begin = max(begin, free)
        month.ran.append((begin, begin + 3600 * dice.choice((0.1, 2, 5, 26))))
    month.starts.append(start)


def main() -> int:
    print(f"{len(MONTHS)} months of {NIGHTS} nights, {SEEDS} seeds each, 3 stretches off in each\n")
    print(f"{'schedule':44} {'missed':7} nights   ran skipped in the way returns overlaps")
    failed = False
    rows = list[dict[str, Any]]()
    for zone, first, cron in MONTHS:
        for policy in POLICIES:
            months = [simulate(zone, first, cron, policy, seed) for seed in range(SEEDS)]
            problems = sorted({problem for month in months for problem in month.problems(policy)})
            failed |= bool(problems)
            outcomes = [start.outcome for month in months for start in month.starts]
            counts = [outcomes.count(name) for name in ("ran", "skipped", "in the way")]
            returns = sum(len(month.returns) for month in months)
            figures = [sum(len(month.due) for month in months), *counts, returns]
            line = " ".join(
                f"{figure:>{width}}" for figure, width in zip(figures, (6, 5, 7, 10, 7), strict=True)
            )
            overlaps = sum(month.overlaps for month in months)
            print(f"{f'{cron} {zone} {first}':44} {policy:7} {line} {overlaps:8}  {'; '.join(problems)}")
            names = ("nights", "ran", "skipped", "in_the_way", "returns")
            row = {"cron": cron, "zone": zone, "first": first, "missed": policy, "overlaps": overlaps}
            rows.append({**row, **dict(zip(names, figures, strict=True)), "problems": problems})
    print(
        "\nbars: one night a day through both changes; at each return exactly one night (latest), each that"
    )
    print(
        "Prefect knows (all), or none that is late (skip); 0 overlaps" + ("  MISSED" if failed else "  held")
    )
    OUT.parent.mkdir(exist_ok=True)
    atomic_write(OUT, json.dumps({"nights": NIGHTS, "seeds": SEEDS, "rows": rows}, indent=1))
    return 1 if failed else 0
