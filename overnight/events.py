"""Event logs, one line of JSON an event: a step's child writes events.jsonl, its parent parent.jsonl.

A line that a crash cut short is ignored: it is neither uploaded nor counted as logged.
"""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]
CHILD, PARENT = "events.jsonl", "parent.jsonl"
PORTION_BYTES = 1 << 18
PORTION_METRICS = 1000  # MLflow takes no more at once


FIELDS = {  # that an event of each kind must have, besides the `event` that names the kind; most have `at`
    "metrics": {"values", "step", "at"},  # numbers by name (NaN and infinities as text); at: unix time
    "param": {"name", "value"},  # a fact that was decided while running
    "tags": {"values"},  # texts by name
    "note": {"text"},  # for the log and the run's description
    "log": {"text"},  # for the log alone
    "provisional": {"text"},  # why the result is not to be remembered
    "progress": {"done", "total", "text"},
    "data": {"name", "digest", "source", "spec"},  # a data set that went in
    "publish": {"path", "folder"},  # a file or folder to show among the run's artifacts, below `folder`
    "model": {"path"},  # the folder of a saved model; `digest`
    "register": {"name", "digest", "flow", "tags"},  # a version in the registry of a model that was logged
    # what a contest with the champion found; `former`: the champion's version, 0 for none
    "judged": {"name", "digest", "evidence", "account", "former", "promotes", "at"},
    "continues": {"folders"},  # of the attempts that this one resumes
}


class Writer:
    """Appends whole lines. Raises OSError, as of a full disk; the next line then begins on a new line."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def write(self, event: Json) -> None:
        # Bytes of file names that are no text are replaced.
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode(errors="replace")
        with self._lock:
            line = b"\n" + line if self._torn else line
            self._torn = True
            while line:
                line = line[os.write(self._file, line) :]
            self._torn = False

    def sync(self) -> None:
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


class Portion(NamedTuple):
    events: list[Json]
    end: int


def read(path: Path, start: int) -> Portion:
    """Events after byte `start`, as many as MLflow takes at once; `end` is `start` when there are none."""
    events = list[Json]()
    end = start
    numbers = 0
    for line in _lines(path, start):
        end += len(line)
        event = readable(line)
        if event is not None:
            events.append(event)
            numbers += len(event["values"]) if event["event"] == "metrics" else 0
        if numbers >= PORTION_METRICS or end - start >= PORTION_BYTES:
            break
    return Portion(events, end)


def read_all(path: Path, start: int = 0) -> Iterator[Json]:
    return (event for event in map(readable, _lines(path, start)) if event is not None)


def _lines(path: Path, start: int) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield line


def readable(line: str | bytes) -> Json | None:
    """The event of a line; None for anything else, which a full disk or a library may have written."""
    try:
        event: Any = json.loads(line)
    except ValueError:
        return None
    fields = FIELDS.get(str(event.get("event"))) if isinstance(event, dict) else None
    if fields is None or not fields <= event.keys():
        return None
    found: Json = event
    is_point = isinstance(event.get("values"), dict) and isinstance(event.get("step"), int)
    return found if is_point or event["event"] != "metrics" else None


def last_steps(path: Path) -> dict[str, int]:
    last = dict[str, int]()
    for event in read_all(path):
        if event["event"] == "metrics":
            last |= {name: max(last.get(name, event["step"]), event["step"]) for name in event["values"]}
    return last
