"""Who holds how much of a card: kernel locks weighted in MiB, in the order they came, without a server and without a lock on the whole.

Files of a card's folder:

    q-<ticket>-<mib>-<pid>[-x]   a request that waits; h-... the same when it holds; x: it lets nobody run beside it
    g-<n>                        the n-th grant: a hard link to the file of the request that got it

The owner of a request keeps its file locked (flock) as long as it lives. The kernel drops the lock with the last descriptor, so what a
killed process held is free at once, while a grandchild that was forked with the descriptor still counts. Everything that decides lies in
names and locks, so it survives a full disk and torn content: the JSON inside only tells people who it is.

A grant is one atomic step, a compare-and-swap: whoever finds that it is its turn, on a view with n grants, links its file as g-<n+1>. If
another came first, that name exists, and it looks again. Nobody ever waits for somebody else's critical section, so a process that is stopped
(SIGSTOP, a debugger, a suspended machine) at any instruction holds up no one. The youngest g- is never removed: an old view cannot use its
number again. Tickets are nanoseconds since boot, which no change of a clock touches; the next boot starts without locks.

Somebody may remove or rename files, or the whole folder. So a claim is shown to the kernel before it is made (witness.py), and looked at once
more after it: of two that claim the same memory, the later one finds the other, and gives way. A holder without a file counts by its witness.
Who waits is woken by the kernel (bell.py).
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from socket import socket
from typing import Any, Self, TypeVar

from overnight.errors import DoesNotFit, Stopped
from overnight.gpu.ledger import entries
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.scheduler import Size
from overnight.gpu.ledger.waiter import OnWait, Place, unusable

T = TypeVar("T")


class Ledger:
    """The requests on one card's budget; `what` names its unit in messages."""

    def __init__(self, folder: Path, budget_mib: int, what: str = "MiB of the card") -> None:
        self.folder, self.budget_mib, self.what = (
            Path(os.path.realpath(folder)),
            budget_mib,
            what,
        )  # as /proc names its files
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(folder, error) from None

    def acquire(
        self,
        mib: int,
        who: dict[str, Any] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_wait: OnWait = lambda _ahead, _taken: None,
        exclusive: bool = False,
        taken: Callable[[], int] = lambda: 0,
        smaller: Sequence[int] = (),
        ticket: int | None = None,
    ) -> "Grant":
        """Wait in line until `mib` are free, then hold them. Raises DoesNotFit at once when they never can be, Stopped when asked to.

        Raises BadInput when all who hold wait for more, nothing is left for any of them, and this is the youngest of their requests
        (`who["holding"]`: the tickets that are held until this one is granted).

        on_wait: called when the grant is not immediate, with those who hold or stand ahead and what other programs take (MiB), and once
        more when these begin or cease to take something. taken: MiB of the budget that programs use which know nothing of it. smaller:
        amounts to be content with, the largest first, while those programs leave no room for more even on an otherwise free card.
        ticket: of an earlier grant of its own that was given back; it then stands in line where it stood before.
        """
        if not 0 < mib <= self.budget_mib:
            raise DoesNotFit(f"asked for {mib} {self.what}, and the whole budget is {self.budget_mib}")
        place = Place(
            self.folder, self.budget_mib, Size(mib, exclusive), who or {}, taken, smaller, ticket, self.what
        )
        try:
            while not self._done(place.take):
                if should_stop():
                    raise Stopped(f"stopped while waiting for {mib} {self.what}")
                place.say(on_wait)
                self._done(place.wait)
            return Grant(place.request, place.descriptor, place.witness, place.who)
        except BaseException:
            place.leave()
            raise
        finally:
            place.bell.close()

    def _done(self, act: Callable[[], T]) -> T:
        """Do it; what the file system refuses is said in words."""
        try:
            return act()
        except OSError as error:
            raise unusable(self.folder, error) from None

    def requests(self) -> list[Request]:
        """Every live request, with what it says of itself: holders first, then the queue in its order."""
        return [r.read() for r in entries.look(self.folder, self.budget_mib).requests]

    def held_mib(self) -> int:
        """The sum of all grants."""
        return sum(r.mib for r in entries.look(self.folder, self.budget_mib).requests if r.holds)


class Grant:
    """Held memory; released by `release`, by leaving the `with` block, or by the kernel when the process ends."""

    def __init__(
        self, request: Request, descriptor: int, witness: socket | None, who: dict[str, Any]
    ) -> None:
        self.request, self.mib, self.who = request, request.mib, who
        self._descriptor, self._witness, self._owner = descriptor, witness, os.getpid()
        self._mutex = os.getpid(), threading.RLock()

    @property
    def ticket(self) -> int:
        """Its place in the order of all requests, for one that gives back and asks again (`acquire(ticket=)`)."""
        return self.request.ticket

    def tell(self, **facts: Any) -> None:
        """Say something of the holder that others may show: use_mib, peak_mib, step ... Nothing after the release."""
        with self._alone():
            self.who = {**self.who, **facts}
            if self._descriptor >= 0:
                entries.tell(self._descriptor, self.request, self.who)

    def release(self) -> None:
        """Give the memory back; twice is once. While forked copies of this process live, it stays theirs."""
        with self._alone():  # a number that is closed may be that of another file the moment after
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor < 0:
                return
            if self._witness is not None:  # before the file, which rings the bell
                self._witness.close()
            os.close(descriptor)
        with suppress(OSError):
            if os.getpid() == self._owner and not entries.locked(self.request.path):
                self.request.path.unlink()

    def _alone(self) -> threading.RLock:
        """Of all threads, only this one. A forked process has a lock of its own: nobody there would give this one back."""
        if self._mutex[0] != os.getpid():
            self._mutex = os.getpid(), threading.RLock()
        return self._mutex[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
