"""The loop itself: one training, from its last checkpoint to its end, in one process."""

import pickle
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from overnight.errors import Diverged, OutOfMemory, RestartProcess, Stopped
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.run import Run
from overnight.training import divergence
from overnight.training.accumulate import Elastic, Sums
from overnight.training.batches import Batch, count, samples
from overnight.training.checkpoint import Keeper
from overnight.training.evaluate import judge
from overnight.training.out_of_memory import KINDS, brief, room_bytes
from overnight.training.paging import Sentinel, at_ceiling, pages_silently
from overnight.training.prefetch import MIB, Feed
from overnight.training.state import Plan, State
from overnight.training.throughput import Pace

if TYPE_CHECKING:
    from overnight.training.recipe import Recipe

Data = TypeVar("Data")
UNREADABLE = (
    OSError,
    RuntimeError,
    pickle.PickleError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    MemoryError,
)
READS = 400  # times in a training that losses are fetched from the card and logged


class RollbackToCheckpoint(Exception):
    """Training goes back to its last checkpoint, by another plan; fresh: better in another process."""

    def __init__(self, reason: str, plan: Plan, fresh: bool = False) -> None:
        super().__init__(reason)
        self.plan, self.fresh = plan, fresh


class Course(Generic[Data]):
    """Goes through a training. Raises RollbackToCheckpoint, and what training.train says."""

    def __init__(self, recipe: "Recipe[Data]", run: Run, data: Data, plan: Plan, keeper: Keeper) -> None:
        self.recipe, self.run, self.data, self.keeper = recipe, run, data, keeper
        self.state = state = self._begun(plan)
        self.elastic = Elastic(recipe, run, state.model, state.precision, state.plan.memory)
        self.feed = Feed(state.epoch_batches, data, lambda: state.index, state.device)
        self.elastic.spare = self.feed.back
        self.every, self.first = max(1, state.total // READS), state.done
        pages = state.device.type == "cuda" and pages_silently()
        self.sentinel = Sentinel(partial(at_ceiling, run.budget_mib, state.device)) if pages else None

    def _begun(self, plan: Plan) -> State[Data]:
        """At the start, or where the last attempt's checkpoint was written."""
        run, state = self.run, self._restored(plan)
        run.param("parameters", sum(p.numel() for p in state.parameters))
        run.param("precision", state.precision.name)
        if state.restored:
            run.note(
                f"goes on after optimizer step {state.done} of {state.total}, epoch {state.epoch + 1}, batch {state.index}"
            )
        elif (last := run.logged_before.get(run.named("train/loss"))) is not None:
            run.note(
                f"begins again, without a checkpoint of use; what is shown up to step {last} is of the attempt before"
            )
        state.reserve()
        return state

    def _restored(self, plan: Plan) -> State[Data]:
        """The newest state that can be loaded, else a new one; of one that cannot, nothing is left."""
        state = self._new(plan)
        for path in self.keeper.usable(state.identity()):
            try:
                state.read(path)
            except UNREADABLE as error:
                if is_out_of_memory(error):
                    raise
                self.keeper.refuse(path, f"it cannot be loaded ({type(error).__name__}: {brief(error)})")
            else:
                return state
            del state
            state = self._new(plan)
        return state

    def _new(self, plan: Plan) -> State[Data]:
        torch.manual_seed(self.run.seed)
        return State(self.recipe, self.run, self.data, plan)

    def through(self) -> State[Data]:
        """To the end; what there is then."""
        state = self.state
        try:
            while not state.over():
                self._epoch(f"epoch {state.epoch + 1}/{self.recipe.params.epochs}")
        except (Stopped, RestartProcess):
            self._save()
            raise
        finally:
            self.feed.close()
        if state.epoch < self.recipe.params.epochs:
            self.run.note(
                f"ended after epoch {state.epoch} of {self.recipe.params.epochs}: no better {self.recipe.best} for {self.recipe.params.patience}"
            )
        self.run.param("micro_batch.used", self.elastic.memory.size)
        return state

    def _epoch(self, text: str) -> None:
        """What is left of the current epoch, and its evaluation."""
        run, state = self.run, self.state
        state.model.train()
        pace = Pace(state.device)
        for batch in self.feed.batches():
            self._batch(batch, text)
            pace.add(count(batch))
        self._log(pace.metrics(self.elastic.gflop or 0.0))
        faults = state.plan.slices.faults
        scores = judge(self.recipe, state, self.data, run)
        if state.plan.slices.faults > faults:
            self.feed.back()
        self._log({f"val/{name}": value for name, value in scores.items()})
        if scores and self.recipe.best not in scores and not any(state.history):
            run.note(
                f"the epoch to keep is picked by {self.recipe.best}, which is none of its scores ({', '.join(scores)}): the last one is kept"
            )
        state.close_epoch(scores)
        if self.sentinel:
            self.sentinel.pause()
        run.progress(state.done, state.total, text)

    def _batch(self, batch: Batch, text: str) -> None:
        """One optimizer step, and what is due after it."""
        run, state, elastic = self.run, self.state, self.elastic
        sums = elastic.gradients(batch)
        state.watch.add(divergence.Place(state.done, state.epoch, state.index), sums)
        due, read = (
            self.keeper.due(),
            state.done % self.every == self.every - 1 or state.done + 1 == state.total,
        )
        if read or due or state.watch.free:
            self._check()
        self._step(sums, batch)
        if read or elastic.changed():
            self._log(
                {"train/loss": sums.mean(), "train/lr": state.rate, "train/micro_batch": elastic.memory.size}
            )
        if state.done == self.first + 1:
            self._settle(count(batch))
        if due:
            self._save()
        if self.sentinel and (slow := self.sentinel.step()):
            run.out_of_memory += 1
            raise OutOfMemory(slow)
        if read or run.should_stop():
            run.progress(state.done, state.total, text)
        if run.restarts and self.keeper.folder is not None and (why := run.should_yield()):
            run.note(why)
            raise RestartProcess(why)

    def _log(self, values: dict[str, float]) -> None:
        self.run.metrics({self.run.named(name): value for name, value in values.items()}, self.state.done)

    def _settle(self, size: int) -> None:
        """After the first step it is known what a step takes and computes: where the data go, and whether to compile."""
        run, state, elastic = self.run, self.state, self.elastic
        gflop = elastic.gflop or 0.0
        elastic.compiled.decide(gflop * 1e9 * size * (state.total - state.done))
        if state.device.type == "cuda":
            self.feed.settle(room_bytes(run.budget_mib, state.device))
            run.resident_mib = self.feed.moved_bytes / MIB
        run.param("data_on", self.feed.where)
        run.param("compile.used", elastic.compiled.why)
        run.metric(run.named("train/gflop_per_sample"), gflop)

    def _save(self) -> None:
        """What the last step made; whether its weights are of use, the next loss says. Every step before it is known to be fine."""
        self._check()
        self.run.sync()
        self.keeper.save(self.state.identity(), self.state.write, self.state.done)
        if self.sentinel:
            self.sentinel.pause()

    def _step(self, sums: Sums, batch: Batch) -> None:
        """The optimizer's step. When memory runs out inside it, weights and moments are half new: nothing of them can be kept."""
        state, memory = self.state, self.elastic.memory
        try:
            state.step(sums)
        except KINDS as error:
            if not is_out_of_memory(error):
                raise
            reason = brief(error)
        else:
            return self.elastic.stepped()
        self.feed.back()
        memory.last_try, size = memory.stuck == state.done, memory.size
        self.elastic.shrink(batch, reason)
        memory.stuck = state.done if memory.size == size else -1
        raise RollbackToCheckpoint(
            f"out of memory in the optimizer's step ({reason})", state.plan, fresh=True
        )

    def _check(self) -> None:
        """Raises Diverged, with a report, when a loss since the last look was no number; or starts over where the recipe allows it."""
        state, recipe = self.state, self.recipe
        fault = state.watch.look()
        if fault is None:
            return
        self.keeper.drop(fault.place.step)
        indices = (
            samples(state.epoch_batches(self.data), fault.place.index)
            if fault.place.epoch == state.epoch
            else []
        )
        more = {"rate": state.rate, "micro_batch": state.plan.memory.size, "read_at_step": state.done + 1}
        divergence.report(self.run, fault, state.model, indices, state.watch, more)
        if recipe.rollback and state.plan.rate == 1.0:
            raise RollbackToCheckpoint(
                f"{fault}; the learning rate is now times {recipe.rollback:g}",
                replace(state.plan, rate=recipe.rollback),
            )
        raise Diverged(
            f"{fault}; see divergence.json. Try a smaller learning rate, clipping (clip), or precision fp32 or bf16"
        )
