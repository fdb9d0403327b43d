"""Several processes on one ledger, one system call at a time, in any order that Hypothesis thinks of.

A process pauses before every line of the ledger that may call the kernel, and goes on when it is ordered to.
One that gets no order is one that was stopped (SIGSTOP) there; one that is killed there was killed at that very
call. Who may hold is compared with a policy that tries every subset (`allowed`).
"""

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from overnight.gpu.ledger import entries, ledger, waiter
from tests.chaos._workers import in_child

BUDGET = 12
MOST = 5  # processes at once
ROUNDS = 30  # of looks by everybody, until nothing changes any more
SLEEP = "time.sleep("
CALLS = re.compile(
    rf"\bos\.|fcntl\.|path\.open|\.unlink|\.rename|\.lstat|\.mkdir|\.exists|same_file|{re.escape(SLEEP)}"
)
LINES = {
    (module.__file__, number): line
    for module in (entries, ledger, waiter)
    for number, line in enumerate(Path(str(module.__file__)).read_text().splitlines(), 1)
    if CALLS.search(line)
}
FILES = {file for file, _ in LINES}
KINDS = ["os.link(", "fcntl.flock(", "os.listdir(", "os.close(", ".unlink("]  # a process may stop before any
MOST_CALLS = 60


def chosen(stories: int, derandomize: bool = False) -> settings:
    """Settings for so many stories; no time limit, nothing kept."""
    checks = list(HealthCheck)
    return settings(
        max_examples=stories, stateful_step_count=40, derandomize=derandomize, deadline=None, database=None,
        suppress_health_check=checks,
    )  # fmt: skip


class Player:
    """A process that asks for a part of the card, and gives it back when it is told to.

    said: "." at a pause, "s" when it has looked in vain, "h" when it holds, "" when it has ended.
    """

    def __init__(self, folder: Path, mib: int, exclusive: bool, constants: dict[str, float]) -> None:
        self.mib, self.exclusive, self.said = mib, exclusive, "."
        self.held = False
        orders, self._orders = os.pipe()
        self._reports, reports = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._orders)
            os.close(self._reports)
            in_child(parent, lambda: _perform(folder, mib, exclusive, constants, orders, reports))
        os.close(orders)
        os.close(reports)

    @property
    def weight(self) -> int:
        return BUDGET if self.exclusive else self.mib

    def go(self, calls: int = 0) -> str:
        """On by so many calls, to the next sleep (0), or before the next of KINDS (MOST_CALLS + 1 and more)."""
        os.write(self._orders, bytes([calls]))
        self.said = os.read(self._reports, 1).decode()
        self.held = self.held or self.said == "h"
        if not self.said:
            self._end(0)
        return self.said

    def kill(self) -> None:
        if self.said:
            os.kill(self.pid, signal.SIGKILL)
            self._end(signal.SIGKILL)

    def _end(self, expected: int) -> None:
        self.said = ""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._orders)
        os.close(self._reports)
        assert status == expected, f"a process ended with status {status}"


def _perform(
    folder: Path, mib: int, exclusive: bool, constants: dict[str, float], orders: int, reports: int
) -> None:
    for name, value in constants.items():
        setattr(waiter, name, value)
    ledger.POLL_S = 0.0
    left = 0
    kind = SLEEP

    def listen() -> None:
        nonlocal left, kind
        order = os.read(orders, 1)[0]
        left = order if order <= MOST_CALLS else 0
        kind = KINDS[order - MOST_CALLS - 1] if order > MOST_CALLS else SLEEP

    def pause(word: bytes) -> None:
        os.write(reports, word)
        listen()

    def trace(frame: Any, event: str, _value: Any) -> Any:
        nonlocal left
        if event == "call" and frame.f_code.co_filename not in FILES:
            return None
        line = LINES.get((frame.f_code.co_filename, frame.f_lineno)) if event == "line" else None
        if line:
            left -= 1
            if left == 0 or (left < 0 and (kind in line or SLEEP in line)):
                pause(b"s" if SLEEP in line else b".")
        return trace

    listen()
    sys.settrace(trace)
    grant = ledger.Ledger(folder, BUDGET).acquire(mib, exclusive=exclusive)
    pause(b"h")
    grant.release()


def allowed(held: Sequence[Player], queue: Sequence[Player]) -> set[Player]:
    """Who of the queue may start: it fits, and whichever of the others end first, it delays nobody ahead."""
    running, ahead, starts = list(held), list[tuple[Player, list[Player]]](), set[Player]()
    for player in queue:
        fits = sum(p.weight for p in running) + player.weight <= BUDGET
        if fits and not any(_delays(player, other, before) for other, before in ahead):
            starts.add(player)
            running.append(player)
            for _, before in ahead:
                before.append(player)
        else:
            ahead.append((player, [*running, *(other for other, _ in ahead)]))
    return starts


def _delays(player: Player, other: Player, before: Sequence[Player]) -> bool:
    """Whether some of those before it leave room for the other, and none beside this player."""
    room = BUDGET - other.weight
    sums = (sum(p.weight for p in some) for n in range(len(before) + 1) for some in combinations(before, n))
    return any(mib <= room < mib + player.weight for mib in sums)


