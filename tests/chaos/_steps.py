"""Processes that go on by one system call at a time, when they are ordered to: every interleaving of them can be
played, again and again.

A process pauses before every line of the ledger that may call the kernel; what lies between is its own
business. A process that is not ordered to go on is one that was stopped (SIGSTOP); one that is killed there was
killed at that very instruction.
"""

import itertools
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight.gpu.ledger import entries, ledger, liveness, waiter

CALLS = re.compile(
    r"\bos\.|fcntl|\.unlink\(|\.rename\(|\.stat\(|mkdir|exists\(|lstat\(|_remove\(|time\.sleep|\.bind\(|token\.close"
)
FILES = {
    module.__file__: Path(str(module.__file__)).read_text().splitlines()
    for module in (ledger, waiter, entries, liveness)
}
PAUSES = {
    (name, number)
    for name, lines in FILES.items()
    for number, line in enumerate(lines, 1)
    if CALLS.search(line)
}
PAUSES -= {
    (name, number)
    for name, number in PAUSES
    if name == liveness.__file__ and "os.read(" in FILES[name][number - 1]
}
BUDGET = 12
QUICK = {"POLL_S": 0.0}
LONG = 400  # pauses: enough to look a few times, claim and hold
PATIENCE_S = 60  # for all of them to finish, once nobody is held back


@dataclass
class Player:
    """One process: it takes and gives back each of its amounts, pausing on the way."""

    pid: int
    orders: int
    reports: int
    holds: int = 0
    done: bool = False

    @classmethod
    def start(
        cls, folder: Path, amounts: Sequence[int], settings: dict[str, float], again: bool = False
    ) -> "Player":
        go_read, go_write = os.pipe()
        say_read, say_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(go_write)
                os.close(say_read)
                _perform(folder, amounts, settings, again, go_read, say_write)
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        os.close(go_read)
        os.close(say_write)
        return cls(pid, go_write, say_read)

    def go(self) -> None:
        """On to the next pause."""
        os.write(self.orders, b"g")
        while (word := os.read(self.reports, 1)) != b".":
            if not word:
                self.end()
                return
            self.holds = word[0]  # 0: it is about to give back

    def kill(self) -> None:
        if not self.done:
            os.kill(self.pid, signal.SIGKILL)
            self.end()

    def end(self) -> None:
        if self.done:
            return
        self.done, self.holds = True, 0
        _, status = os.waitpid(self.pid, 0)
        os.close(self.orders)
        os.close(self.reports)
        if status not in (0, signal.SIGKILL):
            raise AssertionError(f"a player ended with status {status}")


def _perform(
    folder: Path, amounts: Sequence[int], settings: dict[str, float], again: bool, orders: int, reports: int
) -> None:
    """again: ask for each amount but the first with the ticket of the one before."""
    for name, value in settings.items():
        setattr(ledger if name == "POLL_S" else waiter, name, value)

    def trace(frame: Any, event: str, _value: Any) -> Any:
        if event == "call" and frame.f_code.co_filename not in FILES:
            return None
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) in PAUSES:
            os.write(reports, b".")
            if not os.read(orders, 1):
                os._exit(0)  # nobody directs any more
        return trace

    book = ledger.Ledger(folder, BUDGET)
    os.read(orders, 1)
    sys.settrace(trace)
    ticket = None
    for mib in amounts:
        grant = book.acquire(mib, ticket=ticket)
        ticket = grant.ticket if again else None
        os.write(reports, bytes([mib]))
        os.write(reports, b".")
        os.read(orders, 1)
        os.write(reports, bytes([0]))
        grant.release()


