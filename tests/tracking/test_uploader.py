"""What a step logs reaches MLflow whole, in order and once, whatever the server refuses or misses, and whoever dies on the way."""

import json
import math
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from overnight import events
from overnight.run import EventLogRun, RecordingRun
from overnight.tracking import backlog
from overnight.tracking import uploader as uploader_module
from overnight.tracking.backlog import End, Record
from overnight.tracking.client import NOTE_TAG, Tracker
from overnight.tracking.uploader import ServerUnavailable, Uploader

PARAMS = {"precision": "auto", "epochs": "3"}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Made once: MLflow takes seconds for its tables."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert Tracker(f"sqlite:///{path}", "made").experiment_id
    return path


@pytest.fixture
def tracker(checkout, database, monkeypatch):
    monkeypatch.chdir(checkout)
    shutil.copy(database, checkout / "mlflow.db")
    return Tracker(f"sqlite:///{checkout}/mlflow.db", "made")


@pytest.fixture
def step(checkout):
    """Makes folders of steps."""
    numbers = iter(range(100))

    def make():
        path = checkout / ".overnight" / "steps" / f"step-{next(numbers)}"
        path.mkdir(parents=True)
        return path

    return make


def record(tracker, **more):
    return Record(uri=tracker.uri, experiment="made", label="part/step", **{"params": PARAMS, **more})


@pytest.fixture
def uploader(tracker, step):
    return Uploader(tracker, step(), record(tracker))


def send(uploader, run):
    for number, event in enumerate(run.events):
        uploader.log({**event, "at": 1000.0 + number})
    assert uploader.upload_all(patience_s=5)


def died(uploader):
    """As the kernel does when its process is killed: the locks are free, nothing else is told to anybody."""
    uploader._locks.close()


def points(uploader, name="loss"):
    return [(m.step, m.value) for m in uploader.tracker.client.get_metric_history(uploader.run_id, name)]


def data(uploader):
    return uploader.tracker.client.get_run(uploader.run_id).data


def child(folder, *steps):
    """A child's spool with a loss for each step."""
    run = EventLogRun(folder)
    for number in steps:
        run.metric("loss", 1 / (1 + number), number)
    return run


def close(run):
    run._writer.close()


def test_metrics_keep_their_steps_and_their_order(uploader, tmp_path):
    run = RecordingRun(tmp_path)
    for number in range(2500):
        run.metric("loss", 1 / (1 + number), number)
    run.metrics({"bad": math.nan, "endless": math.inf, "größe/猫": 2.0}, 7)
    send(uploader, run)
    assert points(uploader) == [(number, 1 / (1 + number)) for number in range(2500)]
    found = data(uploader).metrics
    assert math.isnan(found["bad"])
    assert (found["endless"] > 1e300, found["größe/猫"]) == (True, 2.0)


def test_what_was_decided_stands_beside_what_was_asked(uploader, tmp_path):
    run = RecordingRun(tmp_path)
    run.param("precision", "bf16")
    run.param("epochs", 3)
    for engine in ("streaming", "in memory", "streaming"):
        run.param("engine", engine)
    send(uploader, run)
    decided = {"precision.used": "bf16", "engine": "streaming", "engine.2": "in memory"}
    assert data(uploader).params == PARAMS | decided


def test_of_many_only_what_is_refused_is_left_out(uploader, tmp_path):
    run = RecordingRun(tmp_path)
    for number in (*range(50), 2**70, *range(50, 100)):
        run.metric("loss", 0.5, number)
    run.note("first")
    run.publish(tmp_path / "not there")
    run.note("second")
    send(uploader, run)
    assert [number for number, _ in points(uploader)] == list(range(100))
    assert len(uploader.refused) == 1
    assert data(uploader).tags[NOTE_TAG] == "first\n\nsecond"


