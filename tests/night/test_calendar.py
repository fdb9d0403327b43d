"""The calendar of nights: runs that were slept through, clocks that are put forward and back, times to be done by."""

from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from overnight.night.calendar import GRACE, deadline, kept, next_run, reason_to_skip, runs

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = "30 3 * * *"


def at(text, zone=BERLIN):
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def test_a_nightly_run_is_at_its_clock_time_all_year():
    found = runs(NIGHTLY, "Europe/Berlin", at("2026-01-01T00:00"), at("2027-01-01T00:00"))
    assert len(found) == 365
    assert {f"{when:%H:%M}" for when in found} == {"03:30"}
    hours = [(b.timestamp() - a.timestamp()) / 3600 for a, b in pairwise(found)]
    assert (hours.count(23), hours.count(24), hours.count(25)) == (1, 362, 1)


@pytest.mark.parametrize(
    ("zone", "day", "clock", "expected"),
    [  # a time that is not there in spring, and comes twice in autumn
        ("Europe/Berlin", "2026-03-29", "30 2", "2026-03-29T01:00+00:00"),
        ("Europe/Berlin", "2026-10-25", "30 2", "2026-10-25T00:30+00:00"),
        ("America/New_York", "2026-03-08", "30 2", "2026-03-08T07:00+00:00"),
        ("America/New_York", "2026-11-01", "30 1", "2026-11-01T05:30+00:00"),
        ("Asia/Kolkata", "2026-03-29", "30 2", "2026-03-28T21:00+00:00"),
    ],
)
def test_a_time_in_the_hour_of_the_change_is_run_once_that_day(zone, day, clock, expected):
    midnight = at(f"{day}T00:00", ZoneInfo(zone))
    found = runs(f"{clock} * * *", zone, midnight, midnight + timedelta(days=1))
    assert [when.astimezone(UTC) for when in found] == [datetime.fromisoformat(expected)]


def test_the_instant_itself_is_not_after_it_and_the_last_counts():
    due = at("2026-05-02T03:30")
    assert next_run(NIGHTLY, "Europe/Berlin", due) == at("2026-05-03T03:30")
    assert runs(NIGHTLY, "Europe/Berlin", due - timedelta(seconds=1), due) == [due]
    assert next_run(NIGHTLY, "Asia/Tokyo", due).astimezone(UTC).hour == 18
    with pytest.raises(ValueError, match="'30 3' is no cron line"):
        next_run("30 3", "UTC", due)


NOW = at("2026-05-05T09:00")
SLEPT = [at(f"2026-05-0{day}T03:30") for day in (3, 4, 5)]


@pytest.mark.parametrize(
    ("policy", "now", "expected"),
    [
        ("latest", NOW, SLEPT[-1:]),
        ("all", NOW, SLEPT),
        ("skip", NOW, []),
        # back just in time for the last of them
        ("latest", SLEPT[-1] + GRACE, SLEPT[-1:]),
        ("skip", SLEPT[-1] + GRACE, SLEPT[-1:]),
    ],
)
def test_of_nights_that_were_slept_through_as_many_run_as_the_policy_says(policy, now, expected):
    assert kept(policy, SLEPT, now) == expected
    assert kept(policy, SLEPT[::-1], now) == expected
    assert kept(policy, [], now) == []


def test_a_skipped_run_says_which_one_stands_for_it():
    said = reason_to_skip("latest", SLEPT[0], SLEPT, NOW)
    assert said.startswith(
        "skipped: it was due at 2026-05-03 03:30 and could not start; the run of 03:30 stands"
    )
    assert "within 10 minutes" in reason_to_skip("skip", SLEPT[0], (), NOW)
    future = NOW + timedelta(hours=1)  # is no reason not to run now
    assert reason_to_skip("latest", SLEPT[-1], [future], NOW) == ""


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-05-05T03:30", "2026-05-05T07:00"),
        ("2026-05-05T22:00", "2026-05-06T07:00"),
        ("2026-05-05T06:59", "2026-05-05T07:00"),
        ("2026-05-05T13:00", "2026-05-06T07:00"),
        ("2026-12-31T23:00", "2027-01-01T07:00"),
    ],
)
def test_done_by_is_the_next_time_that_the_clock_shows_it(now, expected):
    assert deadline(time(7), at(now)) == at(expected)


@pytest.mark.parametrize("now", ["2026-05-05T07:00", "2026-05-05T09:00", "2026-05-05T12:59"])
def test_a_time_that_has_just_passed_is_not_meant_for_tomorrow(now):
    with pytest.raises(ValueError, match="done_by: 07:00 has passed, it is"):
        deadline(time(7), at(now))


def test_a_night_with_a_change_of_clocks_has_its_hours():
    for day, hours in (("2026-03-28", 8), ("2026-10-24", 10)):
        begun = at(f"{day}T22:00")
        assert (deadline(time(7), begun).timestamp() - begun.timestamp()) / 3600 == hours
    twice = at("2026-10-25T02:30").replace(fold=1)  # the second 02:30: the first was an hour ago
    with pytest.raises(ValueError, match="has passed"):
        deadline(time(2, 30), twice)