class Stories(RuleBasedStateMachine):
    """Processes that come, look, hold, end and are killed."""

    count = grants = kills = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).count += 1
        self.folder = Path(tempfile.mkdtemp(prefix="story-"))
        self.players = list[Player]()
        self.is_known = True  # whether nobody has moved by single calls since everybody was asleep
        self.constants = dict[str, float]()

    @initialize(passing=st.sampled_from([1e9, 1e9, 0.0]), refresh=st.sampled_from([0.0, 1e9]))
    def begin(self, passing: float, refresh: float) -> None:
        self.constants = {"PASSED_S": passing, "REFRESH_S": refresh, "GAP_S": 1e9}

    @property
    def is_room(self) -> bool:
        """Asked in the rules: as their precondition it would let Hypothesis draw otherwise at a replay."""
        return len(self.holding) + len(self.moving) < MOST

    @property
    def holding(self) -> list[Player]:
        return [p for p in self.players if p.said == "h"]

    @property
    def moving(self) -> list[Player]:
        return [p for p in self.players if p.said in {".", "s"}]

    @rule(mib=st.integers(1, BUDGET), exclusive=st.sampled_from([False] * 5 + [True]))
    def ask(self, mib: int, exclusive: bool) -> None:
        if self.is_room:
            self.players.append(Player(self.folder, mib, exclusive, self.constants))

    @rule(
        choice=st.integers(0, MOST - 1),
        calls=st.integers(1, MOST_CALLS) | st.integers(MOST_CALLS + 1, MOST_CALLS + len(KINDS)),
    )
    def go(self, choice: int, calls: int) -> None:
        """One goes on by so many calls or to one of a kind, or until it holds."""
        self.is_known = False
        if self.moving:
            self.moving[choice % len(self.moving)].go(calls)

    @rule(sizes=st.lists(st.integers(1, BUDGET), min_size=1, max_size=3), is_last_kept=st.booleans())
    def pass_by(self, sizes: list[int], is_last_kept: bool) -> None:
        """Some come, hold and give back while the others stand still; one that has to wait ends the line."""
        self.is_known = False
        for left, mib in reversed(list(enumerate(sizes))):
            if not self.is_room:
                return
            self.ask(mib, False)
            player = self.players[-1]
            player.go()
            self.never_above_the_budget()
            if player.said != "h" or (is_last_kept and left == 0):
                return
            player.go()

    @rule(choice=st.integers(0, MOST - 1), calls=st.integers(1, 8))
    def free(self, choice: int, calls: int) -> None:
        """A holder begins to give back; from its first call on it counts as one that may hold nothing."""
        if self.holding:
            self.holding[choice % len(self.holding)].go(calls)

    @rule(choice=st.integers(0, MOST - 1))
    def kill(self, choice: int) -> None:
        """One is killed; a waiter only where others refresh: a look at the files alone does not see its end."""
        living = self.holding if self.constants["REFRESH_S"] else self.moving + self.holding
        if living:
            living[choice % len(living)].kill()
            type(self).kills += 1

    @rule()
    def settle(self) -> None:
        """Everybody goes on until nobody gets anything more: who holds then is what the policy says."""
        expected = self._expected() if self.is_known else None
        self._settle()
        queue = sorted(self.moving, key=self._tickets)
        if self.constants["PASSED_S"]:
            assert not allowed(self.holding, queue), f"stuck: {self._told()}"
            assert expected in {None, frozenset(self.holding)}, self._told()
        self.is_known = True

    def _expected(self) -> frozenset[Player]:
        """Who holds once everybody has looked: as the policy says, of those in line and those who come last."""
        held = self.holding
        waiting = [p for p in self.moving if p.said == "s"]
        new = [p for p in self.moving if not self._tickets(p)]
        queue = sorted(waiting, key=self._tickets) + new
        while starts := allowed(held, queue):
            held, queue = [*held, *starts], [p for p in queue if p not in starts]
        return frozenset(held)

    def _settle(self) -> None:
        quiet = 0
        for _ in range(ROUNDS):
            before = [p.said for p in self.players]
            for player in self.moving:
                player.go()
                self.never_above_the_budget()
            quiet = quiet + 1 if [p.said for p in self.players] == before else 0
            if quiet == 2:
                return
        raise AssertionError(f"it never ends: {self._told()}")

    def _tickets(self, player: Player) -> list[int]:
        """Of the request in line or held; none before it has entered."""
        names = [path.name.removesuffix("-x") for path in self.folder.glob(f"q-*-{player.pid}*")]
        return [int(name.split("-")[1]) for name in names if name.endswith(f"-{player.pid}")]

    def _told(self) -> list[tuple[int, int, str]]:
        return [(p.pid, p.weight, p.said) for p in self.players if p.said]

    @invariant()
    def never_above_the_budget(self) -> None:
        assert sum(p.weight for p in self.holding) <= BUDGET, self._told()

    def teardown(self) -> None:
        try:
            while self.holding or self.moving:
                for player in self.holding:
                    player.go()
                self._settle()
                assert self.holding or not self.moving, f"stuck: {self._told()}"
            type(self).grants += sum(p.held for p in self.players)
            found = ledger.Ledger(self.folder, BUDGET).requests()
            names = [path.name for path in self.folder.iterdir()]
            assert not found
            assert len(names) <= 1, names  # the youngest grant
        finally:
            for player in self.players:
                player.kill()
            shutil.rmtree(self.folder)
