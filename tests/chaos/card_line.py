"""The line for the card: never above the budget, nobody later than without backfill, cheap to take, cheap to
wait in.

Those who wait look ten times a second, so each end of a job is noticed up to a tenth of a second later; a job
starts late by what the ends before it were noticed late. The schedule on paper that a start is compared with therefore
has every job end one such hand-over later; what remains is the machine's own delay. The proof without clocks,
on thousands of schedules, is tests/gpu/ledger/test_scheduler.py.
"""

import random
import time
from concurrent.futures import ThreadPoolExecutor

from overnight.errors import Stopped
from tests.chaos._workers import BUDGET, NS, Observer, Pen, later_s, median, most, quantile, start_workers
from tests.chaos.case import Case, Measured

PROCESSES = 16
GRANTS = 10_000
SLOW_JOBS = 320
HAND_OVER_S = 0.1
STREAM = [(100, 0.05)] * 2000  # small grants, ten a second, that pass the waiters
WATCHED_S = 30
WAITED_MIB = 5000  # by each of those who wait: two of them and a small grant go together, so that it may pass


def cases() -> list[Case]:
    return [
        Case("card_busy", "10,000 grants of random sizes to 16 processes", _busy,
             {"grants": f"== {GRANTS}", "above_budget_mib": "== 0", "observed_above_mib": "== 0", "stuck_mib": "== 0"}, 600),
        Case("card_fair", "starts beside those of the same schedule without backfill, jobs of seconds", _fair,
             {"later_p99_s": "<= 0.15", "later_most_s": "<= 0.5"}, 300),
        Case("card_big", "a job of the whole card against a stream of small ones", _big, {"after_last_before_most_s": "<= 0.5"}, 200),
        Case("card_cost", "acquire + release, uncontended", _cost, {"median_ms": "<= 2", "p99_ms": "<= 2"}, 60),
        Case("card_waiting", "CPU of a waiter over 30 s, alone, among 16, and among 16 beside a stream of small grants", _waiting,
             {"alone_percent": "<= 0.5", "among_16_most_percent": "<= 0.5"}, 180),
    ]  # fmt: skip


