"""What a step logs reaches MLflow whole, in order and once, whatever the server refuses or misses on the way."""

import math

import pytest

from overnight.display import scores
from overnight.launch import Tail
from overnight.run import RecordingRun
from overnight.tracking import Shipper, Tracker


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", "made")


@pytest.fixture
def shipper(tracker):
    return Shipper(tracker, tracker.open("step", {}), "part/step", {"precision": "auto", "epochs": 3})


def send(shipper, run):
    for number, event in enumerate(run.events):
        shipper.take({**event, "at": 1000.0 + number})
    assert shipper.drain(patience_s=5) == 0


def test_metrics_keep_their_steps_and_their_order(shipper, tmp_path):
    run = RecordingRun(tmp_path)
    for step in range(2500):
        run.metric("loss", 1 / (1 + step), step)
    run.metric("bad", math.nan, 7)
    send(shipper, run)
    client = shipper.tracker.client
    history = client.get_metric_history(shipper.run_id, "loss")
    assert [m.step for m in history] == list(range(2500))
    assert history[-1].value == 1 / 2500
    assert math.isnan(client.get_run(shipper.run_id).data.metrics["bad"])


def test_what_was_decided_stands_beside_what_was_asked(shipper, tmp_path):
    run = RecordingRun(tmp_path)
    run.param("precision", "bf16")
    run.param("epochs", 3)
    run.param("engine", "streaming")
    send(shipper, run)
    assert shipper.tracker.client.get_run(shipper.run_id).data.params == {"precision.used": "bf16", "epochs": "3", "engine": "streaming"}


def test_what_is_refused_does_not_hold_up_the_rest(shipper, tmp_path):
    run = RecordingRun(tmp_path)
    for value in ("asked", "used", "changed once more"):
        run.param("engine", value)
    run.note("first")
    run.note("second")
    send(shipper, run)
    assert len(shipper.refused) == 1
    assert shipper.tracker.client.get_run(shipper.run_id).data.tags["mlflow.note.content"] == "first\n\nsecond"


def test_a_server_that_is_away_gets_everything_later_and_once(tracker, shipper, tmp_path):
    run = RecordingRun(tmp_path)
    run.metric("loss", 1.0, 1)
    run.note("done")
    database = tmp_path / "mlflow.db"
    tracker.client._tracking_client.store.engine.dispose()
    database.rename(tmp_path / "away.db")
    database.mkdir()  # nothing can be written there
    for event in run.events:
        shipper.take({**event, "at": 1.0})
    assert shipper.drain(patience_s=0) == 2
    database.rmdir()
    (tmp_path / "away.db").rename(database)
    assert shipper.drain(patience_s=5) == 0
    assert [m.value for m in tracker.client.get_metric_history(shipper.run_id, "loss")] == [1.0]


def test_inputs_and_files_are_shown(shipper, tmp_path):
    run = RecordingRun(tmp_path)
    run.data("made", "d" * 64, "datasets/made.yaml")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.txt").write_text("x")
    run.publish(tmp_path / "pictures", "pictures")
    send(shipper, run)
    found = shipper.tracker.client.get_run(shipper.run_id)
    assert [(i.dataset.name, i.dataset.digest) for i in found.inputs.dataset_inputs] == [("made", "d" * 36)]
    assert [a.path for a in shipper.tracker.client.list_artifacts(shipper.run_id, "pictures")] == ["pictures/a.txt"]


def test_a_deleted_experiment_of_that_name_is_taken_up_again(tracker):
    tracker.client.delete_experiment(tracker.experiment_id)
    assert Tracker(tracker.uri, "made").experiment_id == tracker.experiment_id


def test_a_tail_gives_whole_lines_only(tmp_path):
    tail = Tail(tmp_path / "events.jsonl")
    assert list(tail.lines()) == []
    (tmp_path / "events.jsonl").write_text('{"a": 1}\n{"b"')
    assert list(tail.lines()) == ['{"a": 1}']
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(": 2}\n\n")
    assert list(tail.lines()) == ['{"b": 2}']


def test_the_terminal_shows_test_scores_first():
    assert scores({"train/lr": 1, "train/loss": 0.5, "val/a": 0.25, "test/a": 0.125}, 2) == "a 0.125  val/a 0.25"


def test_a_run_is_gone_on_with_unless_it_is_gone(tracker):
    run_id = tracker.open("step", {"attempts": "1"}, "parent-1")
    tracker.close(run_id, "KILLED")
    assert tracker.reopen(run_id, {"attempts": "2"}, "parent-2")
    found = tracker.client.get_run(run_id)
    assert (found.info.status, found.data.tags["attempts"], found.data.tags["mlflow.parentRunId"]) == ("RUNNING", "2", "parent-2")
    assert tracker.notes(run_id) == []
    tracker.client.set_tag(run_id, "mlflow.note.content", "what happened before")
    assert tracker.notes(run_id) == ["what happened before"]
    tracker.client.delete_run(run_id)
    assert not tracker.reopen(run_id, {})
    assert not tracker.reopen("0" * 32, {})
