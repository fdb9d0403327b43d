"""The timeline of a card, for the morning report: a line every few seconds from each lease holder.

Above LIMIT_BYTES `timeline.jsonl` becomes `timeline.1.jsonl` and replaces the one before. A line is one write
at the file's end, so that lines of several writers do not mix; a torn one is skipped.
"""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from overnight.gpu.card import Card
from overnight.locks import same_file

LIMIT_BYTES = 4 << 20  # two of these: a few weeks of nights


@dataclass(frozen=True)
class Point:
    """One holder at one moment; each amount is the maximum since its previous line.

    at: seconds since 1970; lease_mib: of this holder; leased_mib: of all; own_mib: used by this one;
    used_mib: on the whole card; other_processes_mib: used without a lease.
    """

    at: float
    experiment: str
    step: str
    pid: int
    lease_mib: int
    leased_mib: int
    own_mib: float
    used_mib: int
    other_processes_mib: int
    other_processes: tuple[str, ...] = ()


def append(card: Card, point: Point) -> None:
    """Add a line. A full disk is no error."""
    line = json.dumps(dataclasses.asdict(point), separators=(",", ":")).encode() + b"\n"
    path = _path(card)
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            os.write(descriptor, line)
            if size + len(line) > LIMIT_BYTES:
                _rotate(descriptor, path)
        finally:
            os.close(descriptor)


def _rotate(descriptor: int, path: Path) -> None:
    """Of several writers only the one that locks the file of this name renames it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if same_file(descriptor, path):
        path.replace(path.with_name("timeline.1.jsonl"))


def read(card: Card, since: float = 0.0) -> list[Point]:
    """Every point from `since` (seconds since 1970) on, in order."""
    points = [*_points(card.folder / "timeline.1.jsonl"), *_points(_path(card))]
    return sorted((p for p in points if p.at >= since), key=lambda p: p.at)


def _points(path: Path) -> Iterator[Point]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        with suppress(ValueError, TypeError, AttributeError, LookupError, RecursionError):
            values = json.loads(line)
            names = tuple(values["other_processes"])
            yield Point(**{**values, "at": float(values["at"]), "other_processes": names})


def _path(card: Card) -> Path:
    return card.folder / "timeline.jsonl"
