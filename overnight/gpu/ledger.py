"""Who holds how much of a card: kernel locks weighted in MiB, first come first served, no server.

One file per request in the card's folder, named `<state>-<ticket>-<mib>-<pid>`: state `q` waits, `h` holds. Its owner keeps it
locked (flock) as long as it lives; the kernel drops the lock with the last descriptor, so what a killed process held is free at
once, while a grandchild that was forked with the descriptor still counts. All that decides lies in names and locks: the JSON
inside a file only tells people who it is. Changes are made under `mutex`, which nobody holds longer than a listing takes.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from overnight.errors import DoesNotFit, ServiceError, Stopped
from overnight.locks import same_file

POLL_S = 0.1


@dataclass(frozen=True)
class Request:
    """One line of the ledger."""

    path: Path
    holds: bool
    ticket: int
    mib: int
    pid: int
    who: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, path: Path) -> Self | None:
        """From a file's name; None for a file that is no request."""
        state, *numbers = path.name.split("-")
        if state not in ("q", "h") or len(numbers) != 3 or not all(n.isdigit() for n in numbers):
            return None
        ticket, mib, pid = map(int, numbers)
        return cls(path, state == "h", ticket, mib, pid)


class Ledger:
    """The requests on one card's budget."""

    def __init__(self, folder: Path, budget_mib: int) -> None:
        self.folder, self.budget_mib = folder, budget_mib
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServiceError(
                f"{folder}: the ledger of the card cannot be kept there ({error.strerror}); set OVERNIGHT_CARD_DIR"
            ) from None

    def acquire(
        self,
        mib: int,
        who: dict[str, Any] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_wait: Callable[[list[Request]], None] = lambda _ahead: None,
    ) -> "Grant":
        """Wait in line until `mib` are free, then hold them. Raises DoesNotFit at once when they never can be, Stopped when asked to.

        on_wait: called once, with those who hold or stand ahead, when the grant is not immediate.
        """
        if mib > self.budget_mib:
            raise DoesNotFit(f"asked for {mib} MiB, and the card's whole budget is {self.budget_mib} MiB")
        with self._mutex():
            request, descriptor = self._enqueue(mib, who or {})
            granted = self._grant(request)
        told = False
        try:
            while granted is None:
                if should_stop():
                    raise Stopped(f"stopped while waiting for {mib} MiB of the card")
                if not told:
                    on_wait([r for r in self.requests() if r.ticket != request.ticket])
                    told = True
                time.sleep(POLL_S)
                with self._mutex():
                    granted = self._grant(request)
        except BaseException:
            _drop(request.path, descriptor)
            raise
        return Grant(granted, descriptor, self)

    def requests(self) -> list[Request]:
        """Every live request: holders first, then the queue in its order."""
        with self._mutex():
            found = self._live()
        return [Request(r.path, r.holds, r.ticket, r.mib, r.pid, _read(r.path)) for r in found]

    def held_mib(self) -> int:
        """The sum of all grants."""
        return sum(r.mib for r in self.requests() if r.holds)

    def _enqueue(self, mib: int, who: dict[str, Any]) -> tuple[Request, int]:
        """A new last place in line; under the mutex."""
        ticket = max((r.ticket for r in self._live()), default=0) + 1
        path = self.folder / f"q-{ticket}-{mib}-{os.getpid()}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps({"since": time.time(), "pid": os.getpid(), **who}).encode())
        return Request(path, False, ticket, mib, os.getpid()), descriptor

    def _grant(self, request: Request) -> Request | None:
        """Turn the request into a grant if it is its turn and there is room; under the mutex."""
        live = self._live()
        first = min(r.ticket for r in live if not r.holds)
        if first != request.ticket or sum(r.mib for r in live if r.holds) + request.mib > self.budget_mib:
            return None
        path = request.path.with_name("h" + request.path.name[1:])
        request.path.rename(path)  # the lock stays with the file
        return Request(path, True, request.ticket, request.mib, request.pid)

    def _live(self) -> list[Request]:
        """Requests whose owner lives; the others' files are removed. Under the mutex."""
        found = [r for path in self.folder.iterdir() if (r := Request.parse(path))]
        live = [r for r in found if not _reap(r.path)]
        return sorted(live, key=lambda r: (not r.holds, r.ticket))

    @contextmanager
    def _mutex(self) -> Iterator[None]:
        while True:
            descriptor = os.open(self.folder / "mutex", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if same_file(descriptor, self.folder / "mutex"):
                    yield
                    return
            finally:
                os.close(descriptor)


class Grant:
    """Held memory; released by `release`, by leaving the `with` block, or by the kernel when the process ends."""

    def __init__(self, request: Request, descriptor: int, ledger: Ledger) -> None:
        self.request, self.mib, self._descriptor, self._ledger = request, request.mib, descriptor, ledger

    def release(self) -> None:
        """Give the memory back; twice is once."""
        if self._descriptor >= 0:
            _drop(self.request.path, self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def _drop(path: Path, descriptor: int) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    path.with_name("h" + path.name[1:]).unlink(missing_ok=True)
    os.close(descriptor)


def _reap(path: Path) -> bool:
    """Remove the file of a request whose owner is gone; whether it was."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
