"""Mixes of jobs of known sizes and durations: how near the card's line comes to the shortest time in which
they could be done.

No schedule is shorter than the longest job, nor than sum(MiB x s) / budget. Many mixes cannot reach that
bound whatever is done (two jobs of two thirds of the card run one after the other). So a mix counts as one
where the bound can be reached when the same policy comes within 1.10 of it on paper, every start coming 0.15
s after the end that it waited for: jobs last seconds here, so that a hand-over weighs more than beside a
training. Unfiltered stand beside it the ratio over all mixes, and that of the best of many schedules which
know all durations and let anybody pass anybody.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from overnight.gpu.ledger.ledger import Grant
from overnight.gpu.ledger.scheduler import Size
from tests.chaos._workers import BUDGET, NS, Pen, Workers, median, most, now, quantile, start_workers
from tests.chaos.case import Case, Measured
from tests.support.schedules import starts

MIXES = 500
AT_ONCE = 32  # mixes that are played side by side, each with a ledger of its own
NEAR = 1.10
HAND_OVER_S = 0.15
Mix = list[tuple[int, float]]  # MiB, seconds


def cases() -> list[Case]:
    return [
        Case("card_mixes", "500 mixes of 4 to 8 light jobs of 1 to 4 s, beside the shortest possible time", _mixes,
             {"reachable_most": f"<= {NEAR}", "above_budget_mib": "== 0", "mixes": f"== {MIXES}"}, 600),
    ]  # fmt: skip


def mix(choose: random.Random) -> Mix:
    """Sizes as steps have them: agents and graphs small, trainings large."""
    largest = choose.choice([BUDGET // 4, BUDGET // 2, BUDGET * 3 // 4])
    return [(choose.randint(300, largest), choose.uniform(1, 4)) for _ in range(choose.randint(4, 8))]


def bound_s(jobs: Mix) -> float:
    """No schedule is shorter."""
    return max(*(s for _, s in jobs), sum(mib * s for mib, s in jobs) / BUDGET)


def paper_s(jobs: Mix, hand_over_s: float = HAND_OVER_S) -> float:
    """The same policy on paper, all asking at once in their order."""
    asked = [(i * 1e-6, seconds + hand_over_s, Size(mib)) for i, (mib, seconds) in enumerate(jobs)]
    return max(start + asked[j][1] for j, start in starts(BUDGET, asked)) - hand_over_s


def best_s(jobs: Mix, orders: int = 100) -> float:
    """The shortest of many schedules that know all durations and owe nobody a turn: each of a drawn order
    starts as soon as it fits.
    """
    choose, found = random.Random(len(jobs)), []
    for _ in range(orders):
        waiting, running, at = choose.sample(jobs, len(jobs)), list[tuple[float, int]](), 0.0
        while waiting:
            running = [(end, mib) for end, mib in running if end > at]
            free = BUDGET - sum(mib for _, mib in running)
            fits = next((job for job in waiting if job[0] <= free), None)
            if fits:
                waiting.remove(fits)
                running.append((at + fits[1], fits[0]))
            else:
                at = min(end for end, _ in running)
        found.append(max(end for end, _ in running))
    return min(found)


def _mixes(seed: int) -> Measured:
    choose = random.Random(seed)
    mixes = sorted(
        (mix(choose) for _ in range(MIXES)), key=paper_s
    )  # so that those side by side end together
    ratios, above = list[float](), 0
    for first in range(0, MIXES, AT_ONCE):
        for took, top in play(mixes[first : first + AT_ONCE], Pen.hold):
            ratios.append(took / bound_s(mixes[len(ratios)]))
            above = max(above, top - BUDGET)
    return {**summary(mixes, ratios), "above_budget_mib": max(0, above)}


def summary(mixes: Sequence[Mix], ratios: Sequence[float]) -> dict[str, float]:
    """Ratios to the bound: of the mixes that can reach it, of all, of the paper, and of one job at a time."""
    reached = [
        ratio for jobs, ratio in zip(mixes, ratios, strict=True) if paper_s(jobs) <= NEAR * bound_s(jobs)
    ]
    single = [sum(s for _, s in jobs) / bound_s(jobs) for jobs in mixes]
    paper = [paper_s(jobs, 0.0) / bound_s(jobs) for jobs in mixes]
    return {
        "reachable_most": max(reached, default=float("nan")),
        "reachable_median": median(reached) if reached else float("nan"),
        "reachable": len(reached),
        "mixes": len(ratios),
        "all_median": median(ratios),
        "all_p95": quantile(ratios, 0.95),
        "all_on_paper_median": median(paper),
        "one_at_a_time_median": median(single),
        "best_of_100_orders_median": median([best_s(jobs) / bound_s(jobs) for jobs in mixes]),
        "best_of_100_orders_reach": sum(best_s(jobs) <= NEAR * bound_s(jobs) for jobs in mixes),
        "speedup_over_one_at_a_time_median": median([s / r for s, r in zip(single, ratios, strict=True)]),
    }


def play(
    mixes: Sequence[Mix],
    work: Callable[[Pen, int, float], None],
    then: Callable[[Workers], None] = lambda _people: None,
) -> list[tuple[float, int]]:
    """(seconds from the moment when the card is free to the last end, most MiB held) of each.

    The whole card is held until every job of every mix stands in line, in the order of its mix: so the order
    is certain, and what it takes to start processes is no part of the time.
    """
    with ExitStack() as stack:
        groups = [stack.enter_context(start_workers()) for _ in mixes]
        grants = [workers.ledger.acquire(BUDGET) for workers in groups]
        pids = [
            [_job(workers, job, work, grants) for job in jobs]
            for workers, jobs in zip(groups, mixes, strict=True)
        ]
        began = [_free(grant) for grant in grants]
        for workers, waited in zip(groups, pids, strict=True):
            for pid in waited:
                workers.wait(pid)
            then(workers)
        held = [workers.held() for workers in groups]
        return [
            ((max(h.end for h in holds) - start) / NS, most(holds))
            for holds, start in zip(held, began, strict=True)
        ]


def _job(
    workers: Workers, job: tuple[int, float], work: Callable[[Pen, int, float], None], grants: Sequence[Grant]
) -> int:
    """A process that stands in line; what it was forked with of the grants keeps nobody waiting."""

    def body(pen: Pen) -> None:
        for grant in grants:
            grant.release()
        work(pen, *job)

    pid = workers.fork(body)
    workers.in_line(pid)
    return pid


def _free(grant: Grant) -> int:
    """Give it back; when (ns)."""
    began = now()
    grant.release()
    return began
