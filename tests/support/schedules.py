"""Schedules on paper: jobs with an arrival, a duration and a size, played through the policy of the queue."""

from collections.abc import Iterator, Sequence

from overnight.gpu.ledger.scheduler import Size, startable


def starts(
    budget_mib: int,
    jobs: Sequence[tuple[float, float, Size]],
    backfill: bool = True,
    tickets: Sequence[float] = (),
    overuse_mib: int = 0,
) -> Iterator[tuple[int, float]]:
    """Jobs of (arrival, duration, size) played through the policy: (job, its start), in the order of starts.

    backfill: False is plain first come, first served; for tests and for the bench. tickets: the order in line, where it is not that of
    the arrivals. overuse_mib: what other programs use all the time.
    """
    arrivals = sorted(range(len(jobs)), key=lambda j: jobs[j][0])
    queue, running, now = list[int](), list[tuple[float, int]](), 0.0
    while arrivals or queue:
        events = [end for end, _ in running] + [jobs[j][0] for j in arrivals[:1]]
        now = min(events) if events else now
        running = [(end, j) for end, j in running if end > now]
        while arrivals and jobs[arrivals[0]][0] <= now:
            queue.append(arrivals.pop(0))
        queue.sort(key=lambda j: tickets[j] if tickets else jobs[j][0])
        allowed = startable(
            budget_mib, overuse_mib, [jobs[j][2] for _, j in running], [jobs[j][2] for j in queue]
        )
        if not backfill:
            allowed = [place for place, right in enumerate(allowed) if place == right]
        for job in [queue[place] for place in allowed]:
            queue.remove(job)
            running.append((now + jobs[job][1], job))
            yield job, now
