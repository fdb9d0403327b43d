"""Where the driver pages memory of the card to the host instead of refusing it (Windows, WSL2), only time tells: steps get slow at once."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch

SLOW = 3.0  # times the usual
STEPS = 5  # one after another: a single one may have waited for a disk
USUAL = 50  # steps whose median is the usual
FREE, FULL = 0.03, 0.95  # of the card, and of the lease
LEAST = 10  # before which nothing is usual: the first steps choose kernels


def pages_silently(version: Path = Path("/proc/version")) -> bool:
    """Whether this is Linux on Windows, whose driver moves memory of the card to the host when the card is full."""
    try:
        return "microsoft" in version.read_text(errors="replace").lower()
    except OSError:
        return False


def at_ceiling(budget_mib: int | None, device: torch.device) -> bool:
    """Whether the whole card is full, or what this process may hold of it is."""
    free, total = torch.cuda.mem_get_info(device)
    return free < FREE * total or bool(
        budget_mib and torch.cuda.memory_reserved(device) >= FULL * (budget_mib << 20)
    )


class Sentinel:
    """Looks at the time that each optimizer step takes. full: whether memory is at its ceiling, asked only when steps have become slow."""

    def __init__(self, full: Callable[[], bool], clock: Callable[[], float] = time.perf_counter) -> None:
        self.full, self.clock = full, clock
        self.usual, self.slow = deque[float](maxlen=USUAL), 0
        self.last: float | None = None

    def pause(self) -> None:
        """What comes now is no training (an evaluation, a checkpoint): it does not count."""
        self.last = None

    def step(self) -> str:
        """A step has ended; why to stop, empty while all is well."""
        before, self.last = self.last, self.clock()
        if before is None:
            return ""
        took = self.last - before
        usual = statistics.median(self.usual) if len(self.usual) >= LEAST else None
        self.slow = self.slow + 1 if usual is not None and took > SLOW * usual else 0
        if not self.slow:
            self.usual.append(took)
        if self.slow < STEPS or usual is None or not self.full():
            return ""
        return (
            f"{STEPS} optimizer steps in a row took {took / usual:.1f} times as long as usual ({1e3 * took:.0f} ms, before {1e3 * usual:.0f}) "
            "with the card's memory full: the driver moves memory to the host instead of refusing it"
        )
