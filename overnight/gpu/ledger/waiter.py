"""One place in the line for a card: stand in it, look, wait to be woken, take what is free when it is this request's turn."""

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

from overnight.errors import DiskFull, OvernightError, ServiceError
from overnight.gpu.ledger import entries, liveness
from overnight.gpu.ledger.deadlock import gives_way, knot, loose_end, sizes
from overnight.gpu.ledger.entries import Request, View
from overnight.gpu.ledger.notify import CLOSED, Bell
from overnight.gpu.ledger.scheduler import Size, startable

POLL_S = 0.1
LOOK_S = 2.0  # a whole look even when nothing seems to have changed: for what other programs gave back, and news that nobody told
WAKE_S = 0.5  # the longest sleep, so that who is asked to stop hears of it
BEHIND_S, STEP_S, MOST_S = (
    0.002,
    0.0003,
    0.02,
)  # who is not first in line leaves the others time to take what they may
PASSED_S = 1.0  # a request that could start and does not is stopped; those behind it go on
GAP_S = 1.0  # between two looks; after a longer one this process was stopped itself, and knows nothing of others who may have been, too

OnWait = Callable[[list[Request], int], None]


class Place:
    """A place in line: a request that waits, and what its owner has seen of the others."""

    def __init__(
        self,
        folder: Path,
        budget_mib: int,
        size: Size,
        who: dict[str, Any],
        taken: Callable[[], int],
        smaller: Sequence[int],
        ticket: int | None,
        what: str,
    ) -> None:
        self.folder, self.budget_mib, self.what = folder, budget_mib, what
        self.taken, self.smaller = taken, sorted(smaller, reverse=True)
        self.who = {"since": time.time(), "pid": os.getpid(), **who}
        self.taken_mib, self.told = 0, (False, False)
        self.seen: View | None = None
        self.looked = self.awake = 0.0
        self.bell = Bell(folder)
        self.tied: tuple[frozenset[str], float] = frozenset(), 0.0
        self.witness: socket | None = None
        self.late: dict[str, float] = {}  # others that could start, and since when
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ticket = (
            now if ticket is None else min(ticket, now)
        )  # one of before the last boot means nothing any more
        self.request = Request(folder, False, ticket, size.mib, os.getpid(), size.exclusive)
        self.descriptor = self._stand()

    def _stand(self) -> int:
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return entries.create(self.request, self.who)
            except (
                FileExistsError
            ):  # another thread of this process came in the same nanosecond, or with the same old ticket
                self.request = replace(self.request, ticket=self.request.ticket + 1)
            except FileNotFoundError:  # somebody removed the folder at this moment
                continue
            except OSError as error:
                raise unusable(self.folder, error) from None

    def take(self) -> bool:
        """Hold the memory if it is this request's turn; cheap as long as nothing has changed."""
        now = time.monotonic()
        if now - self.awake > GAP_S:
            self.late = {}
        self.awake = now
        if not self._news(now):
            return False
        self.bell.heard()  # what is seen from here on needs no bell
        self.looked, self.seen = now, entries.look(self.folder, self.budget_mib)
        if all(r.path != self.request.path for r in self.seen.requests):
            return self.seen.sure and self._again()
        self.taken_mib = self.taken()
        if self._shrink():
            return False
        return self._my_turn(self.seen, now) and self._claim(now)

    def wait(self) -> None:
        """Until something has happened in line, or it is time to look."""
        if self.bell.arm():
            self.seen = None  # what happened before it was watched was told to nobody
        else:
            patient = self.bell.rings and self.seen and self.seen.sure and not self._expects(time.monotonic())
            self.bell.wait(WAKE_S if patient else POLL_S)

    def _expects(self, now: float) -> bool:
        """Whether others could start, and may yet be found to be stopped; or hold without a file, so that no bell tells of their end."""
        return (self.seen is not None and self.seen.lost) or any(
            now - since <= PASSED_S + POLL_S for since in self.late.values()
        )

    def _news(self, now: float) -> bool:
        """Whether it is worth to look at everything."""
        if (
            not self.seen
            or not self.seen.sure
            or now - self.looked >= (POLL_S if self._expects(now) else LOOK_S)
        ):
            return True
        if not self.bell.rings:
            return not self.seen.unchanged()
        heard = self.bell.heard()
        if heard is None or not any(map(self._before, heard)):
            return heard is None
        if behind := sum(not r.holds and r.order < self.request.order for r in self.seen.requests):
            time.sleep(min(BEHIND_S + STEP_S * behind, MOST_S))
            heard = _both(heard, self.bell.heard())
        closed = [name for name, what in heard.items() if what == CLOSED and self._before(name)]
        entries.settle(self.folder, closed)
        return bool(closed) or self._could()

    def _before(self, name: str) -> bool:
        """Whether a file is of somebody whose end could be this request's beginning, or its own."""
        request = Request.parse(self.folder, name)
        return request is not None and (request.holds or request.ticket <= self.request.ticket)

    def _could(self) -> bool:
        """Whether, by their names alone, this request could start, or one before it."""
        found = entries.named(self.folder)
        queue = sorted(
            (r for r in found if not r.holds and r.order <= self.request.order), key=lambda r: r.order
        )
        held = sizes([r for r in found if r.holds])
        missing = self.request not in queue
        return missing or bool(startable(self.budget_mib, self.taken_mib, held, sizes(queue)))

    def _claim(self, now: float) -> bool:
        """Hold what seems to be free; who is outrun by another looks again at once."""
        for _ in range(entries.TRIES):
            self.seen = entries.look(self.folder, self.budget_mib)
            if not self._my_turn(self.seen, now):
                return False
            if self._link(self.seen):
                return True
        return False

    def _again(self) -> bool:
        """Stand in line anew, with the old ticket: somebody removed the file, or a claim was given up."""
        self._unbind()
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)
        self.descriptor = self._stand()
        return False

    def _my_turn(self, view: View, now: float) -> bool:
        """Whether this request may start, those passed over who could have and did not for a second."""
        if not view.sure:
            return False
        held = sizes([r for r in view.requests if r.holds])
        queue = {r.name: Size(r.mib, r.exclusive) for r in view.requests if not r.holds}
        mine = self.request.name

        def start(names: list[str]) -> set[str]:
            places = startable(self.budget_mib, self.taken_mib, held, [queue[name] for name in names])
            return {names[place] for place in places}

        passed = {
            name
            for name, since in self.late.items()
            if now - since > PASSED_S and name in queue and start([name])
        }
        first = start([name for name in queue if name not in passed])
        if not first and not self.taken_mib and (loose := self._tied(view, now)):
            first = {loose.name}
        self.late = {name: self.late.get(name, now) for name in first | passed if name != mine}
        return mine in first

    def _tied(self, view: View, now: float) -> Request | None:
        """Who may start although it is behind others, since all who hold wait for more; BadInput when that is nobody, to the youngest."""
        tied = knot(self.budget_mib, view.requests)
        if tied and (loose := loose_end(self.budget_mib, view.requests, tied)):
            return loose
        names = frozenset(r.name for r in tied)
        if not tied or names != self.tied[0]:
            self.tied = names, now
        elif (
            tied[-1] == self.request and now - self.tied[1] > PASSED_S
        ):  # it was so for a while, and not for a moment of somebody's end
            raise gives_way(self.request, tied, self.what)
        return None

    def _link(self, view: View) -> bool:
        """The compare-and-swap. True: this request holds. The witness comes first, so that whoever claims later knows of it."""
        grant = self.folder / f"g-{view.grants + 1}"
        if view.grants >= entries.MOST:
            raise ServiceError(f"{self.folder}/g-{view.grants} is none of the ledger's files: remove it")
        holds, self.seen = replace(self.request, holds=True), None
        entries.tell(self.descriptor, self.request, self.who)
        try:
            self.witness = liveness.bind(self.folder, holds.name)
            os.link(self.request.path, grant)
        except (
            OSError
        ) as error:  # another came first, or somebody removed the file, or the disk is full: look again
            return self._outrun(error)
        if entries.youngest(self.folder) != view.grants + 1:  # the view was an old one
            with suppress(OSError):
                grant.unlink()
            return self._unbind()
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

    def _outrun(self, error: OSError) -> bool:
        """After a claim that the kernel refused; raises what no second look would help against."""
        self._unbind()
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMFILE, errno.ENFILE):
            raise unusable(self.folder, error) from None
        if (
            error.errno == errno.EADDRINUSE
        ):  # what this process forked still holds under this name, though its files are gone
            self.request = replace(self.request, ticket=self.request.ticket + 1)
            return self._again()
        return False

    def _unbind(self) -> bool:
        if self.witness is not None:
            self.witness.close()
        self.witness = None
        return False

    def _too_much(self) -> bool:
        """Whether, with this claim, more is held than there is: files were removed, and others came, since it was seen to be free."""
        budget, view = self.budget_mib, entries.look(self.folder, self.budget_mib)
        return (
            not view.sure
            or sum(Size(r.mib, r.exclusive).weight(budget) for r in view.requests if r.holds) > budget
        )

    def _shrink(self) -> bool:
        """Ask for less while programs outside leave no room for what was asked; whether that was so."""
        most = self.budget_mib - self.taken_mib
        less = next((mib for mib in self.smaller if mib <= most), None)
        if self.request.mib <= most or less is None:
            return False
        asks = replace(self.request, mib=less)
        while entries.in_use(asks):
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
        self._unbind()
        if self.descriptor >= 0:
            os.close(self.descriptor)
        for request in (self.request, replace(self.request, holds=True)):
            with suppress(OSError):
                request.path.unlink()


def _both(first: dict[str, int], then: dict[str, int] | None) -> dict[str, int]:
    """All that was heard; what could be anything is told once more by the bell, which is silent from then on."""
    return {name: first.get(name, 0) | (then or {}).get(name, 0) for name in (*first, *(then or ()))}


def unusable(folder: Path, error: OSError) -> OvernightError:
    """Why no ledger can be kept in a folder, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"{folder}: the disk is full, so the ledger of the card cannot take another request; free some room"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ServiceError(
            f"{folder}: no more leases, this process has too many open files; hold fewer at once, or raise `ulimit -n`"
        )
    return ServiceError(
        f"{folder}: the ledger of the card cannot be kept there ({error.strerror}); set OVERNIGHT_CARD_DIR to another folder"
    )
