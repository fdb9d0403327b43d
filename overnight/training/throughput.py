"""How fast a training is, and steps that paging makes slow."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from overnight.errors import FAILURES
from overnight.training.batches import Batch, count

SLOW = 3.0  # times the usual duration of a step
WINDOW_STEPS = 10  # between two waits for the card
SLOW_WINDOWS = 2  # in a row: a single one may have waited for a disk
USUAL_WINDOWS = 20  # whose median is the usual duration
LEAST_WINDOWS = 3  # before there is a usual duration: the first steps choose kernels
FREE = 0.03  # of the card: with less, it is full
FULL = 0.95  # of the lease: with more, it is full


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry

        self._formulas = flop_registry
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch wraps the handler in code that loads a compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self._formulas.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            with suppress(*FAILURES):  # shapes that a formula does not know are no reason to stop
                self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


class ThroughputMeter:
    """Samples per second; waits for a card before it reads the clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.began = time.perf_counter()
        self.seen = 0

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Samples count when the next batch is asked for."""
        for batch in batches:
            yield batch
            self.seen += count(batch)

    def metrics(self, gflop: float, tokens: int = 0) -> dict[str, float]:
        """gflop, tokens: of a sample, 0: not known. Empty if there was no sample."""
        if not self.seen:
            return {}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        rate = self.seen / (time.perf_counter() - self.began)
        found = {"samples_per_s": rate, "tflops": rate * gflop / 1e3, "tokens_per_s": rate * tokens}
        return {f"train/{name}": value for name, value in found.items() if value}


def memory_is_full(budget_mib: int | None, device: torch.device) -> bool:
    free, total = torch.cuda.mem_get_info(device)
    return free < FREE * total or bool(
        budget_mib and torch.cuda.memory_reserved(device) >= FULL * (budget_mib << 20)
    )


class PagingDetector:
    """Recognises optimizer steps that become slow at once while memory is full.

    It compares windows between two waits for the card: launches alone say nothing of its speed. full: asked
    only after SLOW_WINDOWS slow windows.
    """

    def __init__(
        self,
        full: Callable[[], bool],
        synchronize: Callable[[], object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.full = full
        self.synchronize = synchronize
        self.clock = clock
        self.restart(None)

    def restart(self, speed: object) -> None:
        self.speed = speed
        self.usual = deque[float](maxlen=USUAL_WINDOWS)
        self.slow = 0
        self.steps = 0
        self.spent_s = 0.0
        self.began: float | None = None

    def pause(self) -> None:
        """Count no time until the next step has ended."""
        if self.began is not None:
            self.synchronize()
            self.spent_s += self.clock() - self.began
        self.began = None

    def step(self, speed: object) -> str:
        """At the end of each; returns what is the case, empty while there is no paging.

        speed: what the loop itself changes the duration of steps by.
        """
        if speed != self.speed:
            self.restart(speed)
        if self.began is None:
            self.synchronize()
            self.began = self.clock()
            return ""
        self.steps += 1
        if self.steps < WINDOW_STEPS:
            return ""
        self.pause()
        took_s = self.spent_s / self.steps
        self.began = self.clock()
        self.steps = 0
        self.spent_s = 0.0
        return self._compare(took_s)

    def _compare(self, took_s: float) -> str:
        usual = statistics.median(self.usual) if len(self.usual) >= LEAST_WINDOWS else math.inf
        self.slow = self.slow + 1 if took_s > SLOW * usual else 0
        if not self.slow:
            self.usual.append(took_s)
        if self.slow < SLOW_WINDOWS or not self.full():
            return ""
        return (
            f"{self.slow * WINDOW_STEPS} optimizer steps took {took_s / usual:.1f} times as long as usual "
            f"({1e3 * took_s:.0f} ms, before {1e3 * usual:.0f}) with the card's memory full: "
            "the driver moves memory to the host instead of refusing it"
        )
