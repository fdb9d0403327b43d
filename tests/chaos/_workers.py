"""Light processes that take and give back parts of a card, what they write down of it, and the sum over all
of them afterwards.
"""

import ctypes
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from overnight.gpu.ledger import ledger
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.ledger.scheduler import Size
from tests.support.schedules import starts

BUDGET = 12288
NS = 1e9


def now() -> int:
    """Nanoseconds of the clock that tickets are taken from."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Hold:
    """What one process held, and when (ns): surely no longer than it did."""

    ticket: int
    start: int
    end: int
    mib: int
    pid: int


def in_child(parent: int, body: Callable[[], object]) -> None:
    """Run body in a process that was just forked, and end it; it ends with its parent, too."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == parent:
            body()
            code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


class Workers:
    """Processes forked from this one, with a folder for the ledger and one for what they write down.

    None of them outlives it.
    """

    def __init__(self, folder: Path) -> None:
        self.card, self.notes = (
            folder / "virtual",
            folder / "notes",
        )  # $OVERNIGHT_CARD_DIR is the folder above
        self.notes.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.card, BUDGET)
        self.killed: dict[int, int] = {}
        self.alive: set[int] = set()

    def fork(self, body: Callable[["Pen"], None]) -> int:
        """Run body in a process of its own."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            in_child(parent, lambda: body(Pen(self.notes / str(os.getpid()), self.ledger)))
        self.alive.add(pid)
        return pid

    def loop(self, amounts: Sequence[tuple[int, float]], pause_s: float = 0.0) -> int:
        """A process that holds each of (MiB, seconds) in turn."""

        def body(pen: Pen) -> None:
            for mib, seconds in amounts:
                pen.hold(mib, seconds)
                time.sleep(pause_s)

        return self.fork(body)

    def kill(self, pid: int) -> int:
        """kill -9; when (ns)."""
        self.killed[pid] = now()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.alive.discard(pid)
        return self.killed[pid]

    def wait(self, pid: int) -> None:
        """Until it has ended well."""
        _, status = os.waitpid(pid, 0)
        self.alive.discard(pid)
        if status:
            raise AssertionError(f"a light process ended with status {status}")

    def in_line(self, pid: int) -> None:
        """Until it stands in line or holds."""
        while not any(path.name.split("-")[-1] == str(pid) for path in self.card.iterdir()):
            time.sleep(0.001)

    def held(self) -> list[Hold]:
        """Everything that was ever held."""
        return [
            hold
            for path in self.notes.iterdir()
            if not path.suffix
            for hold in _read(path, self.killed.get(int(path.name), now()))
        ]

    def stuck_mib(self) -> int:
        """What is still held when nobody lives, by the ledger's own view and by whether all of it can be
        taken.
        """
        left = self.ledger.held_mib()
        until = time.monotonic() + 2
        with suppress(Exception):
            self.ledger.acquire(BUDGET, should_stop=lambda: time.monotonic() > until).release()
            return left
        return max(left, BUDGET)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for pid in tuple(self.alive):
            self.kill(pid)


class Pen:
    """What a process writes down: one line when it has got something, one just before it gives that back."""

    def __init__(self, path: Path, book: Ledger) -> None:
        self.path, self.ledger = path, book
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def hold(self, mib: int, seconds: float) -> None:
        with self.ledger.acquire(mib) as grant, self.noted(grant):
            time.sleep(seconds)

    @contextmanager
    def noted(self, grant: ledger.Grant) -> Iterator[None]:
        os.write(self.file, b"%d %d %d " % (grant.request.ticket, now(), grant.mib))
        yield
        os.write(self.file, b"%d\n" % now())


@contextmanager
def start_workers() -> Iterator[Workers]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, Workers(Path(folder)) as workers:
        yield workers


def _read(path: Path, killed: int) -> Iterator[Hold]:
    for line in path.read_text().splitlines():
        ticket, start, mib, *end = map(int, line.split())
        yield Hold(ticket, start, end[0] if end else killed, mib, int(path.name))


def most(holds: Sequence[Hold]) -> int:
    """The largest sum that was held at any moment: a sweep over all intervals, which misses nothing that
    sampling would.
    """
    events = sorted([(h.start, h.mib) for h in holds] + [(h.end, -h.mib) for h in holds])
    total = top = 0
    for _, change in events:
        total += change
        top = max(top, total)
    return top


def later_s(holds: Sequence[Hold], hand_over_s: float, backfill: bool = False) -> list[float]:
    """How much later each started than with the same arrivals and durations on paper, each end being noticed
    after *hand_over_s*.
    """
    origin = min(h.ticket for h in holds)
    jobs = [((h.ticket - origin) / NS, (h.end - h.start) / NS + hand_over_s, Size(h.mib)) for h in holds]
    plain = dict(starts(BUDGET, jobs, backfill))
    return [(h.start - origin) / NS - plain[j] for j, h in enumerate(holds)]


class Observer:
    """A process of a program that shares no code with the ledger, looking all the time."""

    def __init__(self, card: Path) -> None:
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("_observer.py")), str(card)], stdin=-1, stdout=-1, text=True)  # fmt: skip

    def end(self) -> tuple[int, int]:
        """(looks, the most MiB it saw held at once)."""
        looks, top = self.process.communicate("")[0].split()
        return int(looks), int(top)


def quantile(values: Sequence[float], q: float) -> float:
    """By the nearest rank."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
