"""What a step uses while it runs: of the card ten times a second, of the machine every 5 s, under the names that MLflow knows."""

import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

from overnight.errors import DiskFull
from overnight.gpu import timeline
from overnight.gpu.device import Card
from overnight.gpu.gauge import Gauge, gauge, holders, outsiders, said_mib
from overnight.gpu.requests import Request
from overnight.run import Run

EVERY_S = 5.0
LOOK_S = 0.1
WORDS = 5  # looks, after which it is read again what the other holders say
CHANGE_MIB = 1.0  # of a holder's use that is worth telling the others
FOREIGN_MIB = 64  # of programs outside that is worth asking for their names


class Own(Protocol):
    """What this process knows of its own use (caps.Cap). overhead_mib: the CUDA context, which only `use_mib` counts."""

    @property
    def overhead_mib(self) -> int: ...
    def use_mib(self) -> float: ...
    def peak_mib(self) -> float: ...


class Held(Protocol):
    """The lease that is held."""

    @property
    def mib(self) -> int: ...
    def tell(self, **facts: Any) -> None: ...


@contextmanager
def watch(run: Run, card: Card, lease: Held | None = None, own: Own | None = None) -> Iterator["Monitor"]:
    """Watch the machine, and with a lease the card, while the block runs."""
    monitor = Monitor(run, card, lease, own)
    monitor.look()  # what the card held before the step took anything of it
    thread = threading.Thread(target=monitor.loop, daemon=True, name="monitor")
    thread.start()
    try:
        yield monitor
    finally:
        monitor.done.set()
        thread.join()
        monitor.close()


class Monitor:
    """Looks at the card (`look`) and says what it saw (`report`); `loop` does both at their times, in a thread of its own.

    device_peak_mib: the most that the card held beyond what other steps said and what was foreign at first, None while this step does
    not say what it uses; foreign_peak_mib: the most that programs without a lease held; cpu_s: what the thread took.
    """

    def __init__(
        self, run: Run, card: Card, lease: Held | None, own: Own | None, by: Gauge | None = None, words_every: int = WORDS
    ) -> None:
        self.run, self.card, self.lease, self.own, self.by = run, card, lease, own, by or gauge(card)
        self.done = threading.Event()
        self.device_peak_mib: float | None = None
