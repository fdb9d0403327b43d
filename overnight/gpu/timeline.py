"""What happened on a card: a line every few seconds from each holder of a lease, for the report of the morning.

`timeline.jsonl` lies beside the ledger. It has several writers and a bound: above LIMIT_BYTES it becomes `timeline.1.jsonl`, the one before
that goes. A line is one write at the file's end, so that lines do not mix; a torn one (a full disk, a power cut) is passed over.
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
    """One holder at one moment; each figure is the most since its line before.

    at: seconds since 1970; lease_mib: of this holder; leased_mib: of all holders; own_mib: used by this one; used_mib: on the whole card;
    foreign_mib: by programs without a lease, whose names are in `outside` as far as they are known.
    """

    at: float
    experiment: str
    step: str
    pid: int
    lease_mib: int
    leased_mib: int
    own_mib: float
    used_mib: int
    foreign_mib: int
    outside: tuple[str, ...] = ()


def append(card: Card, point: Point) -> None:
    """Add a line. It is for people, so a full disk is no reason to stop."""
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
    """Only who has the file that bears the name now, and alone, may rename it: of several writers one does."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if same_file(descriptor, path):
        path.replace(path.with_name("timeline.1.jsonl"))


def read(card: Card, since: float = 0.0) -> list[Point]:
    """Every point from *since* (seconds since 1970) on, in order."""
    points = [
        point for name in ("timeline.1.jsonl", "timeline.jsonl") for point in _points(card.folder / name)
    ]
    return sorted((p for p in points if p.at >= since), key=lambda p: p.at)


def _points(path: Path) -> Iterator[Point]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        with suppress(ValueError, TypeError, LookupError, RecursionError):
            values = json.loads(line)
            yield Point(**{**values, "at": float(values["at"]), "outside": tuple(values.get("outside", ()))})


def _path(card: Card) -> Path:
    return card.folder / "timeline.jsonl"
