"""Step folders with events that MLflow does not have yet, and what is kept beside the events to upload them.

`.overnight/services/backlog/<step>.step` names a folder from its start until MLflow has everything. The
process that uploads a folder holds the lock in it: the run's own, the next attempt at the step, or `python -m
overnight.tracking.uploader`, which the supervisor starts for abandoned folders.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Self

from overnight import locks, paths
from overnight.config import Values
from overnight.files import atomic_write, read_json
from overnight.processes import start_python

LOCK, RECORD, OFFSETS = "ship.lock", "record.json", "shipped.json"
RETRY_S, MAX_RETRY_S = 20.0, 900.0


def enqueue(step: Path) -> None:
    path = paths.services() / "backlog" / f"{step.name}.step"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, str(step))


def enqueue_all(uri: str) -> None:
    """List every folder again whose run that server had: its database was removed."""
    records = {folder: Record.read(folder) for folder in paths.steps().glob("*")}
    found = {folder: record for folder, record in records.items() if record and record.uri == uri}
    continued = {Path(one) for record in found.values() for one in record.earlier}
    for folder in found.keys() - continued:
        enqueue(folder)


def mark_done(step: Path) -> None:
    for path in entries():
        if path.stem == step.name:
            path.unlink(missing_ok=True)


def is_pending(step: Path) -> bool:
    return any(path.stem == step.name for path in entries())


def pending() -> list[Path]:
    """The folders that no process uploads; entries of folders that were removed are deleted."""
    found = list[Path]()
    for path in entries():
        with suppress(FileNotFoundError):  # just marked as done
            found.append(Path(path.read_text()))
    for step in found:
        if not step.is_dir():
            mark_done(step)
    return [step for step in found if step.is_dir() and locks.holder(step / LOCK) is None]


def uploading(step: Path) -> AbstractContextManager[None]:
    """The lock of the one process that uploads this folder. Entering it raises locks.Held."""
    return locks.hold(step / LOCK, f"the upload of {step.name}")


def entries() -> list[Path]:
    """The files that name what MLflow does not have, one a step.

    In any folder below services/: earlier versions used another one.
    """
    return sorted(paths.services().glob("*/*.step"), key=lambda path: path.name)


class End(Values):
    status: str
    at: float


class Record(Values):
    """One attempt at a step."""

    uri: str
    experiment: str
    label: str
    parent: str = ""  # folder of the experiment's own run; of earlier versions, its id
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    earlier: tuple[str, ...] = ()  # folders of earlier attempts, whose run it continues
    opening: bool = False  # a run was requested; whether it exists is unknown while there is no run_id
    run_id: str = ""
    created: int = 0  # of its experiment, in ms: another number is another database
    end: End | None = None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        try:
            return cls.model_validate_json((folder / RECORD).read_text())
        except (OSError, ValueError):
            return None

    def write(self, folder: Path) -> Self:
        """Write the record; on a full disk the old one stays."""
        with suppress(OSError):
            atomic_write(folder / RECORD, self.model_dump_json(indent=1))
        return self

    def update(self, folder: Path, **changes: Any) -> Self:
        return self.model_copy(update=changes).write(folder)


def read_offset(log: Path, run_id: str) -> int:
    """Up to which byte the run in MLflow has an event log, as far as that was written down."""
    offset = read_json(log.parent / OFFSETS).get(f"{run_id} {log.name}")
    return offset if isinstance(offset, int) else 0


def write_offset(log: Path, run_id: str, offset: int) -> None:
    """Write it down, after MLflow confirmed it; on a full disk the old one stays.

    A process that is killed in between sends its last portion again, which changes nothing in MLflow.
    """
    path = log.parent / OFFSETS
    with suppress(OSError):
        atomic_write(path, json.dumps({**read_json(path), f"{run_id} {log.name}": offset}))


class BacklogWorker:
    """Runs `python -m overnight.tracking.uploader` for what ended runs left, one process at a time."""

    def __init__(self, environment: Callable[[], Mapping[str, str]]) -> None:
        self.environment = environment
        self.popen: subprocess.Popen[bytes] | None = None
        self.failures = 0
        self.next_start = 0.0

    def poll(self) -> list[str]:
        """Start a process where folders wait; returns a line for each thing done."""
        if self.busy():
            return []
        lines = self._ended(self.popen.returncode) if self.popen is not None else []
        found = pending() if time.monotonic() >= self.next_start else []
        if found:
            program = ["-P", "-m", "overnight.tracking.uploader"]
            self.popen = start_python(program, paths.log_file("ship"), {**os.environ, **self.environment()})
            lines.append(f"uploading to MLflow what {', '.join(step.name for step in found)} left")
        return lines

    def busy(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def _ended(self, code: int) -> list[str]:
        self.popen = None
        self.failures = self.failures + 1 if code else 0
        if not code:
            return []
        self.next_start = time.monotonic() + min(RETRY_S * 2**self.failures, MAX_RETRY_S)
        return [f"MLflow does not have all that runs left ({paths.log_file('ship')})"]