def test_junk_between_the_lines_holds_up_nothing(tracker, step):
    folder = step()
    close(child(folder, 1))
    with (folder / events.CHILD).open("ab") as file:
        file.write(
            b'not json\n[1]\n{"event": "metrics"}\n{"event": "metrics", "values": {"loss": "x"}, "step": 2, "at": 1}\n\n\0\0\n'
        )
    close(child(folder, 3))
    uploader = Uploader(tracker, folder, record(tracker))
    assert uploader.upload_all(5)
    assert [number for number, _ in points(uploader)] == [1, 3]


def test_a_line_that_was_cut_short_is_nobodys(tracker, step):
    folder = step()
    run = child(folder, 1)
    os.write(run._writer._file, b'{"at": 2, "event": "metrics", "values": {"loss": 0.3}, "step": 2')
    close(run)
    uploader = Uploader(tracker, folder, record(tracker))
    assert uploader.upload_all(5)
    assert events.last_steps(folder / events.CHILD) == {"loss": 1}
    close(child(folder, 2))  # another child of the same step
    assert uploader.upload_all(5)
    assert points(uploader) == [(1, 1 / 2), (2, 1 / 3)]


def away(tracker):
    """Nothing can be read or written there."""
    database = Path(tracker.uri.removeprefix("sqlite:///"))
    tracker.client._tracking_client.store.engine.dispose()
    database.rename(database.with_suffix(".away"))
    database.mkdir()


def back(tracker):
    database = Path(tracker.uri.removeprefix("sqlite:///"))
    database.rmdir()
    database.with_suffix(".away").rename(database)


@pytest.mark.parametrize("before", [0, 1500])
def test_a_server_that_is_away_gets_everything_later_and_once(tracker, uploader, before):
    """Before the run could be opened, and after half was told."""
    run = child(uploader.folder, *range(before))
    if before:
        assert uploader.upload_all(5)
    away(tracker)
    for number in range(before, 3000):
        run.metric("loss", 1 / (1 + number), number)
    uploader.log({"event": "note", "text": "done"})
    with pytest.raises(ServerUnavailable):
        uploader.upload()
    assert not uploader.upload_all(0)
    assert uploader.waiting() == 3001 - before
    back(tracker)
    assert uploader.upload_all(5)
    assert points(uploader) == [(number, 1 / (1 + number)) for number in range(3000)]
    assert data(uploader).tags[NOTE_TAG] == "done"


def everything(run, folder):
    """One event of every kind; the model is real."""
    import torch

    run.metrics({"loss": 0.5, "bad": math.nan}, 1)
    run.param("engine", "streaming")
    run.note("what happened")
    run.data("made", "d" * 64, "datasets/made.yaml")
    (folder / "a.txt").write_text("x")
    run.publish(folder / "a.txt", "pictures")
    run.save_model("tasks.tabular.fit:predictor", {"weight": torch.ones(2)}, {})


@pytest.mark.parametrize("told", [0, 1, 3, 6])
def test_what_a_killed_process_had_told_and_not_noted_is_told_again_without_a_trace(tracker, step, told):
    """Killed after MLflow said it has so many events, before that was written down: the next one sends them again."""
    folder = step()
    run = EventLogRun(folder)
    everything(run, folder)
    close(run)
    lines = (folder / events.CHILD).read_bytes().splitlines(keepends=True)
    (folder / events.CHILD).write_bytes(b"".join(lines[:told]))
    first = Uploader(tracker, folder, record(tracker))
    assert first.upload_all(5)
    died(first)
    (folder / "shipped.json").unlink(missing_ok=True)
    (folder / events.CHILD).write_bytes(b"".join(lines))
    second = Uploader(tracker, folder, Record.read(folder))
    assert second.upload_all(5)
    found = tracker.client.get_run(second.run_id)
    assert (first.run_id, first.refused + second.refused) == (second.run_id, [])
    assert points(second) == [(1, 0.5)]
    assert len(points(second, "bad")) == 1
    assert found.data.params == PARAMS | {"engine": "streaming"}
    assert found.data.tags[NOTE_TAG] == "what happened"
    assert [i.dataset.name for i in found.inputs.dataset_inputs] == ["made"]
    assert [a.path for a in tracker.client.list_artifacts(second.run_id, "pictures")] == ["pictures/a.txt"]
    assert (
        len(found.outputs.model_outputs)
        == len(tracker.client.search_logged_models([tracker.experiment_id]))
        == 1
    )


