"""The forecast of a run by earlier nights of the same experiment: priorities, what is left out, when it stops."""

import time
from datetime import datetime, timedelta

import pytest

from overnight.cli.main import main
from overnight.errors import ConfigError, TooLate
from overnight.gpu.card import virtual
from overnight.night.forecast import START_S
from overnight.night.record import FILE, NightRecord, StepRecord
from overnight.orchestration import planning
from overnight.orchestration.checks import end_time, load
from overnight.orchestration.launcher import STOP_GRACE_S
from overnight.orchestration.planning import Forecast
from overnight.orchestration.terminal import StepRow
from overnight.paths import steps
from overnight.step import Builder, building

NIGHT = """
flow: nightly
name: mine
experiments:
  - {command: a, vram: 0, name: long}
  - {command: b, vram: 0, name: short, priority: 1}
  - {command: c, vram: 0, name: new, priority: -1}
"""
LONG_S, SHORT_S = 3600.0, 600.0


@pytest.fixture
def night(checkout):
    path = checkout / "night.yaml"
    path.write_text(NIGHT)
    for day in range(3):
        folder = steps() / f"2026010{day}-030000-mine-run-x"
        folder.mkdir(parents=True)
        ran = [
            StepRecord(
                label=f"{name}/run_program", step="a:b", state="done", began=100.0, ended=100.0 + seconds
            )
            for name, seconds in (("long", LONG_S), ("short", SHORT_S))
        ]
        NightRecord(experiment="mine", config="night.yaml", started=0.0, steps=tuple(ran)).write(
            folder / FILE
        )
    return load(path)


def after(seconds):
    """About so long from now on."""
    return pytest.approx(time.time() + seconds, abs=60)


def test_a_night_is_expected_to_take_what_the_last_nights_took(night):
    found = planning.make(*night, virtual(), None)
    assert [job.label for job in found.plan.jobs] == [
        "short/run_program",
        "long/run_program",
        "new/run_program",
    ]
    assert found.expected == after(LONG_S + START_S)  # two at once
    assert (found.left_out, found.steps, found.in_words()) == (frozenset(), (), [])
    assert found.lines() == ["not counted, since they never ran here: new/run_program"]
    assert found.seconds("short/run_program") == SHORT_S + START_S
    assert found.now([]).startswith("expected to end at ")
    assert (
        planning.make(night[0], night[1].model_copy(update={"name": "other"}), virtual(), None).now([]) == ""
    )


def test_what_has_ended_and_what_takes_longer_moves_the_expected_end(night):
    found = planning.make(*night, virtual(), None)
    ended = StepRow("long/run_program", "done", began_at=time.time() - 9)
    ends = [time.time() + SHORT_S + START_S + later for later in (0, 60)]  # the minute may change meanwhile
    clocks = [time.strftime("%H:%M", time.localtime(end)) for end in ends]
    assert found.now([ended]).rpartition(" ")[2] in clocks
    assert (
        found.now([ended, StepRow("short/run_program", "failed"), StepRow("new/run_program", "running")])
        == ""
    )


def test_what_does_not_fit_before_its_time_is_left_out_and_said(night):
    until = time.time() + 1800
    found = planning.make(*night, virtual(), until)
    assert (found.left_out, found.steps) == ({"long"}, ("long/run_program",))
    said = found.lines()
    assert said[0].startswith("to be done by ")
    assert said[1].startswith("left out: long, which would end at ")
    assert found.in_words()[0].endswith(": long")
    seen = list[str]()

    class Seen(Builder):
        def submit(self, step, arguments):
            seen.append(self.label(step.name))

    builder = Seen()
    builder.left_out = found.left_out
    with building(builder):
        night[0].body(night[1])
    assert seen == ["short/run_program", "new/run_program"]
    assert found.reason_to_stop() == ""
    assert (
        Forecast(until=time.time() + STOP_GRACE_S - 1).reason_to_stop().startswith("stopped, to be done by ")
    )


@pytest.mark.parametrize(
    ("text", "clock"), [("'07:00'", "07:00"), ("7:00", "07:00"), ("10:30", "10:30"), ("07:00:30", "07:00")]
)
def test_a_time_of_day_may_be_written_as_people_do(checkout, text, clock):
    (checkout / "night.yaml").write_text(f"{NIGHT}done_by: {text}\n")
    assert f"{load(checkout / 'night.yaml')[1].done_by:%H:%M}" == clock


@pytest.mark.parametrize("text", ["7", "true", "morning", "'25:00'", "[7]"])
def test_what_is_no_time_of_day_is_refused(checkout, text):
    (checkout / "night.yaml").write_text(f"{NIGHT}done_by: {text}\n")
    with pytest.raises(ConfigError, match=r"night.yaml:8: done_by: "):
        load(checkout / "night.yaml")


def test_a_time_that_has_passed_is_refused_before_anything_starts(night, checkout, capsys):
    now = datetime.now().astimezone()
    soon, passed = now + timedelta(hours=2), now - timedelta(minutes=2)
    _, experiment = load(checkout / "night.yaml", [f"done_by='{soon:%H:%M}'"])
    assert end_time(experiment) == after(7200)
    with pytest.raises(TooLate, match="has passed"):
        end_time(load(checkout / "night.yaml", [f"done_by='{passed:%H:%M}'"])[1])
    assert main(["run", str(checkout / "night.yaml"), f"done_by='{passed:%H:%M}'"]) == 2
    assert f"done_by: {passed:%H:%M} has passed" in capsys.readouterr().err
