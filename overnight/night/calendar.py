"""When nights run, which are late, and when they are to end. The clock is an argument, with its timezone.

A run whose time passed while the machine was off or asleep starts at its return. The policy of a schedule
(`missed` in prefect.yaml) decides what becomes of those that are late by more than GRACE:

latest   the last of them runs, once, however many nights were missed
all      each of them runs, one after the other
skip     none of them runs

Where clocks are put forward, a time of the hour that there is not is run right after it; where they are put
back, a time of the hour that comes twice is run in the first (cronsim, as Debian's cron does).
"""

from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

Policy = Literal["latest", "all", "skip"]
GRACE = timedelta(minutes=10)
PASSED = timedelta(hours=6)  # a time of day that was so recently is not meant for tomorrow


def next_run(cron: str, timezone: str, after: datetime) -> datetime:
    """The first run after an instant. Raises ValueError for what is no cron line."""
    return runs(cron, timezone, after, count=1)[0]


def runs(
    cron: str, timezone: str, after: datetime, until: datetime | None = None, count: int = 1000
) -> list[datetime]:
    """At most `count` runs after an instant, up to another one that counts as well."""
    found = list[datetime]()
    try:
        simulated = CronSim(cron, after.astimezone(ZoneInfo(timezone)))
        for when in simulated:
            if len(found) == count or (until is not None and when > until):
                break
            found.append(when)
    except CronSimError as error:
        raise ValueError(f"{cron!r} is no cron line: {error}") from None
    return found


def reason_to_skip(policy: Policy, due: datetime, newer: Sequence[datetime], now: datetime) -> str:
    """Why a scheduled run is not started; empty when it is.

    due: when it was to start; newer: when other runs of its schedule, up to now, were to start.
    """
    if policy == "all" or now - due <= GRACE:
        return ""
    slept = f"skipped: it was due at {_shown(due, now)} and could not start"
    if policy == "skip":
        return f"{slept} within {GRACE.seconds // 60} minutes (`missed: skip` in prefect.yaml)"
    later = [when for when in newer if due < when <= now]
    if not later:
        return ""
    return f"{slept}; the run of {_shown(max(later), now)} stands for all that were missed (`missed: latest`)"


def kept(policy: Policy, due: Sequence[datetime], now: datetime) -> list[datetime]:
    """Of runs that were due, those that are started now."""
    return [when for when in sorted(due) if not reason_to_skip(policy, when, due, now)]


def deadline(done_by: time, now: datetime) -> datetime:
    """The next time that the clock shows it. Raises ValueError when that was in the last hours."""
    days = (now.date() + timedelta(days) for days in (-1, 0, 1, 2))
    times = [datetime.combine(day, done_by, now.tzinfo) for day in days]
    passed = max(when for when in times if _instant(when) <= _instant(now))
    if _instant(now) - _instant(passed) < PASSED.total_seconds():
        raise ValueError(
            f"done_by: {done_by:%H:%M} has passed, it is {now:%H:%M}: name a later time, or leave it out "
            "(`done_by=null` after the config)"
        )
    return min(when for when in times if _instant(when) > _instant(now))


def _instant(when: datetime) -> float:
    """Differences of times in one timezone would be those of its clocks, which are put forward and back."""
    return when.timestamp()


def _shown(when: datetime, now: datetime) -> str:
    local = when.astimezone(now.tzinfo)
    return f"{local:%H:%M}" if local.date() == now.date() else f"{local:%Y-%m-%d %H:%M}"