def test_a_run_that_was_opened_in_the_moment_of_death_is_found_again(tracker, step):
    folder = step()
    asked = record(tracker, tags={"overnight.folder": str(folder)}, opening=True)
    opened = tracker.open("part/step", asked.tags)
    uploader = Uploader(tracker, folder, asked)
    assert uploader.upload_all(5)
    assert uploader.run_id == opened


def test_the_next_attempt_tells_first_what_the_killed_one_has_left(tracker, step):
    one, two = step(), step()
    first = Uploader(tracker, one, record(tracker))
    run = child(one, 1, 2)
    assert first.upload_all(5)
    run.metric("loss", 0.25, 3)  # nobody ships it any more
    close(run)
    died(first)
    close(child(two, 4))
    second = Uploader(tracker, two, record(tracker, earlier=(str(one),), tags={"overnight.attempts": "2"}))
    assert second.upload_all(5)
    assert second.run_id == first.run_id
    assert [number for number, _ in points(second)] == [1, 2, 3, 4]
    assert second.run_state.steps == {"loss": 2}  # as MLflow had it when the run was opened again
    assert second.finish("FINISHED", lambda: False)
    assert backlog.pending() == []
    assert tracker.client.get_run(second.run_id).info.status == "FINISHED"


def test_two_attempts_that_never_reached_the_server_end_in_one_run(tracker, step):
    one, two = step(), step()
    first = Uploader(tracker, one, record(tracker))
    first.log({"event": "note", "text": "killed"})
    close(child(one, 1))
    died(first)
    close(child(two, 2))
    second = Uploader(tracker, two, record(tracker, earlier=(str(one),)))
    away(tracker)
    with pytest.raises(ServerUnavailable):
        second.upload()
    back(tracker)
    assert second.upload_all(5)  # it holds the lock of the first one's folder already
    assert [number for number, _ in points(second)] == [1, 2]
    assert data(second).tags[NOTE_TAG] == "killed"


def test_a_run_that_was_deleted_meanwhile_is_told_anew_from_its_beginning(tracker, step):
    one, two = step(), step()
    first = Uploader(tracker, one, record(tracker))
    close(child(one, 1))
    assert first.upload_all(5)
    died(first)
    tracker.client.delete_run(first.run_id)
    close(child(two, 2))
    second = Uploader(tracker, two, record(tracker, earlier=(str(one),)))
    assert second.upload_all(5)
    assert second.run_id != first.run_id
    assert [number for number, _ in points(second)] == [1, 2]


@pytest.mark.parametrize("how", ["deleted", "destroyed"])
def test_a_run_that_was_deleted_while_it_ran_holds_up_nobody(tracker, step, how):
    uploader = Uploader(tracker, step(), record(tracker))
    assert uploader.upload_all(5)
    run = child(uploader.folder, *range(10))
    tracker.client.delete_run(uploader.run_id)
    if how == "destroyed":
        tracker.client._tracking_client.store._hard_delete_run(uploader.run_id)
    close(run)
    died(uploader)
    again = Uploader(tracker, uploader.folder, Record.read(uploader.folder))
    again.log({"event": "note", "text": "done"})
    assert again.finish("FINISHED", lambda: False)
    assert again.refused
    assert len(again.refused) < 10
    assert not backlog.is_pending(uploader.folder)


