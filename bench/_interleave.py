"""Several trainings that take turns, a few steps each: a slow second of the machine slows all of them.

Each runs in a thread of its own that waits while it is another's turn, so that one computes at a time, and
what the process takes meanwhile is charged to that one.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

Wait = Callable[[], None]
Work = Callable[[Wait], object]  # it calls what it is given wherever its turn may end


@dataclass
class Took:
    """Of each turn."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)


class Turns:
    """One work, and the two semaphores that hand it its turns."""

    def __init__(self, work: Work) -> None:
        self.took = Took()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.ended = ThreadPoolExecutor(1).submit(self._run, work)
        self.ended.add_done_callback(lambda _ended: self._back.release())

    def _run(self, work: Work) -> None:
        self._go.acquire()
        work(self._wait)

    def _wait(self) -> None:
        self._back.release()
        self._go.acquire()

    @property
    def over(self) -> bool:
        """Whether it has come to its end; raises what it raised."""
        return self.ended.done() and self.ended.result() is None

    def turn(self) -> None:
        """Until it waits again, or has ended."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._go.release()
        self._back.acquire()
        self.took.cpu_s.append(time.process_time() - cpu)
        self.took.wall_s.append(time.perf_counter() - wall)


def played(works: Mapping[str, Work]) -> dict[str, Took]:
    """All of them to their ends; who comes first changes from round to round."""
    arms = {name: Turns(work) for name, work in works.items()}
    forward = True
    while any(not arm.over for arm in arms.values()):
        for arm in list(arms.values())[:: 1 if forward else -1]:
            if not arm.over:
                arm.turn()
        forward = not forward
    return {name: arm.took for name, arm in arms.items()}


def every(steps: int, wait: Wait, first: bool) -> Wait:
    """To be called once a step, at its beginning (first) or its end: a turn ends after so many."""
    called = 0

    def step() -> None:
        nonlocal called
        called += 1
        if (called - first) % steps == 0 and called > first:
            wait()

    return step


def ratio(ours: "np.ndarray", theirs: "np.ndarray") -> tuple[float, float, float]:
    """Ratio of ours to theirs, with the 95 % interval of resampled rounds; each an array (rounds, turns).

    The medians, over the rounds, of each turn's ratio, weighted by what theirs takes at that turn: neighbours
    in time are compared, and the first and last turns, with fixed costs, count for their part of the whole.
    """
    weights = np.median(theirs, 0) / np.median(theirs, 0).sum()
    each = ours / theirs
    drawn = np.random.default_rng(0).integers(len(each), size=(2000, len(each)))
    found = np.sort(np.median(each[drawn], 1) @ weights)
    return float(np.median(each, 0) @ weights), float(found[50]), float(found[-51])
