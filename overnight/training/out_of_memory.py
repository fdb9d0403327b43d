"""What the loop does when memory runs out: undo the failed try, free memory, and say what would help."""

import gc
import pickle
import random
import sys
from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

KINDS = (torch.OutOfMemoryError, MemoryError, RuntimeError)  # classes that is_out_of_memory may accept
FILL = 0.9  # of the lease that may be filled on purpose: at 95 % it would count as too small


def brief(error: BaseException) -> str:
    """The message alone: an error that is kept keeps every tensor of the frames in its traceback."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def free() -> None:
    """Collect cycles of the autograd graph, and empty the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def room_bytes(budget_mib: int | None, device: torch.device) -> float:
    """What training leaves of the lease on a CUDA card, less a reserve for steps that take more."""
    held = torch.cuda.memory_reserved(device)
    bound = budget_mib << 20 if budget_mib else torch.cuda.mem_get_info(device)[0] + held
    return FILL * bound - torch.cuda.max_memory_reserved(device)


def does_not_fit(used: int, can_split: bool, budget_mib: int | None, reason: str, least: int = 1) -> str:
    """The message when nothing smaller can be tried. used: samples at once; least: the fewest possible."""
    room = f"{budget_mib} MiB of the card" if budget_mib else "the memory there is"
    if least > 1 and used <= 3:
        return (
            f"{used} samples at a time do not fit {room}, and the model refuses one alone, "
            "as batch normalisation does: use a larger card, a model without batch normalisation, "
            "a smaller one or smaller inputs, "
            f"or precision bf16 ({reason})"
        )
    if can_split:
        return (
            f"one sample at a time does not fit {room}: use a smaller model or smaller inputs, "
            f"or precision bf16, or ask for more ({reason})"
        )
    what = "what this step computes at once" if used != 1 else "one sample"
    return (
        f"{what} does not fit {room}, and it cannot be split (a whole graph): "
        f"use fewer hidden values or layers, or ask for more ({reason})"
    )


def random_state(device: torch.device) -> list[Tensor]:
    """The states of torch's global generators: the host's, and the card's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Restore what random_state returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def _host_generators() -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """(get, set) of the global generators of the host other than torch's."""
    numpy: Any = sys.modules.get("numpy.random")
    return [(random.getstate, random.setstate)] + ([(numpy.get_state, numpy.set_state)] if numpy else [])


class StepSnapshot:
    """What a forward pass changes besides gradients: the model's buffers and the random states.

    Buffers are known by module and name, because some are updated by assignment. Python's and numpy's
    generators are slow to read: after the first step only those that it drew from are saved.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.slots = [(module._buffers, name) for module in model.modules() for name in module._buffers]
        self._copy_buffers()
        self.device = device
        self.random = random_state(device)
        self.generators = _host_generators()
        self.host_states = [get() for get, _ in self.generators]

    def _copy_buffers(self) -> None:
        """Allocate a copy of every buffer, grouped by dtype: one group is one kernel on a card."""
        self.buffers = [buffers[name] for buffers, name in self.slots]
        live = list({id(buffer): buffer for buffer in self.buffers if buffer is not None}.values())
        dtypes = {buffer.dtype for buffer in live}
        self.groups = [[buffer for buffer in live if buffer.dtype == dtype] for dtype in dtypes]
        self.copies = [[buffer.detach().clone() for buffer in group] for group in self.groups]

    @torch.no_grad()
    def save(self) -> None:
        """Take the snapshot."""
        if all(map(is_, self.buffers, [buffers[name] for buffers, name in self.slots])):
            for copies, group in zip(self.copies, self.groups, strict=True):
                torch._foreach_copy_(copies, group)
        else:
            self._copy_buffers()
        self.random = random_state(self.device)
        self.host_states = [get() for get, _ in self.generators]

    @torch.no_grad()
    def restore(self) -> None:
        """Return to the snapshot."""
        for (buffers, name), buffer in zip(self.slots, self.buffers, strict=True):
            buffers[name] = buffer
        for copies, group in zip(self.copies, self.groups, strict=True):
            torch._foreach_copy_(group, copies)
        set_random_state(self.random, self.device)
        for (_, set_state), state in zip(self.generators, self.host_states, strict=True):
            set_state(state)

    def used_rng(self) -> bool:
        """Whether a generator was drawn from; the host's that were not are no longer saved."""
        drawn = [
            ((get, set_state), state)
            for (get, set_state), state in zip(self.generators, self.host_states, strict=True)
            if pickle.dumps(get()) != pickle.dumps(state)
        ]
        self.generators = [generator for generator, _ in drawn]
        self.host_states = [state for _, state in drawn]
        now = random_state(self.device)
        return bool(drawn) or not all(torch.equal(a, b) for a, b in zip(self.random, now, strict=True))
