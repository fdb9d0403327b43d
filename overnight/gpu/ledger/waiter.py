"""A waiter: one request in the queue for a card, from its entry to its grant."""

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

from overnight.errors import ServiceError
from overnight.gpu.ledger import entries, liveness
from overnight.gpu.ledger.entries import Request, View
from overnight.gpu.ledger.filesystem import unusable
from overnight.gpu.ledger.scheduler import Size, startable

POLL_S = 0.1
REFRESH_S = 2.0  # a full snapshot even when nothing has changed: other programs may have given memory back
PASSED_S = 1.0  # a request that could start and does not for so long is stopped; those behind it go on
GAP_S = (
    1.0  # a longer pause between two checks: this process was stopped, and the times of others mean nothing
)
NO_SECOND_TRY = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMFILE, errno.ENFILE)

OnWait = Callable[[list[Request], int], None]


class Waiter:
    """A request that waits, and what its owner knows of the others."""

    def __init__(
        self,
        folder: Path,
        budget_mib: int,
        size: Size,
        owner: dict[str, Any],
        overuse: Callable[[], int],
        smaller: Sequence[int],
        ticket: int | None,
    ) -> None:
        self.folder = folder
        self.budget_mib = budget_mib
        self.overuse = overuse
        self.smaller = sorted(smaller, reverse=True)
        self.owner = {"since": time.time(), "pid": os.getpid(), **owner}
        self.overuse_mib = 0
        self.reported = (
            False,
            False,
        )  # whether `on_wait` was called, and whether other programs were in the way
        self.seen: View | None = None
        self.seen_at = 0.0
        self.checked_at = 0.0
        self.token: socket | None = None
        self.late: dict[str, float] = {}  # others that could start, and since when
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ticket = now if ticket is None else min(ticket, now)  # one of before the last boot has no meaning
        self.request = Request(folder, False, ticket, size.mib, os.getpid(), size.exclusive)
        self.descriptor = self._enter()

    def _enter(self) -> int:
        """Create the request's file; its descriptor."""
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return entries.create(self.request, self.owner)
            except (
                FileExistsError
            ):  # another thread of this process, in the same nanosecond or with the same old ticket
                self._next_ticket()
            except FileNotFoundError:  # somebody removed the folder at this moment
                continue
            except OSError as error:
                raise unusable(self.folder, error) from None

    def _next_ticket(self) -> None:
        self.request = replace(self.request, ticket=self.request.ticket + 1)

    def take(self) -> bool:
        """Hold the memory if it is this request's turn; cheap as long as nothing has changed."""
        now = time.monotonic()
        if now - self.checked_at > GAP_S:
            self.late = {}
        self.checked_at = now
        if not self._may_have_changed(now):
            return False
        self.seen_at = now
        self.seen = entries.snapshot(self.folder, self.budget_mib)
        if all(r.path != self.request.path for r in self.seen.requests):
            return self.seen.consistent and self._enter_again()
        self.overuse_mib = self.overuse()
        if self._shrink():
            return False
        return self._my_turn(self.seen, now) and self._claim(now)

    def _may_have_changed(self, now: float) -> bool:
        """Whether a full snapshot is worth its cost.

        A late request may count as stopped without a change, a holder without a file may end.
        """
        if not self.seen or self.late or self.seen.has_orphans or now - self.seen_at >= REFRESH_S:
            return True
        return not self.seen.unchanged()

    def _claim(self, now: float) -> bool:
        """Hold what seems to be free; when another was faster, try again at once."""
        for _ in range(entries.TRIES):
            self.seen = entries.snapshot(self.folder, self.budget_mib)
            if not self._my_turn(self.seen, now):
                return False
            if self._link(self.seen):
                return True
        return False

    def _enter_again(self) -> bool:
        """Enter the queue anew with the old ticket: somebody removed the file, or a claim was given up."""
        self._release_token()
        descriptor = self.descriptor
        self.descriptor = -1
        os.close(descriptor)
        self.descriptor = self._enter()
        return False

    def _my_turn(self, view: View, now: float) -> bool:
        """Whether this request may start.

        Requests that could have started and did not for a second are passed over.
        """
        if not view.consistent:
            return False
        held = sizes([r for r in view.requests if r.holds])
        queue = {r.name: Size(r.mib, r.exclusive) for r in view.requests if not r.holds}
        mine = self.request.name

        def start(names: list[str]) -> set[str]:
            indices = startable(self.budget_mib, self.overuse_mib, held, [queue[name] for name in names])
            return {names[index] for index in indices}

        overdue = [name for name, since in self.late.items() if now - since > PASSED_S and name in queue]
        passed = {name for name in overdue if start([name])}
        first = start([name for name in queue if name not in passed])
        self.late = {name: self.late.get(name, now) for name in first | passed if name != mine}
        return mine in first

    def _link(self, view: View) -> bool:
        """The compare-and-swap: whether this request holds now.

        The token comes first, so that later claims see it.
        """
        grant = self.folder / f"g-{view.grants + 1}"
        if view.grants >= entries.MAX_GRANTS:
            raise ServiceError(f"{self.folder}/g-{view.grants} is none of the ledger's files: remove it")
        holding = replace(self.request, holds=True)
        self.seen = None
        entries.write_metadata(self.descriptor, self.request, self.owner)
        try:
            self.token = liveness.bind(self.folder, holding.name)
            os.link(self.request.path, grant)
        except OSError as error:  # another came first, or somebody removed the file, or the disk is full
            return self._claim_refused(error)
        if entries.youngest_grant(self.folder) != view.grants + 1:  # the view was an old one
            with suppress(OSError):
                grant.unlink()
            return self._release_token()
        try:
            self.request.path.rename(holding.path)
        except OSError:  # somebody removed the file; its number stays used, since others may have seen it
            return self._enter_again()
        if self._exceeds_budget():
            with suppress(OSError):
                holding.path.unlink()
            return self._enter_again()
        self.request = holding
        return True

    def _claim_refused(self, error: OSError) -> bool:
        """After a claim that the kernel refused; raises when another try would be refused, too."""
        self._release_token()
        if error.errno in NO_SECOND_TRY:
            raise unusable(self.folder, error) from None
        if (
            error.errno == errno.EADDRINUSE
        ):  # a fork of this process still has this name, though its files are gone
            self._next_ticket()
            return self._enter_again()
        return False

    def _release_token(self) -> bool:
        if self.token is not None:
            self.token.close()
        self.token = None
        return False

    def _exceeds_budget(self) -> bool:
        """Whether, with this claim, more is held than there is.

        That is so when files were removed and others came meanwhile.
        """
        view = entries.snapshot(self.folder, self.budget_mib)
        held = sizes([r for r in view.requests if r.holds])
        return not view.consistent or sum(s.weight(self.budget_mib) for s in held) > self.budget_mib

    def _shrink(self) -> bool:
        """Ask for less while other programs leave no room for the amount; whether it did."""
        most = self.budget_mib - self.overuse_mib
        less = next((mib for mib in self.smaller if mib <= most), None)
        if self.request.mib <= most or less is None:
            return False
        request = replace(self.request, mib=less)
        while entries.in_use(request):
            request = replace(request, ticket=request.ticket + 1)
        with suppress(OSError):
            self.request.path.rename(request.path)
            self.request = request
        self.seen = None
        return True

    def report(self, on_wait: OnWait) -> None:
        """Call `on_wait` with the requests ahead at the first wait, and when other programs come or go."""
        state = (True, self.overuse_mib > 0)
        if self.seen and state != self.reported:
            self.reported = state
            ahead = [r for r in self.seen.requests if r.holds or r.ticket < self.request.ticket]
            on_wait([r.with_owner() for r in ahead], self.overuse_mib)

    def leave(self) -> None:
        """Leave the queue."""
        self._release_token()
        if self.descriptor >= 0:
            os.close(self.descriptor)
        for request in (self.request, replace(self.request, holds=True)):
            with suppress(OSError):
                request.path.unlink()


def sizes(requests: Sequence[Request]) -> list[Size]:
    return [Size(r.mib, r.exclusive) for r in requests]