def test_another_server_on_the_port_is_told_nothing_and_nothing_is_lost(tracker, step, server):
    """It answers 404, and its pages are no JSON: that is not MLflow's word that there is no such run."""
    from mlflow import MlflowClient

    uploader, mlflow = Uploader(tracker, step(), record(tracker)), (tracker.client, tracker.uri)
    assert uploader.upload_all(5)
    close(child(uploader.folder, *range(10)))
    tracker.client, tracker.uri = MlflowClient(server.url("")), server.url("")
    with pytest.raises(ServerUnavailable):
        uploader.upload()
    assert (uploader.refused, uploader.waiting()) == ([], 10)
    tracker.client, tracker.uri = mlflow
    assert uploader.upload_all(5)
    assert [number for number, _ in points(uploader)] == list(range(10))


def test_attempts_that_only_the_child_knew_of_are_told_too(tracker, step):
    one, two = step(), step()
    close(child(one, 1))
    run = child(two)
    run.continues([str(one)])
    run.metric("loss", 0.5, 2)
    close(run)
    uploader = Uploader(tracker, two, record(tracker))
    assert uploader.upload_all(5)
    assert [number for number, _ in points(uploader)] == [1, 2]
    assert Record.read(two).earlier == (str(one),)


def test_what_a_killed_run_has_left_is_shipped_by_somebody_else(tracker, step):
    killed, ended = step(), step()
    alive = Uploader(tracker, step(), record(tracker))
    first, second = (Uploader(tracker, folder, record(tracker)) for folder in (killed, ended))
    for uploader in (first, second):
        assert uploader.upload_all(5)
        close(child(uploader.folder, 1, 2))
        died(uploader)
    second.record.update(ended, end=End(status="FAILED", at=1.79e9))  # its end was known, and not told
    assert backlog.pending() == [killed, ended]
    assert uploader_module.main() == 0
    assert [number for number, _ in points(first)] == [number for number, _ in points(second)] == [1, 2]
    found = [tracker.client.get_run(uploader.run_id).info for uploader in (first, second)]
    assert [info.status for info in found] == [
        "RUNNING",
        "FAILED",
    ]  # the first one's end is the keeper's to tell
    assert found[1].end_time == 1_790_000_000_000
    assert (backlog.pending(), backlog.is_pending(alive.folder)) == ([], True)


def test_a_server_that_stays_away_leaves_the_debt(tracker, step, monkeypatch):
    folder = step()
    died(Uploader(tracker, folder, record(tracker)))
    monkeypatch.setattr(uploader_module, "ABANDONED_S", 0.0)
    away(tracker)
    assert uploader_module.main() == 1
    assert backlog.pending() == [folder]
    back(tracker)
    assert uploader_module.main() == 0
    assert backlog.pending() == []


def test_what_an_earlier_version_left_is_uploaded(tracker, step, checkout):
    """Its files, as it wrote them: another folder of pending steps, the same names in the step's folder."""
    folder = step()
    run_id = tracker.open("part/step", {})
    tracker.metrics(run_id, [{"values": {"loss": 0.5}, "step": 1, "at": 1000.0}])
    lines = [
        '{"at": 1000.0, "event": "metrics", "values": {"loss": 0.5}, "step": 1}\n',
        '{"at": 1001.0, "event": "metrics", "values": {"loss": 0.25}, "step": 2}\n',
    ]
    (folder / "events.jsonl").write_text("".join(lines))
    (folder / "parent.jsonl").write_text('{"event": "note", "text": "killed", "at": 1002.0}\n')
    (folder / "shipped.json").write_text(json.dumps({run_id: {"events.jsonl": len(lines[0])}}))
    end = {"status": "FAILED", "at": 1003.0}
    old = {"uri": tracker.uri, "experiment": "made", "label": "part/step", "parent": "", "tags": {}, "params": {}, "earlier": [],
           "opening": False, "run_id": run_id, "end": end}  # fmt: skip
    (folder / "record.json").write_text(json.dumps(old, indent=1))
    (folder / "ship.lock").touch()
    entry = checkout / ".overnight" / "services" / "of an earlier version" / f"{folder.name}.step"
    entry.parent.mkdir(parents=True)
    entry.write_text(str(folder))
    assert backlog.pending() == [folder]
    assert backlog.is_pending(folder)
    assert uploader_module.main() == 0
    assert backlog.pending() == []
    assert not entry.exists()
    assert [m.step for m in tracker.client.get_metric_history(run_id, "loss")] == [1, 2]
    found = tracker.client.get_run(run_id)
    assert (found.info.status, found.data.tags[NOTE_TAG]) == ("FAILED", "killed")


