"""What a flow process does when the worker that started it is dead."""

import subprocess
import sys

from overnight import paths
from overnight.processes import Process
from tests.support.checkouts import until

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
