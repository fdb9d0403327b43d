"""What keeps a process inside its lease: an allocator's cap on a CUDA card, the byte counter on the virtual one.

A lease pays for all that a process has on the card: the CUDA context (`overhead`) and what its allocators take (`cap`). On a CUDA
card torch's allocator and, by rapids.py, RMM's are capped; allocators that know of neither are named by `Cap.outside`. The virtual
card has no context, and counts bytes only where it was asked to (`card.count`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from overnight.errors import OutOfMemory
from overnight.gpu.device import Card

MIB = 1 << 20
NEAR = 0.95  # of the cap: a peak above it may have been held down by the cap, so it says little of what the step would like


class Meter(Protocol):
    """What an allocator says of itself, in bytes."""

    def use(self) -> int: ...
    def peak(self) -> int: ...
    def refused(self) -> int:
        """How many times out of memory was met, caught or not."""
        ...


class Nothing:
    """The meter of a card that counts nothing."""

    def use(self) -> int:
        return 0

    def peak(self) -> int:
        return 0

    def refused(self) -> int:
        return 0


@dataclass
class Cap:
    """What of a lease its holder's allocators may take (MiB), and what they took.

    overhead_mib: the CUDA context's part of the lease; 0 on the virtual card.
    """

    lease_mib: int
    cap_mib: int
    overhead_mib: int = 0
    meter: Meter = field(default_factory=Nothing)
    scope: AbstractContextManager[Any] = field(default_factory=nullcontext)  # to be open while the step's body runs

    def peak_mib(self) -> float:
        """The most that the allocators held, without the context: what `cap_mib` bounds. 0 where nothing counts."""
        return self.meter.peak() / MIB

    def use_mib(self) -> float:
        """What the process has of the card now, with the context: what `lease_mib` bounds."""
        return self.meter.use() / MIB + self.overhead_mib

    @property
    def met(self) -> bool:
        """Whether out of memory was met (and perhaps overcome), or the peak came near the cap."""
        return bool(self.meter.refused()) or self.peak_mib() >= NEAR * self.cap_mib

    def outside(self) -> list[str]:
        """Libraries this process has loaded that take the card's memory past the cap."""
        return []

    @contextmanager
    def body(self) -> Iterator[None]:
        """Where the step's body runs. Out of memory is raised as OutOfMemory, with what the lease was and what to do."""
        try:
            with self.scope:
                yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(self.explain(error)) from error

    def explain(self, error: BaseException) -> str:
        """What happened, and what to do about it."""
        context = f" after {self.overhead_mib} MiB for the CUDA context" if self.overhead_mib else ""
        return (
            f"{' '.join(str(error).split())[:300]}. The step holds {self.lease_mib} MiB of the card, which let its tensors have {self.cap_mib} MiB"
            f"{context}; they came to {self.peak_mib():.0f} MiB at most. Lower `micro_batch` (the result stays the same) or `batch`, "
            "or let the step ask for more (`vram_mib`)"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the card's memory, not the host's, was too small."""
    if isinstance(error, MemoryError):  # RMM's is one of those
        return "rmm" in str(error).lower()
    return isinstance(error, OutOfMemory) or type(error).__name__ == "OutOfMemoryError"


class Leased(Protocol):
    """What a cap needs to know of a lease."""

    @property
    def mib(self) -> int: ...


def apply(lease: Leased, card: Card, count: bool = False) -> Cap:  # noqa: ARG001 - the caps themselves follow
    """Keep this process inside its lease; to be called once, before anything takes memory of the card."""
    return Cap(lease.mib, lease.mib)