def test_a_debt_without_a_record_or_a_folder_is_none(checkout, step):
    folder, gone = step(), step()
    (folder / "record.json").write_text('{"uri": ')
    for one in (folder, gone):
        backlog.enqueue(one)
    gone.rmdir()
    assert backlog.pending() == [folder]
    assert uploader_module.main() == 0
    assert backlog.pending() == []


def test_a_disk_that_takes_nothing_costs_no_event(tracker, step):
    folder = step()
    (folder / events.PARENT).mkdir()  # nothing can be appended to it
    uploader = Uploader(tracker, folder, record(tracker))
    uploader.log({"event": "note", "text": "the disk is full"})
    assert uploader.waiting() == 1
    assert uploader.upload_all(5)
    assert data(uploader).tags[NOTE_TAG] == "the disk is full"


def removed(tracker, database):
    """Its database is a new one, as after `rm mlruns/mlflow.db`."""
    path = Path(tracker.uri.removeprefix("sqlite:///"))
    tracker.client._tracking_client.store.engine.dispose()
    shutil.copy(database, path)
    with sqlite3.connect(path) as connection:
        connection.execute("delete from experiment_tags where experiment_id != 0")
        connection.execute("delete from experiments where name = 'made'")


def test_a_database_that_was_removed_gets_runs_that_go_on_and_runs_that_ended(tracker, step, database):
    own = Uploader(tracker, step(), record(tracker))
    above = {"parent": str(own.folder)}
    ended, alive = (Uploader(tracker, step(), record(tracker, **above)) for _ in range(2))
    for uploader in (own, ended, alive):
        close(child(uploader.folder, 1, 2))
        assert uploader.upload_all(5)
    assert ended.finish("FINISHED", lambda: False)
    before = own.run_id
    removed(tracker, database)
    backlog.enqueue_all(tracker.uri)
    close(child(alive.folder, 3))
    with pytest.raises(ServerUnavailable, match="removed"):
        alive.upload()
    with pytest.raises(ServerUnavailable, match="experiment is not open"):
        alive.upload()
    assert own.finish("FINISHED", lambda: False)
    assert alive.upload_all(5)
    died(alive)
    assert uploader_module.main() == 0
    found = {folder: Record.read(folder).run_id for folder in (own.folder, ended.folder, alive.folder)}
    assert before not in found.values()
    assert [len(tracker.client.get_metric_history(run, "loss")) for run in found.values()] == [2, 2, 3]
    parents = [tracker.client.get_run(run).data.tags.get("mlflow.parentRunId") for run in found.values()]
    assert parents == [None, found[own.folder], found[own.folder]]
    assert tracker.client.get_run(found[ended.folder]).info.status == "FINISHED"


def test_words_about_a_death_are_taken_back_from_a_run_that_finished(tracker, uploader):
    assert uploader.upload_all(5)
    died(uploader)
    note = "stopped at 3\n\nits process (pid 7) is gone: killed or broken down, last seen alive 2026-01-01"
    tracker.tags(uploader.run_id, {NOTE_TAG: note})
    again = Uploader(tracker, uploader.folder, Record.read(uploader.folder))
    assert again.finish("FINISHED", lambda: False)
    assert data(again).tags[NOTE_TAG] == "stopped at 3"
