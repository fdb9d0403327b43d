"""Which waiting requests may start now: a pure function of sizes, without clocks or guesses of durations.

First come, first served, with backfill: a request passes those ahead of it only when it cannot make any of
them start later. A request ahead that asks for w MiB starts when what is left of the holders and of the
requests between leaves room for w, whichever of them end first. So for every sum s that a subset of them can
have, s + w within the budget must imply that s + w + mine is within the budget, too. The sums of all subsets
are the bits of one integer, so that this is exact and cheap.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """exclusive: lets no other run beside it."""

    mib: int
    exclusive: bool = False

    def weight(self, budget_mib: int) -> int:
        """MiB that no other request can have beside it."""
        return budget_mib if self.exclusive else self.mib


def startable(budget_mib: int, overuse_mib: int, held: Sequence[Size], queue: Sequence[Size]) -> list[int]:
    """Indices of the queue that may start now, all of them together.

    budget_mib: what may be granted in all; overuse_mib: what other programs use of it now. They may
    end at any time, so while they alone keep a request from starting, others may pass.
    """
    room = budget_mib - sum(h.weight(budget_mib) for h in held)
    free = budget_mib - overuse_mib - sum(h.mib for h in held)
    if not any(r.weight(budget_mib) <= room and r.mib <= free for r in queue):
        return []
    line = _Line(budget_mib, overuse_mib, [h.weight(budget_mib) for h in held])
    starts = []
    for index, request in enumerate(queue):
        weight = request.weight(budget_mib)
        if weight <= room and request.mib <= free and line.harmless(weight):
            starts.append(index)
            room -= weight
            free -= request.mib
            line.start(weight)
        else:
            line.wait(request)
    return starts


class _Line:
    """The requests ahead, each with the possible sums of what may be left of all before it."""

    def __init__(self, budget_mib: int, overuse_mib: int, held: Sequence[int]) -> None:
        self.budget_mib = budget_mib
        self.free_mib = budget_mib - overuse_mib
        self.mask = (1 << (budget_mib + 1)) - 1
        self.sums = 1
        for weight in held:
            self.sums = self._with(self.sums, weight)
        self.ahead: list[tuple[int, int]] = []  # the most that may be held beside each, and the sums

    def _with(self, sums: int, weight: int) -> int:
        return (sums | sums << weight) & self.mask

    def start(self, weight: int) -> None:
        self.ahead = [(most, self._with(sums, weight)) for most, sums in self.ahead]
        self.sums = self._with(self.sums, weight)

    def wait(self, request: Size) -> None:
        self.ahead.append((self._beside(request), self.sums))
        self.sums = self._with(self.sums, request.weight(self.budget_mib))

    def _beside(self, request: Size) -> int:
        """The most that others may hold when it starts; negative while only other programs could make room.

        A request for more than the whole budget comes from a process with a larger one, and is waited for.
        """
        most = self.free_mib - request.mib
        if most < 0 <= self.budget_mib - request.mib:
            return most
        return 0 if request.exclusive else max(0, most)

    def harmless(self, weight: int) -> bool:
        return not any(_any_bit(sums, most - weight, most) for most, sums in self.ahead)


def _any_bit(bits: int, above: int, up_to: int) -> bool:
    above = max(above, -1)
    return up_to > above and bool((bits >> (above + 1)) & ((1 << (up_to - above)) - 1))
