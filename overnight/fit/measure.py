"""The same program for real, on the CPU, under torch's own memory profiler: what a prediction is held against."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from overnight.fit.drive import drive
from overnight.training import Batch, Recipe


class RealWorld:
    """Everything is what it seems."""

    target = "cpu"

    def model(self, recipe: Recipe[Any]) -> nn.Module:
        """See World."""
        return recipe.build()

    def batch(self, recipe: Recipe[Any], size: int) -> Batch:
        """See World."""
        return recipe.example(size)

    def during(self, phase: str) -> AbstractContextManager[None]:
        """See World."""
        return torch.profiler.record_function(f"phase:{phase}")

    def settled(self, model: nn.Module, optimiser: torch.optim.Optimizer | None, copies: list[nn.Module]) -> None:
        """See World."""


def live_peak(recipe: Recipe[Any], micro: int) -> int:
    """The most bytes that torch's allocator had given out at once, by the profiler's own events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        drive(recipe, micro, RealWorld())
    return peak_of(profiler)


def peak_of(profiler: Any) -> int:
    """Adds up the allocations and releases that a profile holds."""
    found = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(found, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
