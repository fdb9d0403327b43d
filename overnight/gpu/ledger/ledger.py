"""The queue for a card: kernel locks weighted in MiB, without a server.

FIFO, with backfill that delays no earlier request.

Files of a card's folder:

    q-<ticket>-<mib>-<pid>[-x]   a request; x: it runs alone
    g-<n>                        the n-th grant: a hard link to the file of the request that got it

The owner of a request keeps its file locked (flock) as long as it lives. The kernel drops the lock with the
last descriptor, so what a killed process held is free at once, while a grandchild that was forked with the
descriptor still counts. All decisions rest on names, links and locks, so they survive a full disk and torn
content: the JSON in the files only describes the owner to people.

A grant is one atomic step, a compare-and-swap: a process that finds its turn on a view with n grants links
its file as g-<n+1>. If another came first, that name exists, and it looks again; if that one has ended and
its link was removed, there is a younger one, since the youngest g- is never removed. No process waits for
another's critical section, so one that is stopped (SIGSTOP, a debugger, a suspended machine) at any
instruction delays no other. Tickets are nanoseconds since boot, which no change of a clock touches; the next
boot starts without locks.

A waiter looks ten times a second, in its first half second more often. A holder whose file somebody removed
enters it again (`Grant.restore`); a waiter whose file was removed gives the holders time for that.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from overnight.errors import DoesNotFit, Stopped
from overnight.gpu.ledger import entries
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.filesystem import unusable
from overnight.gpu.ledger.scheduler import Size
from overnight.gpu.ledger.waiter import POLL_S, OnWait, Waiter
from overnight.locks import same_file


class Ledger:
    """The requests on one card's budget; `unit` names what is granted in messages."""

    def __init__(self, folder: Path, budget_mib: int, unit: str = "MiB of the card") -> None:
        self.folder = folder
        self.budget_mib = budget_mib
        self.unit = unit
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(folder, error) from None

    def acquire(
        self,
        mib: int,
        owner: dict[str, Any] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_wait: OnWait = lambda _ahead, _overuse: None,
        exclusive: bool = False,
        overuse: Callable[[], int] = lambda: 0,
        smaller: Sequence[int] = (),
        ticket: int | None = None,
    ) -> "Grant":
        """Wait in the queue until `mib` are free, then hold them.

        owner: metadata for people. on_wait: called when the grant is not immediate, with the requests that
        hold or stand ahead and the overuse (MiB); once more when other programs begin or cease to use a part
        of the budget. overuse: MiB of the budget that other programs use. smaller: amounts (MiB) to accept
        while these leave no room for more. ticket: of an earlier grant of its own that was given back, whose
        place it takes.

        Raises DoesNotFit when the budget is smaller, Stopped when `should_stop` says so.
        """
        if not 0 < mib <= self.budget_mib:
            raise DoesNotFit(f"asked for {mib} {self.unit}, and the whole budget is {self.budget_mib}")
        size = Size(mib, exclusive)
        try:
            waiter = Waiter(self.folder, self.budget_mib, size, owner or {}, overuse, smaller, ticket)
        except OSError as error:
            raise unusable(self.folder, error) from None
        began = time.monotonic()
        try:
            while not self._take(waiter):
                if should_stop():
                    raise Stopped(f"stopped while waiting for {mib} {self.unit}")
                waiter.report(on_wait)
                time.sleep(
                    min(POLL_S, (time.monotonic() - began) / 5)
                )  # a short wait ends without much delay
            return Grant(waiter.request, waiter.descriptor, waiter.owner)
        except BaseException:
            waiter.leave()
            raise

    def _take(self, waiter: Waiter) -> bool:
        try:
            return waiter.take()
        except OSError as error:
            raise unusable(self.folder, error) from None

    def requests(self) -> list[Request]:
        """Holders first, then the queue in its order."""
        return [r.with_owner() for r in entries.snapshot(self.folder).requests]

    def held_mib(self) -> int:
        return sum(r.mib for r in entries.snapshot(self.folder).requests if r.holds)


class Grant:
    """Held memory, until `release`, the end of the `with` block, or that of the process."""

    def __init__(self, request: Request, descriptor: int, owner: dict[str, Any]) -> None:
        self.request = replace(request, holds=True)
        self.mib = request.mib
        self.owner = owner
        self._descriptor = descriptor
        self._pid = os.getpid()
        self._mutex = threading.Lock()

    @property
    def ticket(self) -> int:
        return self.request.ticket

    def update(self, **values: Any) -> None:
        with self._lock():
            self.owner = {**self.owner, **values}
            if self._descriptor >= 0:
                entries.write_owner(self._descriptor, self.owner)

    def restore(self) -> bool:
        """Enter the ledger again where somebody removed this grant's files; whether that was so.

        Raises OSError when it cannot.
        """
        with self._lock():
            if self._descriptor < 0 or self._is_entered():
                return False
            if not same_file(self._descriptor, self.request.path):
                self.request.folder.mkdir(parents=True, exist_ok=True)
                descriptor = entries.create(self.request, self.owner)
                os.close(self._descriptor)
                self._descriptor = descriptor
            while not entries.grant(self.request, entries.snapshot(self.request.folder).grants + 1):
                pass  # another grant took the number
        return True

    def _is_entered(self) -> bool:
        is_linked = os.fstat(self._descriptor).st_nlink > 1
        return is_linked and same_file(self._descriptor, self.request.path)

    def release(self) -> None:
        """A second call has no effect. While forks of this process live, the memory stays theirs."""
        with self._lock():  # a closed descriptor's number may be that of another file the moment after
            descriptor = self._descriptor
            self._descriptor = -1
            if descriptor < 0:
                return
            os.close(descriptor)
        with suppress(OSError):
            if os.getpid() == self._pid and not entries.locked(self.request.path):
                self.request.path.unlink()

    def _lock(self) -> AbstractContextManager[Any]:
        """Against other threads; a forked process has none of them, and the copied lock may never be free."""
        return self._mutex if os.getpid() == self._pid else nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
