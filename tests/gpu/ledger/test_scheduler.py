"""The queue's policy: first come, first served, and nobody passes who could make another wait longer."""

import random

import pytest

from overnight.gpu.ledger.scheduler import Size, startable
from tests.support.schedules import starts


def sizes(*mib):
    return [Size(m) for m in mib]


@pytest.mark.parametrize(
    ("held", "queue", "expected", "why"),
    [
        ([], [4, 6], [0, 1], "both fit"),
        ([], [4, 7], [0], "the second does not fit beside the first"),
        ([6], [5, 4], [1], "when the 6 end, 5 and 4 fit together"),
        ([8], [5, 2], [1], "the head starts when the 8 end, beside 2"),
        ([8], [9, 2], [], "the head would find 1 MiB too little"),
        ([5, 3], [6, 2], [], "when the 5 end, 3 + 2 leave no room for the head"),
        ([5, 3], [5, 2], [], "when the 3 end, 5 + 2 leave no room for the head"),
        ([6], [8, 9, 2], [], "the second in line would have to wait for the 2"),
        ([10], [1], [], "there is no room"),
        ([4], [12, 3], [], "the head knows of a larger budget than 10"),
        ([], [12, 3], [], "... and waits for everybody"),
    ],
)
def test_who_may_start(held, queue, expected, why):
    assert startable(10, 0, sizes(*held), sizes(*queue)) == expected, why


def test_what_other_programs_take_cannot_be_granted():
    assert startable(10, 4, [], sizes(7)) == []
    assert startable(10, 4, [], sizes(7, 3)) == [
        1
    ]  # while a game alone keeps the head from starting, others may pass
    assert startable(10, 0, sizes(4), sizes(7, 4)) == []


def test_an_exclusive_request_runs_alone_and_is_passed_by_nobody():
    alone = Size(2, exclusive=True)
    assert startable(10, 0, [], [alone, Size(1)]) == [0]
    assert startable(10, 0, sizes(1), [alone, Size(1)]) == []
    assert startable(10, 0, [alone], sizes(1)) == []
    assert startable(10, 9, [], [alone]) == []
    assert startable(10, 3, [], [alone]) == [
        0
    ]  # what programs hold that we cannot stop is no reason to wait for ever
    assert startable(10, 1, sizes(4), [alone, Size(4)]) == []  # ... nor to let others pass
    assert startable(10, 9, [], [alone, Size(1)]) == [1]


@pytest.mark.parametrize("seed", range(300))
def test_nobody_starts_later_than_without_backfill(seed):
    choose = random.Random(seed)
    budget = choose.choice([6, 10, 20, 12288])
    arrive = choose.choice([0.0, 10.0])  # all at once, or one after the other
    taken, alone = choose.choice([0, 0, 1, budget // 2]), choose.choice([0.05, 0.3])
    jobs = [
        (
            arrive * choose.random(),
            choose.choice([0.1, 1, 20]) * choose.random(),
            Size(choose.randint(1, budget - taken), choose.random() < alone),
        )
        for _ in range(choose.randint(2, 14))
    ]
    plain, ours = (dict(starts(budget, jobs, backfill, overuse_mib=taken)) for backfill in (False, True))
    assert ours.keys() == plain.keys() == set(range(len(jobs)))
    assert all(ours[j] <= plain[j] + 1e-9 for j in plain)


@pytest.mark.parametrize("seed", range(100))
def test_from_the_return_of_one_with_its_old_ticket_on_nobody_starts_later_than_without_backfill(seed):
    choose = random.Random(seed)
    budget, jobs = choose.choice([6, 10, 20]), list[tuple[float, float, Size]]()
    for _ in range(choose.randint(3, 10)):
        jobs.append((10.0 * choose.random(), 20 * choose.random(), Size(choose.randint(1, budget))))
    away, back = min(range(len(jobs)), key=lambda j: jobs[j][0]), 10.0 * choose.random()
    before = dict(starts(budget, jobs))
    # at its return those that have begun hold on for their rest, the others wait, and it is ahead of them all
    rest = [(0.0, 10 * choose.random(), jobs[away][2])]
    running = [
        (0.0, before[j] + d - back, size)
        for j, (_, d, size) in enumerate(jobs)
        if j != away and before[j] <= back < before[j] + d
    ]
    waiting = [
        (max(0.0, a - back), d, size) for j, (a, d, size) in enumerate(jobs) if j != away and before[j] > back
    ]
    then = running + rest + waiting
    tickets = (
        [-2.0] * len(running)
        + [-1.0]
        + [jobs[j][0] for j in range(len(jobs)) if j != away and before[j] > back]
    )
    plain, ours = (dict(starts(budget, then, backfill, tickets)) for backfill in (False, True))
    assert all(ours[j] == 0 for j in range(len(running)))
    assert all(ours[j] <= plain[j] + 1e-9 for j in plain)


def test_one_that_returns_with_its_old_ticket_is_ahead_of_all_that_came_after_it():
    jobs = [(0.0, 4.0, Size(10)), (1.0, 4.0, Size(10)), (2.0, 4.0, Size(10)), (5.0, 4.0, Size(10))]
    order = [job for job, _ in starts(10, jobs, tickets=[0.0, 1.0, 2.0, 0.5])]
    assert order == [0, 1, 3, 2]


def test_backfill_is_worth_something():
    jobs = [(0.0, 10.0, Size(8)), (1.0, 10.0, Size(8)), *((2.0, 1.0, Size(2)) for _ in range(10))]
    plain, ours = dict(starts(10, jobs, backfill=False)), dict(starts(10, jobs))
    assert [ours[j] for j in (0, 1, 2, 11)] == [0.0, 10.0, 2.0, 11.0]
    assert [plain[j] for j in (0, 1, 2, 11)] == [0.0, 10.0, 10.0, 19.0]
