"""Light holders and waiters of the card are killed and stopped, and their folder is removed: nothing is granted
twice, nothing stays held.
"""

import os
import random
import shutil
import signal
import time

from overnight.gpu.card import Card
from overnight.gpu.lease import lease
from tests.chaos._workers import BUDGET, NS, Hold, Pen, Workers, median, most, now, quantile, start_workers
from tests.chaos.case import Case, Measured

KILLS = 1000
PEOPLE = 8
HOLDERS_KILLED = 220
REMOVALS = 10
SETTLED_S = 2  # after the folder was removed


def cases() -> list[Case]:
    return [
        Case("card_kill", "1,000 kill -9 of light holders and waiters, with SIGSTOP and SIGCONT at random", _kills,
             {"kills": f"== {KILLS}", "double_grants": "== 0", "stuck_mib": "== 0"}, 300),
        Case("card_removed", "the folder removed while two hold and three wait", _removals,
             {"removals": f"== {REMOVALS}", "above_budget_after_2_s_mib": "== 0", "stuck_mib": "== 0"}, 200),
        Case("card_hand_over", "the holder is killed: until the waiter holds the grant", _hand_over, {"p99_s": "<= 2"}, 300),
    ]  # fmt: skip


def _kills(seed: int) -> Measured:
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
            _stop_and_go(choose, workers, stopped)
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


def _removals(seed: int) -> Measured:
    """What was held at once from 2 s after each removal to the next one, and what in those seconds."""
    choose, within, after = random.Random(seed), list[Hold](), list[Hold]()
    with start_workers() as workers:
        for _ in range(REMOVALS):
            holders = [_lease(workers, BUDGET // 2, 600.0) for _ in range(2)]
            for pid in holders:
                until_held(workers, pid)
            waiters = [_lease(workers, choose.randint(1, BUDGET), 0.5) for _ in range(3)]
            for pid in waiters:
                workers.in_line(pid)
            removed = workers.card.rename(
                workers.card.with_name("removed")
            )  # else it fills while it is emptied
            shutil.rmtree(removed)
            settled = now() + SETTLED_S * NS
            time.sleep(2 * SETTLED_S)
            for pid in holders:
                workers.kill(pid)
            for pid in waiters:
                workers.wait(pid)
            ours = [h for h in workers.held() if h.pid in {*holders, *waiters}]
            within += ours
            after += [
                Hold(h.ticket, max(h.start, int(settled)), h.end, h.mib, h.pid)
                for h in ours
                if h.end > settled
            ]
        return {
            "removals": REMOVALS,
            "above_budget_after_2_s_mib": max(0, most(after) - BUDGET),
            "above_budget_mib": max(0, most(within) - BUDGET),
            "stuck_mib": workers.stuck_mib(),
        }


def _lease(workers: Workers, mib: int, seconds: float) -> int:
    """A process with a lease as a script has it."""

    def body(pen: Pen) -> None:
        os.environ["OVERNIGHT_CARD_DIR"] = str(pen.ledger.folder.parent)
        card = Card(uuid="virtual", name="virtual", total_mib=BUDGET, budget_mib=BUDGET)
        with lease(mib, card, on_wait=lambda _ahead, _overuse: None) as held, pen.noted(held.grant):
            time.sleep(seconds)

    return workers.fork(body)


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