@dataclass
class Play:
    """What is played: who asks for what, when another has its turn, and what else happens.

    All of it follows from the seed.
    """

    seed: int
    removing: bool
    killing: bool
    trail: list[str] = field(default_factory=list)
    worst: int = 0

    def run(self, folder: Path) -> int:
        """The most that was held at once."""
        choose = random.Random(self.seed)
        shutil.rmtree(folder, ignore_errors=True)
        # the files show nothing of a holder whose folder was removed
        looks = [0.0, 0.02] if self.removing else [0.0, 0.02, 1e9]
        settings = QUICK | {
            "REFRESH_S": choose.choice(looks),
            "PASSED_S": choose.choice([0.0, 0.0, 0.02]),
        }
        least = choose.choice([2, BUDGET // 2 + 1])
        amounts = [
            [choose.randint(least, BUDGET) for _ in range(choose.randint(1, 3))]
            for _ in range(choose.choice([2, 2, 3, 4]))
        ]
        players = [Player.start(folder, wanted, settings, self.seed % 2 == 1) for wanted in amounts]
        try:
            self._direct(choose, folder, players)
            self._finish(players)
        finally:
            for player in players:
                player.kill()
        left = ledger.Ledger(folder, BUDGET).requests()
        assert not left, f"left behind: {left}"
        return self.worst

    def _direct(self, choose: random.Random, folder: Path, players: list[Player]) -> None:
        switch, freeze = choose.choice([0.01, 0.03, 0.1, 0.4]), choose.choice([0.0, 0.02, 0.05])
        turn, frozen, until = choose.choice(players), players[0], 0
        for step in range(choose.choice([200, 600])):
            if choose.random() < freeze:  # one is stopped for long, in the midst of whatever it does
                frozen, until = turn, step + choose.choice([100, 300])
            able = [p for p in players if not p.done and (p is not frozen or step >= until)]
            if not able:
                return
            if turn not in able or choose.random() < switch:
                turn = choose.choice(able)
            turn.go()
            self._check(players)
            if self.removing and choose.random() < 0.01:
                self._remove(choose, folder)
            if self.killing and choose.random() < 0.003:
                choose.choice([p for p in players if not p.done] or [turn]).kill()

    def _finish(self, players: list[Player]) -> None:
        until = time.monotonic() + PATIENCE_S
        for step in itertools.count():
            alive = [p for p in players if not p.done]
            if not alive:
                return
            assert time.monotonic() < until, f"stuck: {[(p.pid, p.holds) for p in alive]}"
            alive[step // 7 % len(alive)].go()
            self._check(players)

    def _check(self, players: list[Player]) -> None:
        self.worst = max(self.worst, sum(p.holds for p in players))

    def _remove(self, choose: random.Random, folder: Path) -> None:
        pattern = choose.choice(
            ["h-*", "g-*", "[hg]-*", "q-*", "*", "", ".*", "one", "the youngest's", "renamed"]
        )
        self.trail.append(pattern or "folder")
        if pattern == "one":
            _remove(folder, choose.choice([*sorted(path.name for path in folder.glob("*")), "none"]))
        elif pattern == "the youngest's":
            _remove(folder, youngest := f"g-{entries.youngest_grant(folder)}")
            _remove(
                folder,
                next((path.name for path in folder.glob("h-*") if path.stat().st_nlink == 1), youngest),
            )
        elif pattern == "renamed":
            _rename(folder)
        elif pattern:
            _remove(folder, pattern)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        with suppress(OSError):
            path.unlink()


def _rename(folder: Path) -> None:
    """Out of the way, and gone a moment later."""
    away = folder.with_name("away")
    with suppress(OSError):
        folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


@dataclass
class Stops:
    """Two who each want more than half.

    One is stopped at its n-th pause, the other at its m-th; then each in turn goes on for long.

    Every n and m there is can be played: all that a process can do to another that was stopped anywhere, or
    killed there; removes: the files that are removed while both stand still.
    """

    first: int
    second: int
    kill: bool = False
    removes: str = ""

    def run(self, folder: Path) -> int:
        """The most that was held at once."""
        shutil.rmtree(folder, ignore_errors=True)
        settings = QUICK | {"REFRESH_S": 0.0, "PASSED_S": 0.0}
        players = [Player.start(folder, [BUDGET // 2 + 1], settings) for _ in range(2)]
        worst = 0
        try:
            for who, pauses in ((0, self.first), (1, self.second), (0, LONG), (1, LONG)):
                worst = max(worst, *(self._on(players, who) for _ in range(pauses)), 0)
                if self.kill and who == 0 and pauses == self.first:
                    players[who].kill()
                if self.removes and who == 1 and pauses == self.second:
                    _remove(folder, self.removes)
            Play(0, removing=False, killing=False)._finish(players)
        finally:
            for player in players:
                player.kill()
        assert not ledger.Ledger(folder, BUDGET).requests()
        return worst

    def _on(self, players: list[Player], who: int) -> int:
        if not players[who].done and not (players[who].holds and not players[1 - who].done):
            players[who].go()
        return sum(p.holds for p in players)
