"""Processes that outlived whoever started them: flow processes of a dead worker, and what killed steps have started."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from overnight import paths, processes
from overnight.processes import Process
from overnight.services import flow_processes

VARIABLE = b"PREFECT__FLOW_RUN_ID="  # the worker tells the process that it starts which run it is
GRACE_S = 28.0  # a checkpoint may take 20 s


class Orphans:
    """Ends them, politely first. `let_go`: runs whose worker was stopped by the supervisor, who started another one: they go on."""

    def __init__(self) -> None:
        self.asked: dict[Process, float] = {}
        self.let_go = set[Process]()

    def end(self) -> list[str]:
        """One look; what was done, a line for each."""
        killed = processes.kill_step_processes(
            lambda owner: not owner.alive()
        )  # a killed run takes its steps along; nobody took what those had started
        lines = [f"ended what a killed run has left: pids {', '.join(map(str, killed))}"] if killed else []
        for flow_run_id, process in _started_by_a_worker().items():
            worker = flow_processes.parent(flow_run_id)
            if worker is None or worker.alive() or process in self.let_go:
                continue
            if process not in self.asked:
                why = f"its worker (pid {worker.pid}) is gone: killed, or broken down; its own process (pid {process.pid}) was then asked to end"
                flow_processes.orphan(flow_run_id, why)
                lines.append(f"flow run {flow_run_id}: {why}")
                self.asked[process] = time.monotonic()
                process.signal(signal.SIGTERM)
            elif time.monotonic() - self.asked[process] > GRACE_S:
                process.signal(signal.SIGKILL)
        self.asked = {p: since for p, since in self.asked.items() if p.alive()}
        return lines

    def spare(self, worker: Process) -> None:
        """The runs of a worker that is stopped because it hangs go on."""
        self.let_go |= {
            p
            for flow_run_id, p in _started_by_a_worker().items()
            if flow_processes.parent(flow_run_id) == worker
        }


def keep_talking() -> None:
    """In a process that a worker has started: write to the worker's log itself, where its words end up anyway.

    They go through a pipe that the worker reads; when the worker dies, the next word would break the run, before anybody could end it well.
    """
    log = paths.log_file("worker")
    with suppress(OSError):
        if flow_run_of(os.getpid()) and Path(f"/proc/{os.getppid()}/fd/1").resolve() == log.resolve():
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(descriptor, stream)
            os.close(descriptor)


def _started_by_a_worker() -> dict[str, Process]:
    """Flow runs of this checkout that a worker has started, and their processes."""
    found = {}
    for flow_run_id, holder in flow_processes.held().items():
        process = Process.of(holder.pid)
        if process and flow_run_of(holder.pid) == flow_run_id:
            found[flow_run_id] = process
    return found


def flow_run_of(pid: int) -> str:
    """Which run the worker has told a process to be; empty for all other processes."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next(
        (v.partition(b"=")[2].decode(errors="replace") for v in variables if v.startswith(VARIABLE)), ""
    )


def flow_runs_of_processes() -> set[str]:
    """Every run that some living process of this machine was told to be."""
    return {found for p in psutil.process_iter() if (found := flow_run_of(p.pid))}
