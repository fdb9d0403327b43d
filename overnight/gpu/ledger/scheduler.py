"""Who of those in line may start now: a pure function of sizes, without clocks or guesses of how long anybody takes.

First come, first served, with backfill: a request passes those ahead of it only when it cannot make any of them start later. Somebody
ahead who asks for w MiB starts when what is left of the holders and of those between leaves room for w, whichever of them end first. So
for every sum s that any subset of them can have, s + w within the budget must mean that s + w + mine is within the budget, too. The sums
of all subsets are the bits of one integer, so that this is exact and cheap.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """What one request takes: its MiB, and whether it lets nobody run beside it."""

    mib: int
    exclusive: bool = False

    def weight(self, budget_mib: int) -> int:
        """What it keeps from others."""
        return budget_mib if self.exclusive else self.mib


def startable(budget_mib: int, taken_mib: int, held: Sequence[Size], queue: Sequence[Size]) -> list[int]:
    """Which places of the queue may start now, all of them together.

    budget_mib: what may be granted in all; taken_mib: what programs that know nothing of it use of it now. Nobody knows when they end,
    so while they alone keep somebody from starting, others may pass.
    """
    room = budget_mib - sum(h.weight(budget_mib) for h in held)
    free = budget_mib - taken_mib - sum(h.mib for h in held)
    if not any(r.weight(budget_mib) <= room and r.mib <= free for r in queue):
        return []
    line = _Line(budget_mib, taken_mib, [h.weight(budget_mib) for h in held])
    starts = []
    for place, request in enumerate(queue):
        weight = request.weight(budget_mib)
        if weight <= room and request.mib <= free and line.harmless(weight):
            starts.append(place)
            room, free = room - weight, free - request.mib
            line.start(weight)
        else:
            line.wait(request)
    return starts


class _Line:
    """Those who wait ahead, each with the sums of what may be left of all before them."""

    def __init__(self, budget_mib: int, taken_mib: int, held: Sequence[int]) -> None:
        self.all, self.budget = budget_mib, budget_mib - taken_mib
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
        self.sums = self._with(self.sums, request.weight(self.all))

    def _beside(self, request: Size) -> int:
        """The most that others may hold when it starts; negative while only programs outside could make room for it.

        Who asks for more than all there is knows of a larger budget, and is waited for.
        """
        most = self.budget - request.mib
        return most if most < 0 <= self.all - request.mib else 0 if request.exclusive else max(0, most)

    def harmless(self, weight: int) -> bool:
        """Whether nobody ahead could start later because of it."""
        return not any(_any_bit(sums, most - weight, most) for most, sums in self.ahead)


def _any_bit(bits: int, above: int, up_to: int) -> bool:
    above = max(above, -1)
    return up_to > above and bool((bits >> (above + 1)) & ((1 << (up_to - above)) - 1))