def _sizes(choose: random.Random) -> int:
    """Adversarial for whoever packs: dust, halves and a bit, nearly all, all."""
    return choose.choice(
        [
            choose.randint(1, 200),
            choose.randint(200, BUDGET // 3),
            choose.randint(1, BUDGET),
            BUDGET // 2 + 1,
            BUDGET,
        ]
    )


def _busy(seed: int) -> Measured:
    """Holds of up to 20 ms, so that as many as can be compete; the hand-overs take most of the time."""
    choose = random.Random(seed)
    with start_workers() as workers:
        observer = Observer(workers.card)
        jobs = [
            [(_sizes(choose), choose.random() * 0.02) for _ in range(GRANTS // PROCESSES)]
            for _ in range(PROCESSES)
        ]
        for pid in [workers.loop(amounts, choose.random() * 0.01) for amounts in jobs]:
            workers.wait(pid)
        looks, seen = observer.end()
        holds = workers.held()
        late = later_s(
            holds, 0.0
        )  # a hand-over on paper longer than the real one would let the line there grow without end
        return {
            "grants": len(holds),
            "above_budget_mib": max(0, most(holds) - BUDGET),
            "observed_above_mib": max(0, seen - BUDGET),
            "stuck_mib": workers.stuck_mib(),
            "observed_looks": looks,
            "observed_most_mib": seen,
            "later_than_plain_p99_s": quantile(late, 0.99),
            "later_than_plain_most_s": max(late),
            "seconds": (max(h.end for h in holds) - min(h.ticket for h in holds)) / NS,
        }


def _fair(seed: int) -> Measured:
    """Jobs of 0.2 to 2 s, so that a hand-over is little beside them."""
    choose = random.Random(seed)
    with start_workers() as workers:
        jobs = [
            [(_sizes(choose) // 2 or 1, choose.uniform(0.2, 2)) for _ in range(SLOW_JOBS // PROCESSES)]
            for _ in range(PROCESSES)
        ]
        for pid in [workers.loop(amounts, pause_s=choose.random()) for amounts in jobs]:
            workers.wait(pid)
        holds = workers.held()
        late = later_s(holds, HAND_OVER_S)
        return {
            "later_p99_s": quantile(late, 0.99),
            "later_most_s": max(late),
            "earlier_by_backfill_most_s": -min(late),
            "later_than_paper_without_hand_over_p99_s": quantile(later_s(holds, 0.0), 0.99),
            "above_budget_mib": max(0, most(holds) - BUDGET),
            "jobs": len(holds),
        }


def _big(seed: int) -> Measured:
    """Six processes hold small parts all the time; 20 times somebody asks for everything."""
    choose, after, waits = random.Random(seed), [], []
    with start_workers() as workers:
        small = [
            workers.loop([(choose.randint(1000, 4000), choose.uniform(0.1, 0.5)) for _ in range(10_000)])
            for _ in range(6)
        ]
        for _ in range(20):
            time.sleep(choose.uniform(0.2, 1))
            pid = workers.loop([(BUDGET, 0.05)])
            workers.wait(pid)
            holds = workers.held()
            big = next(h for h in holds if h.pid == pid)
            before = [h.end for h in holds if h.pid != pid and h.start < big.start]
            after.append((big.start - max([*before, big.ticket])) / NS)
            waits.append((big.start - big.ticket) / NS)
        passed = [h for h in workers.held() if h.mib == BUDGET]
        for pid in small:
            workers.kill(pid)
        return {"after_last_before_most_s": max(after), "after_last_before_median_s": median(after), "waited_median_s": median(waits),
                "waited_most_s": max(waits), "big_jobs": len(passed)}  # fmt: skip


def _cost(_seed: int) -> Measured:
    took = []
    with start_workers() as workers:
        began_cpu = time.process_time()
        for _ in range(2050):
            began = time.perf_counter()
            workers.ledger.acquire(100).release()
            took.append((time.perf_counter() - began) * 1e3)
        cpu_ms = (time.process_time() - began_cpu) / len(took) * 1e3  # what a busy machine cannot lengthen
    return {
        "median_ms": median(took[50:]),
        "p99_ms": quantile(took[50:], 0.99),
        "most_ms": max(took[50:]),
        "cpu_mean_ms": cpu_ms,
    }


def _waiting(_seed: int) -> Measured:
    """CPU seconds of real waiting processes, from the kernel's account of each.

    The first second (standing in line) is left out.
    """
    with ThreadPoolExecutor(3) as pool:  # each with a ledger of its own
        asked = (1, None), (PROCESSES, None), (PROCESSES, STREAM)
        (alone, _), (among, _), (beside, passed) = pool.map(lambda case: _watch(*case), asked)
    return {"alone_percent": alone[0], "among_16_most_percent": max(among), "among_16_median_percent": median(among),
            "beside_10_grants_a_second_most_percent": max(beside), "beside_10_grants_a_second_median_percent": median(beside), "grants_a_second": passed / WATCHED_S}  # fmt: skip


def _watch(waiters: int, stream: list[tuple[int, float]] | None = None) -> tuple[list[float], int]:
    """The share of each waiter in percent, and how often others passed them."""
    with start_workers() as workers:
        holder = workers.loop([(BUDGET - 1000, 600.0)])
        workers.in_line(holder)
        if stream:
            workers.loop(stream, pause_s=0.05)
        pids = [workers.fork(_wait) for _ in range(waiters)]
        for pid in pids:
            workers.wait(pid)
        workers.kill(holder)
        return [float((workers.notes / f"{pid}.cpu").read_text()) for pid in pids], len(workers.held()) - 1


def _wait(pen: Pen) -> None:
    marks: list[tuple[float, float]] = []

    def enough() -> bool:
        wall = time.monotonic()
        if not marks and wall - began > 1:
            marks.append((wall, time.process_time()))
        return bool(marks) and wall - marks[0][0] > WATCHED_S

    began = time.monotonic()
    try:
        pen.ledger.acquire(WAITED_MIB, should_stop=enough)
    except Stopped:
        wall, cpu = time.monotonic() - marks[0][0], time.process_time() - marks[0][1]
        pen.path.with_suffix(".cpu").write_text(str(100 * cpu / wall))
