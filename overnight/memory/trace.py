"""Every allocation and release of a program in order, with its operator and phase."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

KINDS = ("weights", "gradients", "optimizer", "copies", "data", "activations", "workspace", "temporary")


@dataclass
class Trace:
    """Allocations by id, in bytes before rounding, and the order of allocations and releases."""

    sizes: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    events: list[int] = field(default_factory=list)  # id: allocated; ~id: released
    places: list[tuple[str, str]] = field(default_factory=list)  # phase and operator of each event

    def allocate(self, size: int, kind: str, place: tuple[str, str]) -> int:
        self.sizes.append(size)
        self.kinds.append(kind)
        self.events.append(len(self.sizes) - 1)
        self.places.append(place)
        return len(self.sizes) - 1

    def release(self, number: int, place: tuple[str, str]) -> None:
        self.events.append(~number)
        self.places.append(place)

    def settled(self) -> "Trace":
        """The same with consecutive releases sorted, since torch frees a graph in no fixed order."""
        runs = [list(run) for _, run in groupby(self.events, key=lambda event: event < 0)]
        events = [event for run in runs for event in (sorted(run, reverse=True) if run[0] < 0 else run)]
        return Trace(self.sizes, self.kinds, events, self.places)

    def peak(self, block: int = 1) -> "Peak":
        """The most bytes alive at once, each allocation rounded up to `block`."""
        alive = most = at = 0
        for index, event in enumerate(self.events):
            if event >= 0:
                alive += rounded(self.sizes[event], block)
                if alive > most:
                    most, at = alive, index
            else:
                alive -= rounded(self.sizes[~event], block)
        return Peak(most, *(self.places[at] if self.places else ("", "")), self._alive(at, block))

    def _alive(self, at: int, block: int) -> dict[str, int]:
        parts = Counter[str]()
        for number in alive(self.events[: at + 1]):
            parts[self.kinds[number]] += rounded(self.sizes[number], block)
        return {kind: parts[kind] for kind in KINDS if parts[kind]}

    def between(self, other: "Trace", share: float) -> "Trace | None":
        """Sizes for another number of samples: this is share 0, `other` 1; None when events differ."""
        if self.events != other.events:
            return None
        sizes = [round(a + (b - a) * share) for a, b in zip(self.sizes, other.sizes, strict=True)]
        return Trace(sizes, self.kinds, self.events, self.places)

    def without(self, phase: str) -> "Trace":
        dropped = {
            event
            for event, (name, _) in zip(self.events, self.places, strict=True)
            if event >= 0 and name == phase
        }
        kept = [i for i, event in enumerate(self.events) if max(event, ~event) not in dropped]
        return Trace(self.sizes, self.kinds, [self.events[i] for i in kept], [self.places[i] for i in kept])


@dataclass(frozen=True)
class Peak:
    bytes: int
    phase: str
    operator: str
    parts: dict[str, int]


def alive(events: list[int]) -> Iterator[int]:
    yield from sorted({e for e in events if e >= 0} - {~e for e in events if e < 0})


def rounded(size: int, block: int) -> int:
    """The next multiple of `block`, at least one."""
    return max(block, -(-size // block) * block) if block > 1 else size
