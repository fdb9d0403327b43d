"""What a forward pass changes besides gradients: buffers of the model and random states."""

import random
from collections.abc import Callable
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overnight.errors import BadInput
from overnight.training.weights import TrainedWeights

Generator = tuple[Callable[[], Any], Callable[[Any], None]]  # get and set its state, in plain values


def generators(device: torch.device) -> list[Generator]:
    """Of torch on the host and the card, of Python and numpy."""
    found: list[Generator] = [(torch.get_rng_state, torch.set_rng_state)]
    if device.type == "cuda":
        set_state = partial(torch.cuda.set_rng_state, device=device)
        found.append((partial(torch.cuda.get_rng_state, device), set_state))
    return [*found, (random.getstate, random.setstate), (_numpy_state, np.random.set_state)]


def _numpy_state() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    return (state[0], state[1].tolist(), *state[2:])


class StepSnapshot:
    """Buffers and random states before an optimizer step.

    Buffers are known by module and name, because some are updated by assignment. Python's and numpy's
    generators are slow to read: after the first step only those that it drew from are saved.
    """

    def __init__(self, weights: TrainedWeights, device: torch.device) -> None:
        self.weights = weights
        self.slots = [(m._buffers, name) for m in weights.model.modules() for name in m._buffers]
        self.generators = generators(device)
        self._copy_buffers()
        self.random = [get() for get, _ in self.generators]

    def _copy_buffers(self) -> None:
        """Those not frozen, grouped by dtype: one group is one kernel on a card."""
        self.frozen = self.weights.frozen_buffers()
        self.buffers = [buffers[name] for buffers, name in self.slots]
        live = {id(b): b for b in self.buffers if b is not None and id(b) not in self.frozen}.values()
        dtypes = {buffer.dtype for buffer in live}
        self.groups = [[buffer for buffer in live if buffer.dtype == dtype] for dtype in dtypes]
        self.copies = [[buffer.detach().clone() for buffer in group] for group in self.groups]

    @torch.no_grad()
    def save(self) -> None:
        same = all(map(is_, self.buffers, [buffers[name] for buffers, name in self.slots]))
        if same and self.frozen == self.weights.frozen_buffers():
            for copies, group in zip(self.copies, self.groups, strict=True):
                torch._foreach_copy_(copies, group)
        else:
            self._copy_buffers()
        self.random = [get() for get, _ in self.generators]

    @torch.no_grad()
    def restore(self) -> None:
        """Raises BadInput if a buffer has changed that is not copied."""
        if self.frozen != self.weights.frozen_buffers():
            raise BadInput(
                "memory ran out, and the step cannot be done again: the model has written for the first "
                "time to a buffer of integers of 1 MiB or more, which is taken for frozen. "
                "Use a smaller micro_batch"
            )
        for (buffers, name), buffer in zip(self.slots, self.buffers, strict=True):
            buffers[name] = buffer
        for copies, group in zip(self.copies, self.groups, strict=True):
            torch._foreach_copy_(group, copies)
        for (_, set_state), state in zip(self.generators, self.random, strict=True):
            set_state(state)

    def used_rng(self) -> bool:
        """Whether a generator was drawn from; Python's and numpy's that were not are no longer saved."""
        drawn = [
            not bool(torch.equal(get(), state) if isinstance(state, Tensor) else get() == state)
            for (get, _), state in zip(self.generators, self.random, strict=True)
        ]
        kept = [new or isinstance(state, Tensor) for new, state in zip(drawn, self.random, strict=True)]
        self.generators = [generator for generator, keep in zip(self.generators, kept, strict=True) if keep]
        self.random = [state for state, keep in zip(self.random, kept, strict=True) if keep]
        return any(drawn)
