"""The step's own formula for its memory, from values and shapes alone."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from overnight.gpu.card import Card

MIB = 2**20


@dataclass(frozen=True)
class Formula:
    """MiB of the card between two edges, without the context.

    needs: the package that computes on the card; without it, or without a CUDA card, the step runs on the
    processor. host_mib: of the machine's own memory. unknown: why there are no edges. why: how they add up.
    least: MiB without which the step is refused; 0: it may work with less. advice: (MiB that may be granted)
    -> what to say where `high` is more.
    """

    low: float = 0.0
    high: float = 0.0
    needs: str = ""
    host_mib: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    why: str = ""
    unknown: str = ""
    least: float = 0.0
    advice: Callable[[float], str] | None = None

    @classmethod
    def of(cls, found: Any) -> "Formula | None":
        """Build it from what a step's `peak` returns."""
        return found if found is None or isinstance(found, cls) else cls(*found)

    def none_of(self, card: Card) -> bool:
        if self.needs:
            return card.virtual or importlib.util.find_spec(self.needs) is None
        return not self.high and not self.unknown
