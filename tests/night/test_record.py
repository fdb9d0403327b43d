"""night.json: what a run's record holds, what of a timeline is kept, and which run a name means."""

import json

import pytest

from overnight import paths
from overnight.errors import BadInput
from overnight.gpu.timeline import Point
from overnight.memory.usage import Usage
from overnight.night import record
from overnight.night.record import NightRecord, StepRecord
from overnight.processes import Identity


def saved(name, **fields):
    folder = paths.steps() / name
    folder.mkdir(parents=True)
    values = {"experiment": "nightly", "config": "configs/nightly.yaml", "flow": "nightly", "started": 1000.0}
    NightRecord(**{**values, **fields}).write(folder / record.FILE)
    return folder


def point(at, leased=0, used=0, other=0):
    return Point(at, "nightly", "train", 1, leased, leased, 0.0, used, other)


def test_a_record_is_read_as_it_was_written(checkout):
    step = StepRecord(
        label="digits/train_cnn",
        step="tasks.vision.cnn:train_cnn",
        scores=record.finite({"test/accuracy": 0.5, "train/loss": float("nan")}),
        failure=record.Failure(kind="disk", evidence=("no space left",), fix="free some room"),
        promotion={"promotes": True},
    )
    folder = saved("20261130-033000-nightly-run-a", steps=(step,))
    found = record.read(folder / record.FILE)
    assert found is not None
    assert found.steps == (step,)
    assert found.steps[0].scores == {"test/accuracy": 0.5, "train/loss": None}


def test_the_record_of_a_later_version_is_read_and_a_damaged_one_is_none(checkout):
    folder = saved("20261130-033000-nightly-run-a")
    text = json.loads((folder / record.FILE).read_text())
    (folder / record.FILE).write_text(
        json.dumps({**text, "new": 1, "steps": [{"label": "a", "step": "b", "x": 2}]})
    )
    found = record.read(folder / record.FILE)
    assert found is not None
    assert found.steps[0].label == "a"
    (folder / record.FILE).write_text('{"experiment": "night')
    assert record.read(folder / record.FILE) is None
    assert record.read(folder / "missing.json") is None


def test_usage_becomes_fields_of_the_step():
    used = Usage(
        asked_mib=900, lease_mib=1000, cap_mib=900, peak_mib=550, predicted_mib=500, run_s=7, finished=True
    )
    step = StepRecord(label="a", step="b", **record.memory(used))
    assert (step.asked_mib, step.lease_mib, step.peak_mib, step.run_s) == (900, 1000, 550, 7)
    assert step.prediction_error == pytest.approx(0.1)
    assert record.memory(None) == {}


def test_a_long_timeline_is_kept_by_its_maxima():
    points = [point(at, leased=at, used=2 * at, other=100 if at == 777 else 0) for at in range(1000)]
    kept = record.moments(points, most=50)
    assert len(kept) == 50
    assert (kept[-1].leased, kept[-1].used) == (999, 1998)
    assert [m.other for m in kept].count(100) == 1
    assert record.moments([]) == ()
    assert [m.leased for m in record.moments([point(5, leased=3)])] == [3]


def test_a_run_whose_process_is_gone_was_killed(checkout):
    mine = NightRecord(experiment="a", config="c", started=0, process=Identity.mine().tags())
    gone = mine.model_copy(update={"process": {**mine.process, "overnight.pid": str(2**22 + 1)}})
    ended = gone.model_copy(update={"outcome": "done"})
    assert [(one.alive, one.killed) for one in (mine, gone, ended)] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_a_night_is_found_by_its_name_its_day_and_by_nothing(checkout):
    with pytest.raises(BadInput, match="no run yet"):
        record.find()
    first = saved("20261129-033000-nightly-run-a")
    second = saved("20261130-033000-nightly-run-b")
    vision = saved("20261130-120000-vision-run-c", experiment="vision", flow="vision")
    wanted = {"": second, "nightly": second, "2026-11-29": first, "20261129-0330": first, "vision": vision}
    assert {name: record.find(name)[0] for name in wanted} == {k: v.name for k, v in wanted.items()}
    with pytest.raises(BadInput, match="did you mean 'vision'"):
        record.find("visoin")


def test_a_record_whose_folder_was_removed_is_known_by_its_report(checkout):
    folder = saved("20261129-033000-nightly-run-a")
    record.reports().mkdir()
    folder.rename(record.reports() / folder.name)
    (record.reports() / folder.name / record.FILE).rename(record.reports() / f"{folder.name}.json")
    assert [name for name, _night in record.nights("nightly")] == [folder.name]


def test_the_nights_of_an_experiment_are_found_whatever_it_is_called(checkout):
    folder = saved("20261130-033000-tables[a-b]-run-a", experiment="tables[a/b]")
    saved("20261130-033100-other-run-b", experiment="other")
    assert [name for name, _night in record.nights("tables[a/b]")] == [folder.name]
