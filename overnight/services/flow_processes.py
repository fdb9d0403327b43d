"""What a flow process leaves on the disk for whoever finds it dead: that it runs, when it was last alive, and how it meant to end.

Files of .overnight/services/runs, by the id of the Prefect run: `.lock`, locked and touched as long as the run is alive; `.parent`, the
process that started it; `.end`, the state that it is about to report; `.orphan`, why somebody else ends it. Nothing depends on them alone: the identity of the process stands in
Prefect's labels and MLflow's tags, too.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from overnight import locks, paths
from overnight.files import atomic_write, read_json
from overnight.processes import Process

KINDS = ("lock", "parent", "end", "orphan")
TOUCH_S = 5.0  # how precisely its death can be told
STEP_FILES = ("events.jsonl", "log.txt", "result.json", "spec.json")


@dataclass(frozen=True)
class End:
    """The state in which a run ends."""

    type: str
    name: str
    message: str


class Life:
    """A run that this process runs."""

    def __init__(self, flow_run_id: str) -> None:
        self.flow_run_id = flow_run_id

    def ends(self, end: End) -> None:
        """About to be told to Prefect; if that fails, it is told from here. For a full disk nothing can be done."""
        with suppress(OSError):
            _write(
                _file(self.flow_run_id, "end"), {"type": end.type, "name": end.name, "message": end.message}
            )


@contextmanager
def running(flow_run_id: str) -> Iterator[Life]:
    """This process runs it, until the block ends."""
    path, done = _file(flow_run_id, "lock"), threading.Event()
    with locks.hold(path, f"flow run {flow_run_id}"):
        _remember_parent(flow_run_id)
        threading.Thread(target=_touch, args=(path, done), daemon=True, name="alive").start()
        try:
            yield Life(flow_run_id)
        finally:
            done.set()
        _file(flow_run_id, "parent").unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # not when the block was left by an error: closing asks how it ended


def runs_folder() -> Path:
    """Files of the runs that have not said goodbye."""
    return paths.services() / "runs"


def held() -> dict[str, locks.Holder]:
    """Who holds which run now."""
    return {
        path.stem: holder for path in sorted(runs_folder().glob("*.lock")) if (holder := locks.holder(path))
    }


def left() -> list[str]:
    """Runs that left a file and are not held: they ended without a word, or have just said it."""
    alive = held()
    return sorted({path.stem for path in runs_folder().glob("*.*") if path.suffix[1:] in KINDS} - set(alive))


def end_of(flow_run_id: str) -> End | None:
    """How it meant to end."""
    said = _read(_file(flow_run_id, "end"))
    return (
        End(said["type"], said["name"], said["message"])
        if said.keys() >= {"type", "name", "message"}
        else None
    )


def orphaned(flow_run_id: str) -> str:
    """Why somebody ends it; empty when nobody does."""
    return _read(_file(flow_run_id, "orphan")).get("why", "")


def orphan(flow_run_id: str, why: str) -> None:
    """It is being ended."""
    _write(_file(flow_run_id, "orphan"), {"why": why})


def last_seen(flow_run_id: str) -> float:
    """When its process was last alive, as its lock file tells; 0 when that is gone."""
    return _mtime(_file(flow_run_id, "lock"))


def last_written(step: Path) -> float:
    """When something was last written to a step's folder; 0 when that is gone."""
    return max((_mtime(step / name) for name in STEP_FILES), default=0.0)


def parent(flow_run_id: str) -> Process | None:
    """Who started its process; None when that is not known any more."""
    said = _read(_file(flow_run_id, "parent"))
    return Process(int(said["pid"]), said["started"]) if said.keys() >= {"pid", "started"} else None


def _remember_parent(flow_run_id: str) -> None:
    found = Process.of(os.getppid())
    if found is not None:
        with suppress(OSError):
            _write(_file(flow_run_id, "parent"), {"pid": str(found.pid), "started": found.started})


def forget(flow_run_id: str) -> None:
    """It is closed."""
    for kind in KINDS:
        _file(flow_run_id, kind).unlink(missing_ok=True)


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_S):
        with suppress(OSError):  # somebody removed it
            os.utime(path)


def _file(flow_run_id: str, kind: str) -> Path:
    return runs_folder() / f"{flow_run_id}.{kind}"


def _write(path: Path, values: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(values))


def _read(path: Path) -> dict[str, str]:
    return {str(key): str(value) for key, value in read_json(path).items()}


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
