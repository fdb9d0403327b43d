"""What a flow process leaves on the disk, so that the reconciler can close its run when it was killed.

Files of .overnight/services/runs, by the id of the Prefect run: `.lock`, locked and touched while the process
runs; `.end`, the state that it is about to report. The identity of the process stands in Prefect's labels and
MLflow's tags, too, so a lost file loses no run.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from overnight import locks, paths
from overnight.files import atomic_write, read_json
from overnight.processes import environment_of

KINDS = ("lock", "end")
TOUCH_S = 5.0  # how precisely the time of a process's death is known
STEP_FILES = ("events.jsonl", "log.txt", "result.json", "spec.json")
VARIABLE = "PREFECT__FLOW_RUN_ID"  # by which Prefect's worker names the run to the process that it starts


@contextmanager
def running(flow_run_id: str) -> Iterator[None]:
    path = _file(flow_run_id, "lock")
    done = threading.Event()
    with locks.hold(path, f"flow run {flow_run_id}"):
        threading.Thread(target=_touch, args=(path, done), daemon=True, name="alive").start()
        try:
            yield
        finally:
            done.set()
        path.unlink(missing_ok=True)  # kept after an error: closing the run needs it


def save_end(flow_run_id: str, kind: str, name: str, message: str) -> None:
    with suppress(OSError):
        state = {"type": kind, "name": name, "message": message}
        atomic_write(_file(flow_run_id, "end"), json.dumps(state))


def runs_folder() -> Path:
    return paths.services() / "runs"


def held() -> dict[str, locks.Holder]:
    holders = {path.stem: locks.holder(path) for path in sorted(runs_folder().glob("*.lock"))}
    return {flow_run_id: holder for flow_run_id, holder in holders.items() if holder}


def abandoned() -> list[str]:
    """Runs that left a file and have no process: killed, or just ended and about to remove it."""
    known = {path.stem for kind in KINDS for path in runs_folder().glob(f"*.{kind}")}
    return sorted(known - set(held()))


def end_of(flow_run_id: str) -> dict[str, str] | None:
    saved = read_json(_file(flow_run_id, "end"))
    return saved if saved.keys() >= {"type", "name", "message"} else None


def last_seen(flow_run_id: str) -> float:
    return _mtime(_file(flow_run_id, "lock"))


def last_written(step: Path) -> float:
    return max((_mtime(step / name) for name in STEP_FILES), default=0.0)


def forget(flow_run_id: str) -> None:
    for kind in KINDS:
        _file(flow_run_id, kind).unlink(missing_ok=True)


def flow_run_of(pid: int) -> str:
    return environment_of(pid).get(VARIABLE, "")


def flow_runs_of_processes() -> set[str]:
    return {flow_run_of(pid) for pid in psutil.pids()} - {""}


def detach_from_worker_pipe() -> None:
    """In a process that a worker started: write to the worker's log directly, not through the worker's pipe.

    The pipe breaks when the worker is killed, and the next line of output would then break the run.
    """
    log = paths.log_file("worker")
    with suppress(OSError):
        if flow_run_of(os.getpid()) and Path(f"/proc/{os.getppid()}/fd/1").resolve() == log.resolve():
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(descriptor, stream)
            os.close(descriptor)


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_S):
        with suppress(OSError):  # it was removed
            os.utime(path)


def _file(flow_run_id: str, kind: str) -> Path:
    return runs_folder() / f"{flow_run_id}.{kind}"


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
