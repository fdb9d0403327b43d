"""Running out of memory: how it is recognised, what is undone, and slices of an evaluation that get smaller by themselves."""

import gc
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from overnight.gpu.out_of_memory import is_out_of_memory

Result = TypeVar("Result")
SLICE = 512  # samples of an evaluation, unless its author says otherwise
KINDS = (
    torch.OutOfMemoryError,
    MemoryError,
    RuntimeError,
)  # what may be out of memory: libraries below torch raise the last
FILL = 0.9  # of the lease that may be filled on purpose: at 95 % it would count as too small


def brief(error: BaseException) -> str:
    """What an error says, without its stack: whoever keeps the error keeps every tensor of the frames it went through."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def free() -> None:
    """Give back what nothing refers to any more: cycles of the autograd graph, and the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def room_bytes(budget_mib: int | None, device: torch.device) -> float:
    """What training leaves of the lease on a CUDA card, some of it kept back for steps that take more than those before."""
    held = torch.cuda.memory_reserved(device)
    bound = budget_mib << 20 if budget_mib else torch.cuda.mem_get_info(device)[0] + held
    return FILL * bound - torch.cuda.max_memory_reserved(device)


def random_state(device: torch.device) -> list[Tensor]:
    """Of torch's global generators: the host's, and the card's."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """What random_state gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def _host_generators() -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """How to get and set the global random states of the host beside torch's."""
    numpy: Any = sys.modules.get("numpy.random")
    return [(random.getstate, random.setstate)] + ([(numpy.get_state, numpy.set_state)] if numpy else [])


class Undo:
    """What a forward pass changes beside gradients: the model's buffers (running statistics) and the random state.

    Buffers are known by module and name, as some are updated by assignment. Python's and numpy's generators are slow to read: after the
    first step only those are remembered that it drew from.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.places = [(module._buffers, name) for module in model.modules() for name in module._buffers]
        self._hold()
        self.device, self.random = device, random_state(device)
        self.generators = _host_generators()
        self.drawn = [get() for get, _ in self.generators]

    def _hold(self) -> None:
        """Make room for a copy of every buffer there is now."""
        self.held = [buffers[name] for buffers, name in self.places]
        live = list({id(buffer): buffer for buffer in self.held if buffer is not None}.values())
        kinds = {buffer.dtype for buffer in live}
        self.groups = [
            [b for b in live if b.dtype == kind] for kind in kinds
        ]  # a group of one dtype is one kernel on a card
        self.saved = [[b.detach().clone() for b in group] for group in self.groups]

    @torch.no_grad()
    def mark(self) -> None:
        """Remember how things are now."""
        if all(map(is_, self.held, [buffers[name] for buffers, name in self.places])):
            for saved, live in zip(self.saved, self.groups, strict=True):
                torch._foreach_copy_(saved, live)
        else:
            self._hold()
        self.random = random_state(self.device)
        self.drawn = [get() for get, _ in self.generators]

    @torch.no_grad()
    def back(self) -> None:
        """Make it so again."""
        for (buffers, name), buffer in zip(self.places, self.held, strict=True):
            buffers[name] = buffer
        for saved, live in zip(self.saved, self.groups, strict=True):
            torch._foreach_copy_(live, saved)
        set_random_state(self.random, self.device)
        for (_, put), state in zip(self.generators, self.drawn, strict=True):
            put(state)

    def drew(self) -> bool:
        """Whether something random was drawn since the mark; the host's generators that were not drawn from are forgotten."""
        now = [
            pickle.dumps(get()) != pickle.dumps(state)
            for (get, _), state in zip(self.generators, self.drawn, strict=True)
        ]
        self.generators = [generator for generator, drew in zip(self.generators, now, strict=True) if drew]
        self.drawn = [state for state, drew in zip(self.drawn, now, strict=True) if drew]
        return bool(self.drawn) or not all(
            torch.equal(a, b) for a, b in zip(self.random, random_state(self.device), strict=True)
        )


@dataclass
class Slices:
    """How many samples an evaluation may look at at once; 0: as many as it likes."""

    limit: int = 0
    used: bool = False
    faults: int = 0

    def halve(self, size: int) -> bool:
        """After a failure with `size` samples; False when there is nothing left to halve."""
        self.faults += 1
        self.limit = max(1, size // 2)
        return size > 1


_SLICES: ContextVar[Slices | None] = ContextVar("slices", default=None)


@contextmanager
def sliced(slices: Slices) -> Iterator[None]:
    """Inside, in_slices remembers in `slices` which size was small enough."""
    token = _SLICES.set(slices)
    try:
        yield
    finally:
        _SLICES.reset(token)


def in_slices(
    function: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device, size: int
) -> list[Tensor]:
    """Outputs for all inputs, a slice at a time, fetched to the host; where memory runs out, the slice is halved and done again."""
    slices = _SLICES.get() or Slices()
    slices.used = True
    outputs, start, tried = list[Tensor](), 0, False
    while start < len(inputs):
        step = min(size, slices.limit or size, len(inputs) - start)
        try:
            outputs.append(function(inputs[start : start + step].to(device)).cpu())
        except KINDS as error:
            if not is_out_of_memory(error) or (step == 1 and tried):
                raise
        else:
            start, tried = start + step, False
            continue
        tried = not slices.halve(
            step
        )  # one sample is tried twice: the first failure may have been a stranger's
        free()
    return outputs


def evaluated(score: Callable[[], Result], slices: Slices) -> Result:
    """What `score` gives, if need be in smaller slices; the error is raised when those are of one sample, or it does not use any."""
    tried = False
    while True:
        try:
            with sliced(slices):
                return score()
        except KINDS as error:
            if not is_out_of_memory(error) or tried:
                raise
        tried = not (slices.used and slices.halve(slices.limit or SLICE))
        slices.faults += not slices.used
        free()
