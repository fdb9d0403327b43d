"""Out of memory changes the micro-batch, never the science: the step is undone and done again in smaller parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from overnight.errors import BadInput, DoesNotFit
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.run import Run
from overnight.training.acceleration import FAILURES, Compiled
from overnight.training.batches import Batch, count, versions
from overnight.training.out_of_memory import KINDS, Undo, brief, free
from overnight.training.precision import Precision
from overnight.training.throughput import Flops
from overnight.training.validation import check_batch, check_loss, seems_mean

if TYPE_CHECKING:
    from overnight.training.recipe import Recipe

GROW_AFTER = (
    100  # optimizer steps without a failure before a larger micro-batch is tried; doubled when that fails
)


@dataclass
class Memory:
    """The micro-batch in use and what led to it; a part of the checkpoint, carried over when a training starts over."""

    size: int
    largest: int  # what growing back ends at
    faults: int = 0
    last_try: bool = False  # the smallest size has failed once
    good: int = 0  # optimizer steps since the last change
    patience: int = GROW_AFTER
    grown: bool = False
    stuck: int = -1  # the optimizer step inside which memory ran out with the smallest size
    least: int = 1  # samples that the model takes at once

    def done(self, grow: bool) -> None:
        """An optimizer step went well."""
        self.last_try, self.good = False, self.good + 1
        if grow and self.size < self.largest and self.good >= self.patience:
            self.size, self.good, self.grown = min(self.largest, self.size * 2), 0, True

    def failed(self, smaller: int | None) -> bool:
        """A step failed; whether to try again, with `smaller` samples at once, or once more as before when there is no less."""
        self.patience *= 2 if self.grown else 1
        self.faults, self.good, self.grown = self.faults + 1, 0, False
        again = smaller is not None or not self.last_try
        self.last_try = smaller is None
        self.size = smaller or self.size
        return again


@dataclass
class Sums:
    """Of a loss over the samples of an effective batch: on the card as long as nobody reads them.

    averaged: the gradients are those of the loss per sample already, as they can be where the whole batch is computed at once; else
    they are sums, too, and the optimizer's step divides them.
    """

    loss: float | Tensor = 0.0
    count: float | Tensor = 0.0
    averaged: bool = False
    parts: int = 0

    def add(self, loss: Tensor, counted: float | Tensor) -> None:
        """The sums of one more micro-batch."""
        self.loss, self.count, self.parts = self.loss + _value(loss), self.count + counted, self.parts + 1

    @property
    def divisor(self) -> float | Tensor:
        """The count; 1 where nothing was counted."""
        return divisor(self.count)

    def mean(self) -> float:
        """Loss per sample; waits for the card."""
        return float(self.loss) / divisor(float(self.count))


@overload
def divisor(count: float) -> float: ...
@overload
def divisor(count: float | Tensor) -> float | Tensor: ...
def divisor(count: float | Tensor) -> float | Tensor:
    """What the sum over so many is divided by: counts may be weights, so that few of them are less than 1; where there is nothing, 1."""
    if isinstance(count, Tensor):
        return torch.where(count <= 0, 1, count)
    return 1.0 if count <= 0 else count


def _value(tensor: Tensor | float) -> float | Tensor:
    """As a number where that costs nothing, else left on the card."""
    if not isinstance(tensor, Tensor):
        return float(tensor)
    return float(tensor.detach()) if tensor.device.type == "cpu" else tensor.detach().double()


class Elastic:
    """Gradients of an effective batch in as many micro-batches as the memory asks for."""

    def __init__(
        self, recipe: "Recipe[Any]", run: Run, model: nn.Module, precision: Precision, memory: Memory
    ) -> None:
        self.recipe, self.run, self.model, self.precision, self.memory = recipe, run, model, precision, memory
        self.device = torch.device(run.device)
        self.parameters = list(model.parameters())
        self.undo = Undo(model, self.device)
        self.effects: list[str] | None = None  # what splitting changes; known after the first step
        self.compiled = Compiled(model, recipe.params.compile, self.device)
        self.gflop: float | None = (
            None  # of one sample, forward and backward; known after the first micro-batch
        )
        self.spare: Callable[[], bool] = lambda: False  # gives back what of the card is held for speed alone
        self.told = 0  # the size that was logged last
        self.before = list[int]()  # versions of the batch's tensors before the step
        self.alters = self.split_once = (
            False  # whether the loss works in place on its batch; whether a batch was ever split
        )
        run.micro_batch = memory.size

    def gradients(self, batch: Batch) -> Sums:
        """The gradients of the loss of the whole batch, in .grad (see Sums); raises DoesNotFit."""
        if self.effects is None:
            check_batch(batch)
        self.undo.mark()
        self.before = versions(batch)
        sums = self.surviving(lambda: self._attempt(batch), batch, lambda: self._back(batch))
        if self.effects is None:
            self.alters = versions(batch) != self.before
            self.effects = effects(self.model, self.recipe.couples, self.undo.drew())
            self.run.param(
                "elastic", f"splitting a batch changes {', '.join(self.effects)}" if self.effects else "exact"
            )
        if sums.parts > 1 and not self.split_once:
            self.split_once = True
            if said := seems_mean(sums.count, sums.parts, count(batch)):
                self.run.note(said)
        return sums

    def _back(self, batch: Batch) -> None:
        """Undo a failed try. Raises BadInput where it changed the batch, of which there is no copy."""
        self.undo.back()
        if changed := [
            name for name, old, now in zip(batch, self.before, versions(batch), strict=True) if old != now
        ]:
            raise BadInput(
                f"memory ran out, and the step cannot be done again: the loss has changed its batch in place ({', '.join(changed)}). "
                "Let it work on a copy: x = batch['x'] * 0.5 instead of batch['x'].mul_(0.5)"
            )

    def stepped(self) -> None:
        """The optimizer's step went well, too."""
        self.memory.done(self.recipe.params.grow)

    def surviving(self, attempt: Callable[[], Sums], batch: Batch, undo: Callable[[], None]) -> Sums:
        """What the attempt gives, after as many smaller ones as it takes."""
        while True:
            try:
                return attempt()
            except (*KINDS, ValueError) as error:
                alone = isinstance(error, ValueError) and self._leaves_one(batch)
                if not alone and not is_out_of_memory(error):
                    raise
                reason = brief(error)
            self._no_gradients()  # out here, where the error and the frames that it kept alive are gone
            undo()
            self.pair(reason) if alone else self.shrink(batch, reason)

    def _attempt(self, batch: Batch) -> Sums:
        """By the compiled model where there is one; where that fails for another reason than memory, by the plain one from now on."""
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
        self._back(batch)
        return self._accumulate(batch)

    def _accumulate(self, batch: Batch) -> Sums:
        sums = Sums()
        self._no_gradients()
        parts = self._cut(batch, self.memory.size)
        part, following = next(parts, None), next(parts, None)
        if part is None:
            raise BadInput(
                f"split gave nothing for a batch of {count(batch)} samples and micro-batches of {self.memory.size}: it yields parts"
            )
        sums.averaged = following is None and not self.precision.scales
        while part is not None:
            if self.gflop is None and count(part):
                with Flops() as flops:
                    self._add(sums, part)
                self.gflop = flops.total / count(part) / 1e9
            else:
                self._add(sums, part)
            part, following = following, next(parts, None)
        return sums

    def _add(self, sums: Sums, part: Batch) -> None:
        """A micro-batch, forward and backward."""
        with self.precision.cast():
            found = self.recipe.loss(self.model, self._moved(part))
        if self.effects is None:
            check_loss(found)
        loss, counted = found[0], _value(found[1])
        self.precision.backward(loss / divisor(counted) if sums.averaged else loss)
        sums.add(loss, counted)

    def _moved(self, part: Batch) -> Batch:
        """The micro-batch on the device; for a loss that works in place on it, a copy."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in part.items()}
        return (
            {name: t.clone() if t is part[name] else t for name, t in moved.items()} if self.alters else moved
        )

    def _cut(self, batch: Batch, size: int) -> Iterator[Batch]:
        """The micro-batches, of at most `size` samples unless the model refuses one alone: an odd one makes it three."""
        if self.memory.least > 1 and size <= 2:
            size = 2 + count(batch) % 2
        return self.recipe.split(batch, size)

    def _leaves_one(self, batch: Batch) -> bool:
        """Whether a sample is alone in its micro-batch that need not be."""
        return self.memory.least == 1 < count(batch) and 1 in map(count, self._cut(batch, self.memory.size))

    def pair(self, reason: str) -> None:
        """From now on no sample alone: the model refused it, as batch normalisation does."""
        self.memory.least, self.memory.size = 2, max(2, self.memory.size)
        self.run.micro_batch = self.memory.size
        self.run.note(f"the model refuses one sample alone: at least 2 at once from now on ({reason})")

    def _no_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def shrink(self, batch: Batch, reason: str) -> None:
        """Halve the micro-batch and say so; raises DoesNotFit when there is nothing left to halve."""
        self.run.out_of_memory += 1
        if self.spare():
            free()
            self.run.note(
                f"out of memory: the data leave the card, micro-batch {self.memory.size} as before ({reason})"
            )
            return
        sizes = [count(part) for part in self._cut(batch, self.memory.size)]
        used = max(sizes)
        smaller = max(self.memory.least, -(-used // 2))
        cut = sum(1 for _ in self._cut(batch, smaller)) > len(sizes)
        if not self.memory.failed(smaller if cut else None):
            raise DoesNotFit(
                too_large(used, cut or used == 1, self.run.budget_mib, reason, self.memory.least)
            )
        free()
        self.run.micro_batch = self.memory.size
        how = (
            f"goes on with {self.memory.size} at once"
            if cut
            else "tried once more, as there is nothing to split"
        )
        changes = f"; with that change: {', '.join(self.effects)}" if self.effects and cut else ""
        self.run.note(
            f"out of memory with {used} samples at once: {how}, effective batch as before{changes} ({reason})"
        )

    def changed(self) -> bool:
        """Whether the micro-batch is another one than when this was last asked."""
        before, self.told = self.told, self.memory.size
        return before != self.told


def too_large(used: int, splits: bool, budget_mib: int | None, reason: str, least: int = 1) -> str:
    """Why nothing helps, and what would. least: samples that the model takes at once."""
    room = f"{budget_mib} MiB of the card" if budget_mib else "the memory there is"
    if least > 1 and used <= 3:
        return (
            f"{used} samples at a time do not fit {room}, and the model refuses one alone, as batch normalisation does: use a larger card, "
            f"a model without batch normalisation, a smaller one or smaller inputs, or precision bf16 ({reason})"
        )
    if splits:
        return f"one sample at a time does not fit {room}: use a smaller model or smaller inputs, or precision bf16, or ask for more ({reason})"
    what = "what this step computes at once" if used != 1 else "one sample"
    return f"{what} does not fit {room}, and it cannot be split (a whole graph): use fewer hidden values or layers, or ask for more ({reason})"


def effects(model: nn.Module, couples: str, drew: bool) -> list[str]:
    """What of a training depends on how a batch is split: what the model computes across its samples, and what it draws."""
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())
    found = ["batch normalisation (its statistics are those of a micro-batch)"] if norms else []
    found += ["random draws in the model or the loss (dropout, mixup)"] if drew else []
    return found + ([couples] if couples else [])
