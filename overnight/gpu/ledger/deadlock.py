"""Scripts that hold a part of the card and ask for more: found when all who hold wait for each other, so that nobody waits for ever."""

from collections.abc import Sequence

from overnight.errors import BadInput
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.scheduler import Size, startable


def knot(budget_mib: int, requests: Sequence[Request]) -> list[Request]:
    """When all who hold wait for more and nobody can start: those that they wait with, the oldest first. Else nothing.

    What a request says of itself as `holding`: the tickets that its thread holds, which it cannot give back while it waits.
    """
    held, queue = [r for r in requests if r.holds], [r for r in requests if not r.holds]
    pids = {r.pid for r in queue}
    if not held or not all(h.pid in pids for h in held):
        return []
    owners = {h.pid for h in held}
    waiting = {(r.pid, ticket): r for r in queue if r.pid in owners for ticket in _holding(r)}
    if not all((h.pid, h.ticket) in waiting for h in held) or startable(
        budget_mib, 0, sizes(held), sizes(queue)
    ):
        return []
    return sorted(
        {waiting[h.pid, h.ticket].path: waiting[h.pid, h.ticket] for h in held}.values(),
        key=lambda r: r.order,
    )


def loose_end(budget_mib: int, requests: Sequence[Request], tied: Sequence[Request]) -> Request | None:
    """The oldest of a knot that has room beside all who hold: those ahead of it wait for its end in any case."""
    room = budget_mib - sum(s.weight(budget_mib) for s in sizes([r for r in requests if r.holds]))
    return next((r for r in tied if Size(r.mib, r.exclusive).weight(budget_mib) <= room), None)


def gives_way(mine: Request, tied: Sequence[Request], what: str) -> BadInput:
    """What the youngest of a knot is told."""
    names = [f"{r.read().who.get('step') or 'a script'} (pid {r.pid}, {r.mib} more)" for r in tied]
    return BadInput(
        f"asked for {mine.mib} {what} while holding some: all who hold it wait for more, and nothing is left for any of them: "
        f"{', '.join(names)}. This request is the youngest, so it gives way: ask for all of it at once, or give back before asking again"
    )


def sizes(requests: Sequence[Request]) -> list[Size]:
    """What the policy wants to know of them."""
    return [Size(r.mib, r.exclusive) for r in requests]


def _holding(request: Request) -> list[int]:
    said = request.read().who.get("holding")
    return [t for t in said if isinstance(t, int)] if isinstance(said, list) else []
