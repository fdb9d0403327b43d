"""One optimizer step: out of memory changes the micro-batch, never the batch that the optimizer sees.

The gradients stay those of the whole batch, but for what `split_effects` names.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from overnight.errors import BadInput, DoesNotFit, OutOfMemory, one_line
from overnight.gpu.out_of_memory import is_out_of_memory, is_paging, on_wsl
from overnight.run import Run
from overnight.training.acceleration import Compiled, failures
from overnight.training.batches import Batch, count, versions
from overnight.training.divergence import LossSum, detached, divisor
from overnight.training.out_of_memory import KINDS, does_not_fit, free, room_bytes
from overnight.training.plan import RollbackToCheckpoint
from overnight.training.prefetch import MIB, Prefetcher
from overnight.training.recipe import LOSS_CONTRACT, check_batch, check_loss
from overnight.training.snapshot import StepSnapshot
from overnight.training.state import TrainState
from overnight.training.throughput import Flops, PagingDetector, memory_is_full

Remedy = Callable[[Batch, str], None]  # what to change before a failed step is tried again: (batch, reason)


class GradientAccumulation:
    """gflop: of one sample, forward and backward, known after the first micro-batch."""

    def __init__(self, run: Run, state: TrainState[Any], loader: Prefetcher[Any]) -> None:
        self.run = run
        self.state = state
        self.recipe = state.recipe
        self.micro = state.plan.micro
        self.loader = loader
        self.snapshot = StepSnapshot(state.weights, state.device)
        self.compiled = Compiled(state.model, state.recipe.params.compile, state.device)
        self.gflop: float | None = None
        self.settled = False  # whether it is decided where the data lie and whether to compile
        self.effects: list[str] | None = None  # what splitting a batch changes
        self.changes_batch = False  # whether the loss works in place on its batch
        self.was_split = False  # whether any batch was
        self.paging: PagingDetector | None = None
        if state.device.type == "cuda" and on_wsl():
            full = partial(memory_is_full, run.budget_mib, state.device)
            self.paging = PagingDetector(full, partial(torch.cuda.synchronize, state.device))
        run.micro_batch = self.micro.size

    def gradients(self, batch: Batch) -> LossSum:
        """Of the loss of the whole batch, in .grad (see LossSum). Raises DoesNotFit, BadInput."""
        if self.effects is None:
            check_batch(batch)
        self.snapshot.save()
        before = versions(batch)
        while True:
            self._clear_gradients()
            try:
                with self.compiled.on():
                    loss = self.forward_backward(batch)
                break
            except failures() as error:
                remedy = self._remedy(error, batch)
                reason = one_line(error)
            # outside the handler, where the error and the frames that it kept alive are gone
            self._clear_gradients()
            self._undo(batch, before)
            remedy(batch, reason)
        if self.effects is None:
            self._observe(batch, before)
        if loss.parts > 1 and not self.was_split:
            self._warn_of_mean(loss, count(batch))
        self.state.monitor.pending.append(loss)
        return loss

    def forward_backward(self, batch: Batch) -> LossSum:
        state = self.state
        precision = state.precision
        parts = self._split(batch, self.micro.size)
        averaged = len(parts) == 1 and not precision.scales
        loss = LossSum(state.done, state.epoch, state.index, averaged)
        for part in parts:
            with Flops() if self.gflop is None and count(part) else nullcontext() as flops:
                with precision.cast():
                    returned = self.recipe.loss(state.model, self._moved(part))
                if self.effects is None:
                    check_loss(returned)
                counted = detached(returned[1])
                precision.backward(returned[0] / divisor(counted) if loss.averaged else returned[0])
            if flops is not None:
                self.gflop = flops.total / count(part) / 1e9
            loss.add(returned[0], counted)
            del returned  # what its graph holds is freed before the next forward pass
        return loss

    def optimizer_step(self, loss: LossSum, batch: Batch) -> None:
        """Update the weights; the first step decides what the next ones use.

        Memory that runs out inside leaves weights half updated: RollbackToCheckpoint. Where the driver pages
        memory silently the next step takes less; raises OutOfMemory where it cannot.
        """
        try:
            self.state.step(loss)
        except KINDS as error:
            if is_paging(error):
                self._restart_smaller(error, batch)
            if not is_out_of_memory(error):
                raise
            reason = one_line(error)
        else:
            self.micro.succeeded(self.recipe.params.grow)
            if not self.settled:
                self._settle(count(batch))
            self._check_paging(batch)
            return
        self.loader.move_back()
        self._shrink(batch, reason)
        raise RollbackToCheckpoint(
            f"out of memory in the optimizer's step ({reason})", self.state.plan, fresh=True
        )

    def _check_paging(self, batch: Batch) -> None:
        speed = (self.micro.size, self.loader.resident, self.compiled.why)
        slow = self.paging.step(speed) if self.paging else ""
        if slow:
            self._shrink(batch, slow)
            if speed[:2] == (self.micro.size, self.loader.resident):
                raise OutOfMemory(slow)

    def end_epoch(self) -> float:
        """What follows is no training step. Returns `gflop`, 0 where it is unknown."""
        if self.paging:
            self.paging.pause()
        return self.gflop or 0.0

    def _restart_smaller(self, error: Exception, batch: Batch) -> NoReturn:
        """Go on in a fresh process with half the micro-batch: after such an error this one has no card."""
        parts = self._split(batch, self.micro.size)
        smaller = max(self.micro.least, max(map(count, parts)) // 2)
        if not self.micro.failed(smaller if smaller < self.micro.size else None, self.state.done):
            raise OutOfMemory(one_line(error)) from error
        raise RollbackToCheckpoint(one_line(error), self.state.plan, fresh=True) from error

    def _settle(self, size: int) -> None:
        self.settled = True
        run = self.run
        state = self.state
        gflop = self.gflop or 0.0
        self.compiled.decide(gflop * 1e9 * size * (state.total - state.done))
        if state.device.type == "cuda":
            self.loader.settle(room_bytes(run.budget_mib, state.device))
            run.resident_mib = self.loader.moved_bytes / MIB
        run.param("data_on", self.loader.where)
        run.param("compile.used", self.compiled.why)
        run.metric(run.named("train/gflop_per_sample"), gflop)

    def _observe(self, batch: Batch, before: list[int]) -> None:
        self.changes_batch = versions(batch) != before
        used_rng = self.snapshot.used_rng()
        self.effects = split_effects(self.state.model, self.recipe.batch_dependent_loss, used_rng)
        effects = ", ".join(self.effects)
        self.run.param("elastic", f"splitting a batch changes {effects}" if effects else "exact")

    def _warn_of_mean(self, loss: LossSum, samples: int) -> None:
        self.was_split = True
        if loss.parts < samples and float(loss.count) == loss.parts:
            why = "the loss counts each micro-batch as 1, so it depends on how a batch is split"
            self.run.note(f"{why}; if it is a mean: {LOSS_CONTRACT}")

    def _moved(self, part: Batch) -> Batch:
        moved = {name: tensor.to(self.state.device, non_blocking=True) for name, tensor in part.items()}
        if not self.changes_batch:
            return moved
        return {name: t.clone() if t is part[name] else t for name, t in moved.items()}

    def _clear_gradients(self) -> None:
        for parameter in self.state.parameters:
            parameter.grad = None

    def _undo(self, batch: Batch, before: list[int]) -> None:
        """Raises BadInput if the try changed the batch, of which there is no copy."""
        self.snapshot.restore()
        now = versions(batch)
        changed = [name for name, old, new in zip(batch, before, now, strict=True) if old != new]
        if changed:
            raise BadInput(
                "memory ran out, and the step cannot be done again: the loss has changed its batch in place "
                f"({', '.join(changed)}). Let it work on a copy: "
                "x = batch['x'] * 0.5 instead of batch['x'].mul_(0.5)"
            )

    def _split(self, batch: Batch, size: int) -> list[Batch]:
        """If the model refuses one sample, at least 2 in each, or 3 in an odd batch."""
        if self.micro.least > 1 and size <= 2:
            size = 2 + count(batch) % 2
        parts = list(self.recipe.micro_batches(batch, size))
        if not parts:
            raise BadInput(
                f"micro_batches gave nothing for a batch of {count(batch)} samples and "
                f"micro-batches of {size}: it yields parts"
            )
        return parts

    def _remedy(self, error: Exception, batch: Batch) -> Remedy:
        """What to change before the step is tried again; raises the error where nothing helps."""
        if is_paging(error):
            self._restart_smaller(error, batch)
        if is_out_of_memory(error):
            return self._shrink
        if isinstance(error, ValueError) and self._leaves_one(batch):
            return self._leave_none_alone
        if self.compiled.call is not None:
            return self._stop_compiling
        raise error

    def _leaves_one(self, batch: Batch) -> bool:
        """Whether a sample is alone in its micro-batch that need not be."""
        return self.micro.least == 1 < count(batch) and 1 in map(count, self._split(batch, self.micro.size))

    def _stop_compiling(self, _batch: Batch, reason: str) -> None:
        self.compiled.give_up(reason)
        self.run.note(f"goes on without compiling: {reason}")

    def _leave_none_alone(self, _batch: Batch, reason: str) -> None:
        """Batch normalisation refuses a sample that is alone."""
        self.micro.least = 2
        self.micro.size = max(2, self.micro.size)
        self.run.micro_batch = self.micro.size
        self.run.note(f"the model refuses one sample alone: at least 2 at once from now on ({reason})")

    def _shrink(self, batch: Batch, reason: str) -> None:
        """Free the data, else halve the micro-batch. Raises DoesNotFit when it is minimal."""
        micro = self.micro
        self.run.out_of_memory += 1
        if self.loader.move_back():
            free()
            self.run.note(
                f"out of memory: the data leave the card, micro-batch {micro.size} as before ({reason})"
            )
            return
        parts = self._split(batch, micro.size)
        used = max(map(count, parts))
        smaller = max(micro.least, -(-used // 2))
        can_split = len(self._split(batch, smaller)) > len(parts)
        if not micro.failed(smaller if can_split else None, self.state.done):
            raise DoesNotFit(
                does_not_fit(used, can_split or used == 1, self.run.budget_mib, reason, micro.least)
            )
        free()
        self.run.micro_batch = micro.size
        how = "tried once more, as there is nothing to split"
        changes = ""
        if can_split:
            how = f"goes on with {micro.size} at once"
            changes = f"; with that change: {', '.join(self.effects)}" if self.effects else ""
        self.run.note(
            f"out of memory with {used} samples at once: {how}, effective batch as before{changes} ({reason})"
        )


def split_effects(model: nn.Module, batch_dependent_loss: str, used_rng: bool) -> list[str]:
    """What depends on how a batch is split: computations across samples, and random draws."""
    found = []
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()):
        found.append("batch normalisation (its statistics are those of a micro-batch)")
    if used_rng:
        found.append("random draws in the model or the loss (dropout, mixup)")
    if batch_dependent_loss:
        found.append(batch_dependent_loss)
    return found
