"""What outlives whoever started it: a run whose worker was killed is asked to end, others are left alone."""

import os
import signal
import subprocess
import sys

import pytest

from overnight import paths
from overnight.processes import Process
from overnight.services import flow_processes
from overnight.services.flow_processes import flow_run_of
from overnight.services.reconcile import Orphans
from tests.support.checkouts import until

FLOW = """
import signal, sys, threading
from overnight.services import flow_processes
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
with flow_processes.running("a-run"):
    print("runs", flush=True)
    while not asked.wait(0.05): pass
"""
WORKER = "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], env={**os.environ, 'PREFECT__FLOW_RUN_ID': sys.argv[2]}).wait()"


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker, and the run that it has started; the pid of the run."""
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    started = []

    def start(flow_run_id="a-run"):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, FLOW, flow_run_id], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "runs\n"
        flow = Process.of(flow_processes.held()["a-run"].pid)
        started.extend([process.pid, flow.pid])
        return process, flow

    yield start
    for pid in started:
        if Process.of(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_run_whose_worker_lives_is_left_alone(worker):
    _, flow = worker()
    assert flow_run_of(flow.pid) == "a-run"
    assert Orphans().end() == []
    assert flow_processes.orphan_reason("a-run") == ""


def test_a_run_whose_worker_was_killed_is_asked_to_end_once_and_knows_why(worker):
    process, flow = worker()
    process.kill()
    process.wait()
    orphans = Orphans()
    (line,) = orphans.end()
    assert f"worker (pid {process.pid}) is gone" in line
    assert f"worker (pid {process.pid}) is gone" in flow_processes.orphan_reason("a-run")
    assert orphans.end() == []
    until(lambda: not flow.alive())
    assert flow_processes.abandoned() == ["a-run"]  # for the supervisor, which puts its state right


def test_a_run_whose_worker_was_stopped_because_it_hung_goes_on(worker):
    process, flow = worker()
    orphans = Orphans()
    orphans.keep_runs_of(Process.of(process.pid))
    process.kill()
    process.wait()
    assert orphans.end() == []
    assert flow.alive()


def test_a_run_by_hand_has_no_worker_to_lose(worker):
    process, flow = worker("another run")  # as a shell that was started by a worker would have it
    process.kill()
    process.wait()
    assert Orphans().end() == []
    assert flow.alive()


TALKER = """
import sys
from overnight.services.flow_processes import detach_from_worker_pipe
detach_from_worker_pipe()
print("before", flush=True)
input()
print("after", flush=True)
input()
"""
PIPING = """
import os, subprocess, sys
flow = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=0, stdout=subprocess.PIPE, env={**os.environ, 'PREFECT__FLOW_RUN_ID': 'a-run'})
print(flow.pid, flush=True)
sys.stdout.write(flow.stdout.read().decode())
"""


def test_a_run_goes_on_talking_when_its_worker_is_dead(tmp_path, monkeypatch):
    """The pipe through the worker is broken then; the worker's log is not."""
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    log = paths.log_file("worker")
    log.parent.mkdir(parents=True)
    with log.open("ab") as out:
        worker = subprocess.Popen(
            [sys.executable, "-c", PIPING, TALKER], stdin=subprocess.PIPE, stdout=out, text=True
        )
    until(lambda: "before" in log.read_text())
    flow = Process.of(int(log.read_text().split()[0]))
    worker.kill()
    worker.wait()
    worker.stdin.write("\n")
    worker.stdin.flush()
    until(lambda: "after" in log.read_text() or not flow.alive())
    assert flow.alive()
    worker.stdin.write("\n")
    worker.stdin.close()
    until(lambda: not flow.alive())
