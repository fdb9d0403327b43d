"""Folders of ended runs: one process at a time uploads them, ever more rarely while a server is away."""

from overnight import paths
from overnight.services.settings import environment
from overnight.tracking import backlog
from overnight.tracking.backlog import RETRY_S, BacklogWorker, Record
from tests.support.checkouts import until


def test_one_process_at_a_time_tells_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    step, worker = tmp_path / "step", BacklogWorker(environment)
    step.mkdir()
    assert worker.poll() == []
    backlog.enqueue(step)  # without a record nobody can know where it belongs: said, and settled
    (line,) = worker.poll()
    assert "step left" in line
    assert not worker.busy() or worker.poll() == []
    until(lambda: not worker.busy())
    assert worker.poll() == []
    assert (worker.failures, backlog.pending()) == (0, [])
    assert "no readable record" in paths.log_file("ship").read_text()


def test_a_server_that_stays_away_is_asked_ever_more_rarely(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    step, worker = tmp_path / "step", BacklogWorker(environment)
    step.mkdir()
    backlog.enqueue(step)
    Record(uri=f"sqlite:///{step}/record.json/a-file-is-no-folder.db", experiment="x", label="step").write(
        step
    )
    worker.poll()
    until(lambda: not worker.busy())
    (line,) = worker.poll()  # and no other one yet
    assert "does not have all" in line
    assert backlog.pending() == [step]
    first, worker.failures = worker.next_start, 5
    worker._ended(1)
    assert worker.next_start - first > RETRY_S
