"""A waiter: one request in the queue for a card, from its entry to its grant."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from overnight.gpu.ledger import entries
from overnight.gpu.ledger.entries import Request, View
from overnight.gpu.ledger.scheduler import Size, startable

POLL_S = 0.1
REFRESH_S = 2.0  # a full snapshot though the files are the same: other programs may have given memory back
REENTER_S = 1.0  # a holder looks for its file so often, and enters again when it is gone
PASSED_S = 1.0  # a request that could start and does not for so long is stopped; those behind it go on
GAP_S = 1.0  # a longer pause between two looks: this process was stopped, and what it knows of others is old

OnWait = Callable[[list[Request], int], None]


class Waiter:
    def __init__(
        self,
        folder: Path,
        budget_mib: int,
        size: Size,
        owner: dict[str, Any],
        overuse: Callable[[], int] = lambda: 0,
        smaller: Sequence[int] = (),
        ticket: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.budget_mib = budget_mib
        self.owner = {"since": time.time(), "pid": os.getpid(), **owner}
        self.overuse_mib = 0
        self._overuse = overuse
        self._smaller = sorted(smaller, reverse=True)
        self._clock = clock
        self._view: View | None = None
        self._viewed_at = 0.0
        self._looked_at = 0.0
        self._not_before = 0.0
        self._late = dict[str, float]()  # others that could start, and since when
        self._reported: object = None  # tickets ahead, and whether other programs were, at the last `on_wait`
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ticket = now if ticket is None else min(ticket, now)  # one of before the last boot has no meaning
        self.request = Request(folder, False, ticket, size.mib, os.getpid(), size.exclusive)
        self.descriptor = self._enter()

    def _enter(self) -> int:
        while True:
            try:
                return entries.create(self.request, self.owner)
            except FileExistsError:  # another thread of this process has that ticket
                self.request = replace(self.request, ticket=self.request.ticket + 1)
            except FileNotFoundError:
                self.folder.mkdir(parents=True, exist_ok=True)

    def take(self) -> bool:
        """Hold the memory if it is this request's turn; cheap as long as nothing has changed."""
        now = self._clock()
        if now - self._looked_at > GAP_S:
            self._late = {}
        self._looked_at = now
        if now < self._not_before or self._is_unchanged(now):
            return False
        self.overuse_mib = self._overuse()
        self._viewed_at = now
        while True:
            last = self._view.grants if self._view else 0
            self._view = entries.snapshot(self.folder)
            if self.request not in self._view.requests:
                self._enter_again()
            if self.request not in self._view.requests or self._view.grants < last:
                self._not_before = now + 2 * REENTER_S  # files were removed: holders may miss theirs, too
                return False
            if self._shrink():
                continue
            if not self._my_turn(self._view, now):
                return False
            try:
                if entries.grant(self.request, self._view.grants + 1):
                    return True
            except FileNotFoundError:  # somebody removed the file: the next look enters again
                return False

    def _is_unchanged(self, now: float) -> bool:
        return (
            self._view is not None
            and not self._late
            and now - self._viewed_at < REFRESH_S
            and self._view.unchanged()
        )

    def _enter_again(self) -> None:
        os.close(self.descriptor)
        self.descriptor = -1
        self.descriptor = self._enter()

    def _my_turn(self, view: View, now: float) -> bool:
        """Whether this request may start; requests that could and do not for a second are passed over."""
        held = [r.size for r in view.requests if r.holds]
        queue = {r.name: r.size for r in view.requests if not r.holds}

        def may_start(names: list[str]) -> set[str]:
            indices = startable(self.budget_mib, self.overuse_mib, held, [queue[name] for name in names])
            return {names[index] for index in indices}

        overdue = [name for name, since in self._late.items() if now - since > PASSED_S and name in queue]
        passed = {name for name in overdue if may_start([name])}
        first = may_start([name for name in queue if name not in passed])
        self._late = {name: self._late.get(name, now) for name in first | passed}
        self._late.pop(self.request.name, None)
        return self.request.name in first

    def _shrink(self) -> bool:
        """Ask for less while other programs leave no room for the amount; whether it did."""
        most = self.budget_mib - self.overuse_mib
        less = next((mib for mib in self._smaller if mib <= most), None)
        if self.request.mib <= most or less is None:
            return False
        request = replace(self.request, mib=less)
        with suppress(OSError):  # somebody removed the file: the next look enters again
            self.request.path.rename(request.path)
            self.request = request
        return True

    def report(self, on_wait: OnWait) -> None:
        """Call `on_wait` with the requests ahead first, and when they or other programs change."""
        if not self._view:
            return
        ahead = [r for r in self._view.requests if r.holds or r.ticket < self.request.ticket]
        state = ([r.ticket for r in ahead], self.overuse_mib > 0)
        if state != self._reported:
            self._reported = state
            on_wait([r.with_owner() for r in ahead], self.overuse_mib)

    def leave(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        entries.remove(self.request.path)
