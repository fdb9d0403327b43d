"""Gradient accumulation: out of memory changes the micro-batch, never the batch that the optimizer sees.

The gradients stay those of the whole batch, but for what `split_effects` names (batch norm, dropout).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from overnight.errors import BadInput, DoesNotFit
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.run import Run
from overnight.training.acceleration import FAILURES, Compiled, Precision
from overnight.training.batches import Batch, count, versions
from overnight.training.out_of_memory import KINDS, StepSnapshot, brief, does_not_fit, free
from overnight.training.recipe import Recipe, check_batch, check_loss, mean_warning
from overnight.training.throughput import Flops

GROW_AFTER = 100  # good optimizer steps before a larger micro-batch is tried; doubled when that fails


@dataclass
class MicroBatchState:
    """The micro-batch in use and what led to it; a part of the checkpoint.

    size: samples at once; largest: the limit when growing; least: the fewest that the model takes; faults:
    times memory ran out; last_try: the smallest size has failed once; good: optimizer steps since the last
    change; patience: how many before it grows; grown: the last change was an increase; stuck: the optimizer
    step inside which memory ran out with the smallest size.
    """

    size: int
    largest: int
    faults: int = 0
    last_try: bool = False
    good: int = 0
    patience: int = GROW_AFTER
    grown: bool = False
    stuck: int = -1
    least: int = 1

    def succeeded(self, grow: bool) -> None:
        """Count an optimizer step without a failure; with `grow`, double the size when it is time."""
        self.last_try = False
        self.good += 1
        if grow and self.size < self.largest and self.good >= self.patience:
            self.size = min(self.largest, self.size * 2)
            self.good = 0
            self.grown = True

    def failed(self, smaller: int | None) -> bool:
        """Take the smaller size, if any (None: keep it); whether to try again (the smallest once more)."""
        self.patience *= 2 if self.grown else 1
        self.faults += 1
        self.good = 0
        self.grown = False
        again = smaller is not None or not self.last_try
        self.last_try = smaller is None
        self.size = smaller or self.size
        return again


@dataclass
class LossSum:
    """The loss summed over the samples of an effective batch, and their count.

    Both stay on the card until they are read.
    averaged: the gradients are of the loss per sample, because the whole batch was computed at once;
    otherwise they are sums, and the optimizer's step divides them. parts: how many micro-batches.
    """

    total: float | Tensor = 0.0
    count: float | Tensor = 0.0
    averaged: bool = False
    parts: int = 0

    def add(self, loss: Tensor, counted: float | Tensor) -> None:
        """Add one micro-batch."""
        self.total = self.total + _detached(loss)
        self.count = self.count + counted
        self.parts += 1

    @property
    def divisor(self) -> float | Tensor:
        """The count; 1 where nothing was counted."""
        return divisor(self.count)

    def mean(self) -> float:
        """Loss per sample; waits for the card."""
        return float(self.total) / divisor(float(self.count))


@overload
def divisor(count: float) -> float: ...
@overload
def divisor(count: float | Tensor) -> float | Tensor: ...
def divisor(count: float | Tensor) -> float | Tensor:
    """The count, 1 if it is 0. Counts may be sums of weights, so that those below 1 are valid."""
    if isinstance(count, Tensor):
        return torch.where(count <= 0, 1, count)
    return 1.0 if count <= 0 else count


def _detached(value: Tensor | float) -> float | Tensor:
    """As a number if it is on the host, otherwise as a tensor that needs no wait for the card."""
    if not isinstance(value, Tensor):
        return float(value)
    return float(value.detach()) if value.device.type == "cpu" else value.detach().double()


class GradientAccumulation:
    """Computes the gradients of an effective batch in as many micro-batches as the memory requires.

    split_effects: what splitting a batch changes, known after the first step; gflop: of one sample, forward
    and backward, known after the first micro-batch; free_cache: frees memory of the card that only saves
    time, False if there is none.
    """

    def __init__(
        self, recipe: Recipe[Any], run: Run, model: nn.Module, precision: Precision, micro: MicroBatchState
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.model = model
        self.precision = precision
        self.micro = micro
        self.device = torch.device(run.device)
        self.parameters = list(model.parameters())
        self.snapshot = StepSnapshot(model, self.device)
        self.split_effects: list[str] | None = None
        self.compiled = Compiled(model, recipe.params.compile, self.device)
        self.gflop: float | None = None
        self.free_cache: Callable[[], bool] = lambda: False
        self.logged_size = 0
        self.versions = list[int]()  # of the batch's tensors before the step
        self.changes_batch = False  # whether the loss works in place on its batch
        self.was_split = False  # whether any batch was
        run.micro_batch = micro.size

    def gradients(self, batch: Batch) -> LossSum:
        """Gradients of the loss of the whole batch, in .grad (see LossSum). Raises DoesNotFit, BadInput."""
        first = self.split_effects is None
        if first:
            check_batch(batch)
        self.snapshot.save()
        self.versions = versions(batch)
        loss = self.retry_on_oom(lambda: self._attempt(batch), batch)
        if first:
            self.changes_batch = versions(batch) != self.versions
            self.split_effects = split_effects(
                self.model, self.recipe.batch_dependent_loss, self.snapshot.used_rng()
            )
            effects = ", ".join(self.split_effects)
            self.run.param("elastic", f"splitting a batch changes {effects}" if effects else "exact")
        if loss.parts > 1 and not self.was_split:
            self.was_split = True
            warning = mean_warning(loss.count, loss.parts, count(batch))
            if warning:
                self.run.note(warning)
        return loss

    def retry_on_oom(self, attempt: Callable[[], LossSum], batch: Batch) -> LossSum:
        """Repeat the attempt with smaller micro-batches until it fits, undoing each failure."""
        while True:
            try:
                return attempt()
            except (*KINDS, ValueError) as error:
                alone = isinstance(error, ValueError) and self._leaves_one(batch)
                if not alone and not is_out_of_memory(error):
                    raise
                reason = brief(error)
            # outside the handler, where the error and the frames that it kept alive are gone
            self._clear_gradients()
            self._undo(batch)
            if alone:
                self._take_two(reason)
            else:
                self.shrink(batch, reason)

    def _undo(self, batch: Batch) -> None:
        """Undo a failed try. Raises BadInput if it changed the batch, of which there is no copy."""
        self.snapshot.restore()
        now = versions(batch)
        changed = [name for name, old, new in zip(batch, self.versions, now, strict=True) if old != new]
        if changed:
            raise BadInput(
                "memory ran out, and the step cannot be done again: the loss has changed its batch in place "
                f"({', '.join(changed)}). Let it work on a copy: "
                "x = batch['x'] * 0.5 instead of batch['x'].mul_(0.5)"
            )

    def stepped(self) -> None:
        """Record that the optimizer's step went well, too."""
        self.micro.succeeded(self.recipe.params.grow)

    def _attempt(self, batch: Batch) -> LossSum:
        """Run the compiled model; if it fails for another reason than memory, the plain one from now on."""
        if self.compiled.call is None:
            return self._accumulate(batch)
        try:
            with self.compiled.on():
                return self._accumulate(batch)
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            reason = brief(error)
        self.compiled.give_up(reason)
        self.run.note(f"goes on without compiling: {reason}")
        self._undo(batch)
        return self._accumulate(batch)

    def _accumulate(self, batch: Batch) -> LossSum:
        loss = LossSum()
        self._clear_gradients()
        parts = self._split(batch, self.micro.size)
        part = next(parts, None)
        following = next(parts, None)
        if part is None:
            raise BadInput(
                f"micro_batches gave nothing for a batch of {count(batch)} samples and "
                f"micro-batches of {self.micro.size}: it yields parts"
            )
        loss.averaged = following is None and not self.precision.scales
        while part is not None:
            if self.gflop is None and count(part):
                with Flops() as flops:
                    self._forward_backward(loss, part)
                self.gflop = flops.total / count(part) / 1e9
            else:
                self._forward_backward(loss, part)
            part = following
            following = next(parts, None)
        return loss

    def _forward_backward(self, loss: LossSum, part: Batch) -> None:
        with self.precision.cast():
            returned = self.recipe.loss(self.model, self._moved(part))
        if self.split_effects is None:
            check_loss(returned)
        summed = returned[0]
        counted = _detached(returned[1])
        self.precision.backward(summed / divisor(counted) if loss.averaged else summed)
        loss.add(summed, counted)

    def _moved(self, part: Batch) -> Batch:
        """The micro-batch on the device; a copy for a loss that works in place on it."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in part.items()}
        if not self.changes_batch:
            return moved
        return {name: t.clone() if t is part[name] else t for name, t in moved.items()}

    def _split(self, batch: Batch, size: int) -> Iterator[Batch]:
        """Micro-batches of at most `size`; if the model refuses one sample, of 2, or 3 in an odd batch."""
        if self.micro.least > 1 and size <= 2:
            size = 2 + count(batch) % 2
        return self.recipe.micro_batches(batch, size)

    def _leaves_one(self, batch: Batch) -> bool:
        """Whether a sample is alone in its micro-batch that need not be."""
        return self.micro.least == 1 < count(batch) and 1 in map(count, self._split(batch, self.micro.size))

    def _take_two(self, reason: str) -> None:
        """Leave no sample alone from now on: the model refused it, as batch normalisation does."""
        self.micro.least = 2
        self.micro.size = max(2, self.micro.size)
        self.run.micro_batch = self.micro.size
        self.run.note(f"the model refuses one sample alone: at least 2 at once from now on ({reason})")

    def _clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def shrink(self, batch: Batch, reason: str) -> None:
        """Free the cache, else halve the micro-batch, and note it. Raises DoesNotFit when it is minimal."""
        micro = self.micro
        self.run.out_of_memory += 1
        if self.free_cache():
            free()
            self.run.note(
                f"out of memory: the data leave the card, micro-batch {micro.size} as before ({reason})"
            )
            return
        sizes = [count(part) for part in self._split(batch, micro.size)]
        used = max(sizes)
        smaller = max(micro.least, -(-used // 2))
        can_split = sum(1 for _ in self._split(batch, smaller)) > len(sizes)
        if not micro.failed(smaller if can_split else None):
            raise DoesNotFit(
                does_not_fit(used, can_split or used == 1, self.run.budget_mib, reason, micro.least)
            )
        free()
        self.run.micro_batch = micro.size
        how = "tried once more, as there is nothing to split"
        if can_split:
            how = f"goes on with {micro.size} at once"
        changes = ""
        if self.split_effects and can_split:
            changes = f"; with that change: {', '.join(self.split_effects)}"
        self.run.note(
            f"out of memory with {used} samples at once: {how}, effective batch as before{changes} ({reason})"
        )

    def size_changed(self) -> bool:
        """Whether the micro-batch differs from the last call's."""
        before = self.logged_size
        self.logged_size = self.micro.size
        return before != self.micro.size


def split_effects(model: nn.Module, batch_dependent_loss: str, used_rng: bool) -> list[str]:
    """What of a training depends on how a batch is split: computations across samples, and random draws."""
    found = []
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()):
        found.append("batch normalisation (its statistics are those of a micro-batch)")
    if used_rng:
        found.append("random draws in the model or the loss (dropout, mixup)")
    if batch_dependent_loss:
        found.append(batch_dependent_loss)
    return found
