"""What earlier nights say of this one: how long it takes, and what of it fits before a time."""

import pytest

from overnight.night.forecast import (
    SLACK,
    START_S,
    Job,
    Known,
    Machine,
    ends,
    expected_end,
    learned,
    plan,
    updated,
)
from overnight.night.record import NightRecord, StepRecord

MACHINE = Machine(budget_mib=10_000, places=2)
NOW = 1_000_000.0


def night(*steps, started=0.0):
    return NightRecord(experiment="nightly", config="configs/nightly.yaml", started=started, steps=steps)


def ran(label, seconds, state="done", **more):
    return StepRecord(label=label, step="tasks.a:b", state=state, began=50.0, ended=50.0 + seconds, **more)


def job(label, seconds=None, mib=0, after=(), **more):
    known = None if seconds is None else Known(seconds, mib)
    return Job(label, label.partition("/")[0], tuple(after), known, **more)


def in_order(found):
    return {label: when - NOW for label, when in found.items()}


def test_a_step_takes_the_median_of_the_last_nights_in_which_it_ran():
    nights = [
        night(ran("a/x", 100, lease_mib=500), ran("b/y", 0.1, state="unchanged")),
        night(ran("a/x", 130, lease_mib=900), ran("b/y", 40, state="failed")),
        night(ran("a/x", 90), ran("b/y", 70, wait_s=20)),
    ]
    assert learned(nights) == {"a/x": Known(100 + START_S, 500), "b/y": Known(50 + START_S, 0)}
    assert learned([]) == {}
    many = [night(ran("a/x", seconds)) for seconds in (1, 2, 3, 4, 5, 900, 900, 900, 900, 900, 900)]
    assert learned(many)["a/x"].seconds == 3 + START_S  # of the newest five


def test_steps_are_laid_out_by_what_they_wait_for_by_places_and_by_the_card():
    jobs = [
        job("a/load", 10),
        job("a/train", 100, 6000, ["a/load"]),
        job("b/load", 20),
        job("b/train", 50, 6000, ["b/load"]),
    ]
    assert in_order(ends(jobs, MACHINE, NOW)) == {"a/load": 10, "b/load": 20, "a/train": 110, "b/train": 160}
    room = Machine(budget_mib=12_000, places=2)
    assert in_order(ends(jobs, room, NOW)) == {"a/load": 10, "b/load": 20, "a/train": 110, "b/train": 70}
    alone = Machine(budget_mib=12_000, places=1)
    assert expected_end(jobs, alone, NOW) == NOW + 180
    assert expected_end([job("a/huge", 5, 99_999)], MACHINE, NOW) == NOW + 5
    assert expected_end([], MACHINE, NOW) == NOW


def test_what_runs_and_what_has_ended_change_the_expected_end():
    jobs = [job("a/load", 10), job("a/train", 100, 6000, ["a/load"])]
    assert expected_end(updated(jobs, {"a/load": (NOW, True)}), MACHINE, NOW + 30) == NOW + 130
    half = updated(jobs, {"a/load": (NOW, True), "a/train": (NOW + 10, False)})
    assert expected_end(half, MACHINE, NOW + 60) == NOW + 110
    assert expected_end(half, MACHINE, NOW + 200) == NOW + 210  # it takes longer than it did
    assert expected_end([job("a/new")], MACHINE, NOW) == NOW


NIGHT = (job("a/x", 1000, 6000), job("b/x", 3000, 6000), job("c/x", 500, 6000), job("new/x"))


def outline(left_out):
    return [one for one in NIGHT if one.part not in left_out]


def test_before_a_deadline_what_does_not_fit_is_left_out_and_the_rest_goes_on():
    whole = plan(outline, MACHINE, NOW, None)
    assert ([one.part for one in whole.jobs], dict(whole.left_out)) == (["a", "b", "c", "new"], {})
    assert whole.unknown == ["new/x"]
    short = plan(outline, MACHINE, NOW, NOW + 1500 * SLACK)
    assert [one.part for one in short.jobs] == ["a", "c", "new"]
    assert {part: end - NOW for part, end in short.left_out.items()} == {"b": 4000}
    assert not plan(outline, MACHINE, NOW, NOW + 4500 * SLACK).left_out
    assert [one.part for one in plan(outline, MACHINE, NOW, NOW + 60).jobs] == ["new"]


def test_a_part_whose_work_another_does_already_is_not_left_out_for_it():
    """Equal steps run once: without the part that was to make it, another one makes it itself."""

    def shared(left_out):
        table = job("etl/join", 500) if "etl" not in left_out else Job("graph/join", "graph", (), Known(500))
        more = [job("etl/fit", 2000, after=["etl/join"])] if "etl" not in left_out else []
        graph = [job("graph/train", 100, after=[table.label])] if "graph" not in left_out else []
        return [table, *more, *graph] if graph or more else []

    found = plan(shared, MACHINE, NOW, NOW + 1000)
    assert (list(found.left_out), [one.label for one in found.jobs]) == (
        ["etl"],
        ["graph/join", "graph/train"],
    )


@pytest.mark.parametrize("until", [NOW - 10, NOW + 1])
def test_a_deadline_that_leaves_no_time_leaves_all_out(until):
    known = [job("a/x", 1000), job("b/x", 50)]
    found = plan(lambda left_out: [one for one in known if one.part not in left_out], MACHINE, NOW, until)
    assert (list(found.left_out), found.jobs) == (["a", "b"], ())
