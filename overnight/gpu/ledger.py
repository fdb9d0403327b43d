"""Who holds how much of a card: kernel locks weighted in MiB, in the order they came, without a server and without a lock on the whole.

Files of a card's folder:

    q-<ticket>-<mib>-<pid>[-x]   a request that waits; h-... the same when it holds; x: it lets nobody run beside it
    g-<n>                        the n-th grant: a hard link to the file of the request that got it

The owner of a request keeps its file locked (flock) as long as it lives. The kernel drops the lock with the last descriptor, so what a
killed process held is free at once, while a grandchild that was forked with the descriptor still counts. Everything that decides lies in
names and locks, so it survives a full disk and torn content: the JSON inside only tells people who it is.

A grant is one atomic step, a compare-and-swap: whoever finds that it is its turn, on a view with n grants, links its file as g-<n+1>. If
another came first, that name exists, and it looks again. Having claimed, it looks once more: when somebody removed files of the folder while
it was stopped, its number may be an old one, and then a claim beyond the budget is given up. Nobody ever waits for somebody else's critical section, so a process that is
stopped (SIGSTOP, a debugger, a suspended machine) at any instruction holds up no one. The youngest g- is never removed: an old view
cannot use its number again. Tickets are nanoseconds since boot, which no change of a clock touches; the next boot starts without locks.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from overnight.errors import DiskFull, DoesNotFit, OvernightError, ServiceError, Stopped
from overnight.gpu import requests
from overnight.gpu.policy import Size, startable
from overnight.gpu.requests import Request, View

POLL_S = 0.1
LOOK_S = 2.0  # a whole look even when nothing seems to have changed: for those ahead who died, and what other programs gave back
PASSED_S = 1.0  # a request that could start and does not is stopped; those behind it go on
GAP_S = 1.0  # between two looks; after a longer one this process was stopped itself, and knows nothing of others who may have been, too

OnWait = Callable[[list[Request], int], None]


class Ledger:
    """The requests on one card's budget; `what` names its unit in messages."""

    def __init__(self, folder: Path, budget_mib: int, what: str = "MiB of the card") -> None:
        self.folder, self.budget_mib, self.what = folder.absolute(), budget_mib, what
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

        on_wait: called when the grant is not immediate, with those who hold or stand ahead and what other programs take (MiB), and once
        more when these begin or cease to take something. taken: MiB of the budget that programs use which know nothing of it. smaller:
        amounts to be content with, the largest first, while those programs leave no room for more even on an otherwise free card.
        ticket: of an earlier grant of its own that was given back; it then stands in line where it stood before.
        """
        if not 0 < mib <= self.budget_mib:
            raise DoesNotFit(f"asked for {mib} {self.what}, and the whole budget is {self.budget_mib}")
        place = _Place(self, Size(mib, exclusive), who or {}, taken, smaller, ticket)
        try:
            while not place.take():
                if should_stop():
                    raise Stopped(f"stopped while waiting for {mib} {self.what}")
                place.say(on_wait)
                time.sleep(POLL_S)
            return Grant(place.request, place.descriptor, place.who)
        except BaseException:
            place.leave()
            raise

    def requests(self) -> list[Request]:
        """Every live request, with what it says of itself: holders first, then the queue in its order."""
        return [r.read() for r in requests.look(self.folder, self.budget_mib).requests]

    def held_mib(self) -> int:
        """The sum of all grants."""
        return sum(r.mib for r in requests.look(self.folder, self.budget_mib).requests if r.holds)


class _Place:
    """A place in line: a request that waits, and what its owner has seen of the others."""

    def __init__(
        self, ledger: Ledger, size: Size, who: dict[str, Any], taken: Callable[[], int], smaller: Sequence[int], ticket: int | None
    ) -> None:
        self.ledger, self.taken, self.smaller = ledger, taken, sorted(smaller, reverse=True)
        self.who = {"since": time.time(), "pid": os.getpid(), **who}
        self.taken_mib, self.told = 0, (False, False)
        self.seen: View | None = None
        self.looked = 0.0
        self.late: dict[str, float] = {}  # others that could start, and since when
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ticket = now if ticket is None else min(ticket, now)  # one of before the last boot means nothing any more
        self.request = Request(ledger.folder, False, ticket, size.mib, os.getpid(), size.exclusive)
        self.descriptor = self._stand()

    def _stand(self) -> int:
        while True:
            try:
                self.ledger.folder.mkdir(parents=True, exist_ok=True)
                return requests.create(self.request, self.who)
            except FileExistsError:  # another thread of this process came in the same nanosecond, or with the same old ticket
                self.request = replace(self.request, ticket=self.request.ticket + 1)
            except FileNotFoundError:  # somebody removed the folder at this moment
                continue
            except OSError as error:
                raise unusable(self.ledger.folder, error) from None

    def take(self) -> bool:
        """Hold the memory if it is this request's turn; cheap as long as nothing has changed."""
        now = time.monotonic()
        if now - self.looked > GAP_S:
            self.late = {}
        if self.seen and not self.late and now - self.looked < LOOK_S and self.seen.unchanged():
            return False
        self.looked, self.seen = now, requests.look(self.ledger.folder, self.ledger.budget_mib)
        if all(r.path != self.request.path for r in self.seen.requests):
            return self.seen.sure and self._again()
        self.taken_mib = self.taken()
        if self._shrink():
            return False
        return self._my_turn(self.seen, now) and self._claim(now)

    def _claim(self, now: float) -> bool:
        """Hold what seems to be free; who is outrun by another looks again at once."""
        for _ in range(requests.TRIES):
            if not self._my_turn(view := self._look(), now):
                return False
            if self._link(view):
                return True
        return False

    def _look(self) -> View:
        """With holders whose files were removed, too: that costs more, so only who is about to claim does it."""
        self.seen = requests.look(self.ledger.folder, self.ledger.budget_mib, os.fstat(self.descriptor).st_ino)
        return self.seen

    def _again(self) -> bool:
        """Stand in line anew, with the old ticket: somebody removed the file, or a claim was given up."""
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)
        self.descriptor = self._stand()
        return False

    def _my_turn(self, view: View, now: float) -> bool:
        """Whether this request may start, those passed over who could have and did not for a second."""
        if not view.sure:
            return False
        held = [Size(r.mib, r.exclusive) for r in view.requests if r.holds]
        queue = {r.path.name: Size(r.mib, r.exclusive) for r in view.requests if not r.holds}
        mine = self.request.path.name

        def start(names: list[str]) -> set[str]:
            places = startable(self.ledger.budget_mib, self.taken_mib, held, [queue[name] for name in names])
            return {names[place] for place in places}

        passed = {name for name, since in self.late.items() if now - since > PASSED_S and name in queue and start([name])}
        first = start([name for name in queue if name not in passed])
        self.late = {name: self.late.get(name, now) for name in first | passed if name != mine}
        return mine in first

    def _link(self, view: View) -> bool:
        """The compare-and-swap. True: this request holds."""
        grant = self.ledger.folder / f"g-{view.grants + 1}"
        holds, self.seen = replace(self.request, holds=True), None
        try:
            os.link(self.request.path, grant)
        except OSError as error:  # another came first, or somebody removed the file, or the disk is full: look again
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise unusable(self.ledger.folder, error) from None
            return False
        if requests.youngest(self.ledger.folder) != view.grants + 1:  # the view was an old one
            with suppress(OSError):
                grant.unlink()
            return False
        try:
            self.request.path.rename(holds.path)
        except OSError:  # somebody removed the file; its number stays used, since others may have seen it
            return self._again()
        if self._too_much():
            with suppress(OSError):
                holds.path.unlink()
            return self._again()
        self.request = holds
        return True

    def _too_much(self) -> bool:
        """Whether, with this claim, more is held than there is."""
        budget, view = self.ledger.budget_mib, self._look()
        return not view.sure or sum(Size(r.mib, r.exclusive).weight(budget) for r in view.requests if r.holds) > budget

    def _shrink(self) -> bool:
        """Ask for less while programs outside leave no room for what was asked; whether that was so."""
        most = self.ledger.budget_mib - self.taken_mib
        less = next((mib for mib in self.smaller if mib <= most), None)
        if self.request.mib <= most or less is None:
            return False
        asks = replace(self.request, mib=less)
        while requests.in_use(asks):
            asks = replace(asks, ticket=asks.ticket + 1)
        with suppress(OSError):
            self.request.path.rename(asks.path)
            self.request = asks
        self.seen = None
        return True

    def say(self, on_wait: OnWait) -> None:
        """Tell who is in the way, when that is news."""
        told = (True, self.taken_mib > 0)
        if self.seen and told != self.told:
            self.told = told
            ahead = [r for r in self.seen.requests if r.holds or r.ticket < self.request.ticket]
            on_wait([r.read() for r in ahead], self.taken_mib)

    def leave(self) -> None:
        """Out of the line."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        for request in (self.request, replace(self.request, holds=True)):
            with suppress(OSError):
                request.path.unlink()


class Grant:
    """Held memory; released by `release`, by leaving the `with` block, or by the kernel when the process ends."""

    def __init__(self, request: Request, descriptor: int, who: dict[str, Any]) -> None:
        self.request, self.mib, self.who = request, request.mib, who
        self._descriptor, self._owner = descriptor, os.getpid()

    @property
    def ticket(self) -> int:
        """Its place in the order of all requests, for one that gives back and asks again (`acquire(ticket=)`)."""
        return self.request.ticket

    def tell(self, **facts: Any) -> None:
        """Say something of the holder that others may show: use_mib, peak_mib, step ..."""
        self.who = {**self.who, **facts}
        if self._descriptor >= 0:
            requests.tell(self._descriptor, {"mib": self.mib, "exclusive": self.request.exclusive, **self.who})

    def release(self) -> None:
        """Give the memory back; twice is once. While forked copies of this process live, it stays theirs."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        with suppress(OSError):
            if os.getpid() == self._owner and not requests.locked(self.request.path):
                self.request.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def unusable(folder: Path, error: OSError) -> OvernightError:
    """Why no ledger can be kept in a folder, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{folder}: the disk is full, so the ledger of the card cannot take another request; free some room")
    return ServiceError(
        f"{folder}: the ledger of the card cannot be kept there ({error.strerror}); set OVERNIGHT_CARD_DIR to another folder"
    )
