"""Spools: files of events, a line of JSON each, that outlive both who writes and who ships them.

<folder of a step>/events.jsonl   what its child logs
                   parent.jsonl   what its parent adds: inputs, what it asked for and took, the reason of its end
A line that a crash cut short is nobody's: it is neither shipped nor counted as logged.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
CHILD, PARENT = "events.jsonl", "parent.jsonl"
PORTION_BYTES = 1 << 18
PORTION_METRICS = 1000  # MLflow takes no more at once
FIELDS = {  # of each kind of event, as run.py writes them
    "metrics": {"at", "values", "step"},
    "param": {"name", "value"},
    "note": {"text"},
    "log": {"text"},
    "progress": {"done", "total", "text"},
    "data": {"name", "digest", "source", "spec"},
    "publish": {"path", "folder"},
    "model": {"path"},
    "continues": {"folders"},
}


class Writer:
    """Appends whole lines. Raises OSError, a full disk for one; what was half written then spoils no line that comes after."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file, self._lock = os.open(path, flags, 0o644), threading.Lock()
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as long as somebody may still write
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def write(self, event: Json) -> None:
        """Names of files may hold bytes that are no text."""
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode(errors="replace")
        with self._lock:
            line = b"\n" + line if self._torn else line
            self._torn = True
            while line:
                line = line[os.write(self._file, line) :]
            self._torn = False

    def sync(self) -> None:
        """Until the disk has it."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Nobody writes any more."""
        os.close(self._file)


def written(path: Path) -> bool:
    """Whether some process may still write to a spool."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@dataclass
class Portion:
    """Events of a part of a spool that ends at byte `end`."""

    events: list[Json]
    end: int


def read(path: Path, start: int) -> Portion:
    """What comes after byte `start`, about as much as MLflow takes at once; `end` is `start` when no whole line does."""
    events, end, numbers = list[Json](), start, 0
    for line in _lines(path, start):
        end += len(line)
        event = readable(line)
        if event is not None:
            events.append(event)
            numbers += len(event["values"]) if event["event"] == "metrics" else 0
        if numbers >= PORTION_METRICS or end - start >= PORTION_BYTES:
            break
    return Portion(events, end)


def _lines(path: Path, start: int) -> Iterator[bytes]:
    """Whole lines, each with its end."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield line


def readable(line: str | bytes) -> Json | None:
    """An event of run.py; None for anything else: a full disk or a library that writes there must not end the step."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    fields = FIELDS.get(str(event.get("event"))) if isinstance(event, dict) else None
    if fields is None or not fields <= event.keys():
        return None
    return (
        event
        if event["event"] != "metrics"
        or (isinstance(event["values"], dict) and isinstance(event["step"], int))
        else None
    )


def last_steps(path: Path) -> dict[str, int]:
    """The last step of each metric in a spool."""
    last = dict[str, int]()
    for line in _lines(path, 0):
        event = readable(line) if b'"metrics"' in line else None
        if event is not None and event["event"] == "metrics":
            last |= {
                name: max(last.get(name, int(event["step"])), int(event["step"])) for name in event["values"]
            }
    return last
