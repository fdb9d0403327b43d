"""Light holders and waiters of the card are killed, stopped and robbed of their files: nothing is granted
twice, nothing stays held.
"""

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from tests.chaos._workers import BUDGET, NS, Workers, median, most, quantile, start_workers
from tests.chaos.case import Case, Measured

KILLS = 1000
PEOPLE = 8
HOLDERS_KILLED = 220


def cases() -> list[Case]:
    safe = {"kills": f"== {KILLS}", "double_grants": "== 0", "stuck_mib": "== 0"}
    return [
        Case("card_kill", "1,000 kill -9 of light holders and waiters", _kills, safe, 300),
        Case(
            "card_kill_stop",
            "... with SIGSTOP and SIGCONT at random",
            lambda seed: _kills(seed, stops=True),
            safe,
            300,
        ),
        Case(
            "card_kill_remove",
            "... and files or the folder removed",
            lambda seed: _kills(seed, stops=True, removes=True),
            safe,
            300,
        ),
        Case(
            "card_hand_over",
            "the holder is killed: until the waiter holds the grant",
            _hand_over,
            {"p99_s": "<= 2"},
            300,
        ),
    ]


def _kills(seed: int, stops: bool = False, removes: bool = False) -> Measured:
    """double_grants: MiB above the budget that processes held at once, from what they wrote down themselves."""
    choose = random.Random(seed)
    stopped: dict[int, float] = {}
    began = time.monotonic()
    with start_workers() as workers:
        for _ in range(KILLS):
            while len(workers.alive) < PEOPLE:
                workers.loop(
                    [(choose.choice([500, 3000, 6000, BUDGET]), choose.random() * 0.05) for _ in range(1000)]
                )
            time.sleep(choose.random() * 0.08)
            if stops:
                _stop_and_go(choose, workers, stopped)
            if removes and choose.random() < 0.2:
                _remove(choose, workers.card)
            workers.kill(choose.choice(sorted(workers.alive)))
        for pid in tuple(workers.alive):
            workers.kill(pid)
        holds = workers.held()
        return {
            "kills": len(workers.killed) - PEOPLE + 1,
            "double_grants": max(0, most(holds) - BUDGET),
            "stuck_mib": workers.stuck_mib(),
            "grants": len(holds),
            "most_mib": most(holds),
            "wall_s": time.monotonic() - began,
        }


def _stop_and_go(choose: random.Random, workers: Workers, stopped: dict[int, float]) -> None:
    for pid in [p for p, until in stopped.items() if p not in workers.alive or until < time.monotonic()]:
        del stopped[pid]
        if pid in workers.alive:
            os.kill(pid, signal.SIGCONT)
    if choose.random() < 0.5 and len(stopped) < PEOPLE // 2:
        pid = choose.choice(sorted(workers.alive))
        os.kill(pid, signal.SIGSTOP)
        stopped[pid] = time.monotonic() + choose.choice([0.02, 0.2, 1.5])


def _remove(choose: random.Random, card: Path) -> None:
    pattern = choose.choice(["h-*", "g-*", "q-*", "[hg]-*", "*", "", "one", "renamed"])
    if pattern == "renamed":
        with suppress(OSError):
            card.rename(card.with_name(f"away-{choose.random()}"))
    elif not pattern:
        shutil.rmtree(card, ignore_errors=True)
    files = sorted(card.glob("*" if pattern == "one" else pattern)) if pattern else []
    if pattern == "one":
        files = choose.sample(files, min(1, len(files)))
    for path in files:
        with suppress(OSError):
            path.unlink()


def _hand_over(seed: int) -> Measured:
    """Seconds from each kill to the waiter's first line after its grant."""
    choose, waits = random.Random(seed), []
    with start_workers() as workers:
        holder = workers.loop([(BUDGET, 600.0)])
        for _ in range(HOLDERS_KILLED):
            until_held(workers, holder)
            waiter = workers.loop([(BUDGET, 600.0)])
            workers.in_line(waiter)
            time.sleep(choose.random() * 0.1)
            killed = workers.kill(holder)
            until_held(workers, waiter)
            waits.append((_first(workers, waiter) - killed) / NS)
            holder = waiter
    return {
        "p99_s": quantile(waits, 0.99),
        "median_s": median(waits),
        "most_s": max(waits),
        "kills": len(waits),
    }


def until_held(workers: Workers, pid: int) -> None:
    path = workers.notes / str(pid)
    while not path.exists() or not path.stat().st_size:
        time.sleep(0.002)


def _first(workers: Workers, pid: int) -> int:
    return int((workers.notes / str(pid)).read_text().split()[1])
