"""Attempts at a step: which failures are tried again, in which run of MLflow, and what is said of the others."""

import errno
import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from overnight.config import Experiment
from overnight.gpu.card import virtual
from overnight.night.failures import names_of
from overnight.orchestration.attempt import FREED_BYTES, run_step
from overnight.orchestration.launcher import Local, new_folder
from overnight.orchestration.pipeline import Pending, PipelineRun, _close
from overnight.orchestration.protocol import StepResult
from overnight.orchestration.terminal import Display
from overnight.run import EventLogRun
from overnight.tracking.backlog import Record
from overnight.tracking.client import NOTE_TAG, Tracker
from overnight.tracking.uploader import Uploader
from tests.support.steps_failing import FailingParams, fails

ROOT = Path(__file__).resolve().parents[2]
DONE = StepResult(code=0)
LOST = StepResult(
    code=1, error="ConnectionResetError: reset", raised=("ConnectionResetError", "ConnectionError")
)
BUG = StepResult(code=1, error="KeyError: 'cnn'", raised=names_of(KeyError("cnn")))


class Page:
    """A page that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tags(self) -> dict[str, str]:
        return {}

    def log(self, line: str) -> None:
        self.lines.append(line)

    def link(self, _address: str) -> None:
        """Shown nowhere."""

    def progress(self, _percent: float, _text: str) -> None:
        """Shown nowhere."""

    def finish(self, _done: bool) -> None:
        """Shown nowhere."""


class Scripted:
    """A launcher whose attempts end as they are told to; a callable is called first."""

    def __init__(self, *results) -> None:
        self.results, self.specs = list(results), []

    def run(self, folder, spec, stop, listener):
        self.specs.append((str(folder), spec))
        run = EventLogRun(folder)
        run.note(f"attempt {len(self.specs)}")
        result = self.results.pop(0)
        return result() if callable(result) else result


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db", "retries")


@pytest.fixture
def pipeline(checkout, database):
    def make(launcher, retry_after_s=(0.0, 0.0, 0.0)) -> PipelineRun:
        experiment = Experiment(name="retries", retry_after_s=retry_after_s)
        record = Record(uri=database.uri, experiment="retries", label="retries")
        own = Uploader(database, new_folder("retries"), record)
        own.upload()
        display = Display(Console(file=io.StringIO(), width=200))
        return PipelineRun(experiment, virtual(), database, own, display, None, launcher)

    return make


def ended(run, **values):
    """The outcome of one step, the step, and its page."""
    pending, page = Pending("fails", fails, [], run.display.add("fails")), Page()
    run.pending.append(pending)
    return run_step(run, pending, [FailingParams(**values)], page), pending, page


def runs_of(run):
    client = run.tracker.client
    wanted = f"tags.`mlflow.parentRunId` = '{run.own.run_id}'"
    return client.search_runs([run.tracker.experiment_id], wanted)


def test_a_lost_connection_is_tried_again_in_the_same_run(pipeline):
    run = pipeline(Scripted(LOST, LOST, DONE))
    outcome, pending, page = ended(run)
    assert (outcome.state, pending.failure) == ("done", None)
    first, second, third = run.launcher.specs
    assert [spec.earlier for _folder, spec in run.launcher.specs] == [(), (first[0],), (first[0], second[0])]
    assert third[1].key == first[1].key
    assert [line for line in page.lines if "tries again" in line] == [
        "network: ConnectionResetError: reset; tries again in 0 s"
    ] * 2
    (logged,) = runs_of(run)
    assert (logged.info.status, logged.data.tags["failure"]) == ("FINISHED", "")
    assert logged.data.tags["mlflow.overnight.attempts"] == "3"
    assert "network; look at the network" in logged.data.tags[NOTE_TAG]


def test_a_bug_is_not_tried_again_and_the_run_says_what_it_is(pipeline):
    run = pipeline(Scripted(BUG))
    outcome, pending, _page = ended(run)
    assert outcome.state == "failed"
    assert outcome.message.splitlines()[0] == "KeyError: 'cnn'"
    assert outcome.message.splitlines()[1].startswith("bug; ")
    assert (pending.failure.kind, len(run.launcher.specs)) == ("bug", 1)
    (logged,) = runs_of(run)
    assert (logged.info.status, logged.data.tags["failure"]) == ("FAILED", "bug")
    assert "- attempt 1" in logged.data.tags[NOTE_TAG]
    said = _close(run)
    assert "fails: bug; " in said.message
    assert "fails: bug; " in run.display.console.file.getvalue()


def test_tries_end_after_the_last_wait(pipeline):
    run = pipeline(Scripted(LOST, LOST), retry_after_s=(0.0,))
    assert ended(run)[0].state == "failed"
    assert len(run.launcher.specs) == 2
    run = pipeline(Scripted(LOST), retry_after_s=())
    assert ended(run)[0].state == "failed"


def test_a_stop_ends_the_waiting_at_once(pipeline):
    run = pipeline(Scripted(LOST), retry_after_s=(3600.0,))
    threading.Timer(0.5, lambda: run.stop.ask("stopped by Ctrl-C")).start()
    outcome, pending, _page = ended(run)
    assert (outcome.state, pending.failure.kind) == ("stopped", "stopped")
    assert outcome.message.startswith("stopped by Ctrl-C")
    assert len(run.launcher.specs) == 1


def test_a_full_disk_is_tried_again_when_it_was_freed(pipeline, checkout):
    full = OSError(errno.ENOSPC, "No space left on device")
    result = StepResult(code=14, error="the disk is full", raised=names_of(full))
    run = pipeline(Scripted(result))
    assert ended(run)[0].state == "failed"
    filler = checkout / "filler"
    with filler.open("wb") as file:
        file.write(bytes(4 * FREED_BYTES))
    run = pipeline(Scripted(result, DONE), retry_after_s=(1.0, 1.0))
    threading.Timer(0.5, filler.unlink).start()
    assert ended(run)[0].state == "done"


@pytest.mark.slow
def test_a_step_that_really_loses_its_server_logs_each_point_once(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = pipeline(Local(virtual()))
    outcome, _pending, _page = ended(run, folder=str(tmp_path))
    assert outcome.state == "done"
    assert len(list(tmp_path.glob("attempt-*"))) == 3
    (logged,) = runs_of(run)
    points = run.tracker.client.get_metric_history(logged.info.run_id, "tried")
    assert sorted((p.step, p.value) for p in points) == [(0, 0.0), (1, 0.0), (2, 1.0), (3, 2.0)]
