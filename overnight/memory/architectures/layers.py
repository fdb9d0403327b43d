"""The trace of a deep net from those of shallow ones: equal layers allocate the same, in the same order.

Where a program with one layer more differs from the one with fewer, it repeats what stands before: that block
is repeated as often as there are layers. Whether a release meets the newest or the oldest allocation of its
kind tells which it is.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache

from overnight.memory.trace import Trace

SEEN = (12, 4, 2)  # events that must agree after a block: many, else few
FEW = (2, 3)  # layers of the smallest net; where the first or last is unlike the others, two tell too little
SMALL = 4096  # bytes


@dataclass(frozen=True)
class _Event:
    """Allocated or released, where, how large, of what kind; without allocation numbers."""

    gone: bool
    place: tuple[str, str]
    size: int
    kind: str
    origin: tuple[str, str]
    oldest: int = 0  # of a release: how many of its like that are alive were born before
    newest: int = 0  # and after

    def like(self) -> Hashable:
        return self.gone, self.place, self.size, self.kind, self.origin

    def about(self) -> Hashable:
        """A small list of one number for each weight grows with the layers."""
        return self.gone, self.place, self.size if self.size >= SMALL else 0, self.kind, self.origin


@dataclass(frozen=True)
class _Step:
    """Its size grows by `more` a layer; a release counts from the newest or the oldest."""

    event: _Event
    more: int
    newest: bool


@dataclass(frozen=True)
class _Part:
    steps: list[_Step]
    repeated: bool


def deep(trace_of: Callable[[int], Trace], layers: int) -> Trace:
    """From those with 2 and 3 layers if they predict the one with 4, else traced.

    What is given back after the last allocation is left out.
    """
    shallow = cache(trace_of)
    for few in FEW if layers > FEW[-1] + 3 else ():
        one, two, three = (shallow(depth) for depth in range(few, few + 3))
        found = _parts(_events(one), _events(two))
        if found is not None and _same(_written(found, 2), three):
            whole = _written(found, layers - few)
            if whole is not None:
                return whole
    return trace_of(layers)


def _same(foretold: Trace | None, real: Trace) -> bool:
    if foretold is None:
        return False
    wanted = (real.events[: _last(real)], real.sizes, real.kinds)
    return (foretold.events, foretold.sizes, foretold.kinds) == wanted


def _last(trace: Trace) -> int:
    """After the last allocation; what follows takes the program down, in no order of its own."""
    return next((i + 1 for i in range(len(trace.events) - 1, -1, -1) if trace.events[i] >= 0), 0)


def _events(trace: Trace) -> list[_Event]:
    alive: dict[Hashable, list[int]] = defaultdict(list)
    born, found = dict[int, tuple[str, str]](), list[_Event]()
    for event, place in list(zip(trace.events, trace.places, strict=True))[: _last(trace)]:
        number = max(event, ~event)
        origin = born.setdefault(number, place)
        like = (trace.sizes[number], trace.kinds[number], origin)
        if event >= 0:
            alive[like].append(number)
            found.append(_Event(False, place, *like))
        else:
            at = alive[like].index(number)
            found.append(_Event(True, place, *like, at, len(alive[like]) - 1 - at))
            del alive[like][at]
    return found


def _parts(one: list[_Event], other: list[_Event]) -> list[_Part] | None:
    """Shared events, and the blocks that the deeper program adds; None where they differ otherwise."""
    parts, i, j = [_Part([], False)], 0, 0
    blocks = _Blocks(one, other)
    while i < len(one) or j < len(other):
        alike = i < len(one) and j < len(other) and one[i].like() == other[j].like()
        size = None if alike else blocks.at(i, j)
        if size is not None:
            repeated = [_step(other[k - size], other[k], 0) for k in range(j, j + size)]
            parts += [_Part([s for s in repeated if s], True), _Part([], False)]
            j += size
            if None in repeated:
                return None
            continue
        if i >= len(one) or j >= len(other) or one[i].about() != other[j].about():
            return None
        step = _step(one[i], other[j], other[j].size - one[i].size)
        if step is None:
            return None
        parts[-1].steps.append(step)
        i, j = i + 1, j + 1
    return parts


def _step(one: _Event, other: _Event, more: int) -> _Step | None:
    if one.newest == other.newest:
        return _Step(one, more, True)
    return _Step(one, more, False) if one.oldest == other.oldest else None


class _Blocks:
    def __init__(self, one: list[_Event], other: list[_Event]) -> None:
        self.many = [event.like() for event in other]
        views = [([f(e) for e in one], [f(e) for e in other]) for f in (_Event.like, _Event.about)]
        self.views = [(n, few, self._runs(many, n)) for n in SEEN for few, many in views]

    def at(self, i: int, j: int) -> int | None:
        """Number of events from j on that repeat those before them, until both programs agree again."""
        for seen, few, where in self.views:
            ends = where.get(tuple(few[i : i + seen]), []) if i < len(few) else [len(self.many)]
            for end in ends:
                size = end - j
                if 0 < size <= j and self.many[j:end] == self.many[j - size : j]:
                    return size
        return None

    @staticmethod
    def _runs(events: list[Hashable], seen: int) -> dict[Hashable, list[int]]:
        found: dict[Hashable, list[int]] = defaultdict(list)
        for at in range(len(events)):
            found[tuple(events[at : at + seen])].append(at)
        return found


def _written(parts: list[_Part], times: int) -> Trace | None:
    trace = Trace()
    alive: dict[Hashable, list[int]] = defaultdict(list)
    for part in parts:
        for _ in range(times if part.repeated else 1):
            for step in part.steps:
                event, size = step.event, step.event.size + step.more * times
                same = alive[size, event.kind, event.origin]
                if not event.gone:
                    same.append(trace.allocate(size, event.kind, event.place))
                    continue
                at = len(same) - 1 - event.newest if step.newest else event.oldest
                if not 0 <= at < len(same):
                    return None
                trace.release(same.pop(at), event.place)
    return trace
