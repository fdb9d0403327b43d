"""The training loop, from the last checkpoint to the end."""

import pickle
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import nn

from overnight.errors import Diverged, OutOfMemory, RestartProcess, Stopped
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.run import Run
from overnight.training import divergence
from overnight.training.accumulate import GradientAccumulation, LossSum, MicroBatchState
from overnight.training.batches import Batch, count, samples
from overnight.training.checkpoint import CheckpointStore
from overnight.training.evaluate import validate
from overnight.training.out_of_memory import KINDS, brief, free, room_bytes
from overnight.training.prefetch import MIB, Prefetcher
from overnight.training.recipe import Recipe, Scores
from overnight.training.state import ResumePlan, TrainState, merged_json
from overnight.training.throughput import PagingDetector, ThroughputMeter, memory_is_full, pages_silently

Data = TypeVar("Data")
UNREADABLE = (  # what loading a checkpoint may raise
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
    """Training returns to its last checkpoint with another plan; fresh: better in a new process."""

    def __init__(self, reason: str, plan: ResumePlan, fresh: bool = False) -> None:
        super().__init__(reason)
        self.plan = plan
        self.fresh = fresh


@dataclass
class TrainResult:
    """The weights of the best epoch in eval mode, its scores, its number from 1, and all scores."""

    model: nn.Module
    scores: Scores
    epoch: int
    history: list[Scores]


def train(recipe: Recipe[Data], run: Run, data: Data) -> TrainResult:
    """Train on `data` and return the epoch with the best score `recipe.monitor` on the split "val".

    Without such a score it returns the last epoch. Continues from the run's checkpoint, if there is one. Out
    of memory makes the micro-batch smaller. On a CUDA card the engine chooses layout, fused optimizer,
    compiling, and where the data lie (a dict of tensors moves to the card when it fits).

    Logs train/loss, train/lr (thinned), val/*, train/samples_per_s and train/tflops per epoch,
    train/micro_batch, train/gflop_per_sample; the second training of a step logs train-2/loss, val-2/*, and
    so on.

    Raises BadInput, DoesNotFit, Diverged, Stopped, OutOfMemory where memory is paged silently, and
    RestartProcess where a fresh process is to continue: see errors.py.
    """
    params = recipe.params
    size = params.micro_batch or params.batch
    store = CheckpointStore(run.checkpoint_folder(), params.checkpoint_s, run.log)
    plan = merged_json(ResumePlan(MicroBatchState(size, size)), store.read_plan())
    while True:
        try:
            return _best_epoch(run, Trainer(recipe, run, data, plan, store).fit())
        except RollbackToCheckpoint as error:
            plan = error.plan
            reason = str(error)
            fresh = error.fresh
        if fresh and run.restarts and store.folder is not None:
            store.save_plan(asdict(plan))
            run.note(f"goes on in a fresh process, from the last checkpoint: {reason}")
            raise RestartProcess(reason)
        run.note(f"starts over at the last checkpoint: {reason}")
        run.logged_before |= run.logged  # repeated steps are not logged again
        free()


def _best_epoch(run: Run, state: TrainState[Data]) -> TrainResult:
    """The best epoch's weights, back on the device."""
    best = state.best
    assert best is not None  # epochs >= 1
    run.param("best_epoch", best.epoch)
    state.model.zero_grad(set_to_none=True)
    state.eval_model.load_state_dict(best.weights)
    return TrainResult(state.eval_model.eval(), best.scores, best.epoch, state.history)


class Trainer(Generic[Data]):
    """One training in one process. `fit` raises RollbackToCheckpoint, and what `train` says."""

    def __init__(
        self, recipe: Recipe[Data], run: Run, data: Data, plan: ResumePlan, store: CheckpointStore
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.data = data
        self.store = store
        self.state = state = self._start(plan)
        self.accumulation = GradientAccumulation(recipe, run, state.model, state.precision, state.plan.micro)
        self.prefetcher = Prefetcher(state.epoch_batches, data, lambda: state.index, state.device)
        self.accumulation.free_cache = self.prefetcher.move_back
        self.read_every = max(1, state.total // READS)
        self.first = state.done
        self.paging: PagingDetector | None = None
        if state.device.type == "cuda" and pages_silently():
            self.paging = PagingDetector(partial(memory_is_full, run.budget_mib, state.device))

    def _start(self, plan: ResumePlan) -> TrainState[Data]:
        """The state to start from: the last attempt's checkpoint, or a new one."""
        run = self.run
        state = self._restored(plan)
        run.param("parameters", sum(p.numel() for p in state.parameters))
        run.param("precision", state.precision.name)
        last = run.logged_before.get(run.named("train/loss"))
        if state.restored:
            where = f"epoch {state.epoch + 1}, batch {state.index}"
            run.note(f"goes on after optimizer step {state.done} of {state.total}, {where}")
        elif last is not None:
            run.note(
                "begins again, without a checkpoint of use; "
                f"what is shown up to step {last} is of the attempt before"
            )
        state.reserve()
        return state

    def _restored(self, plan: ResumePlan) -> TrainState[Data]:
        """The newest state that can be loaded, else a new one; a failed load leaves nothing behind."""
        state = self._new(plan)
        for path in self.store.usable(state.identity()):
            try:
                state.read(path)
            except UNREADABLE as error:
                if is_out_of_memory(error):
                    raise
                self.store.refuse(path, f"it cannot be loaded ({type(error).__name__}: {brief(error)})")
            else:
                return state
            del state
            state = self._new(plan)
        return state

    def _new(self, plan: ResumePlan) -> TrainState[Data]:
        torch.manual_seed(self.run.seed)
        return TrainState(self.recipe, self.run, self.data, plan)

    def fit(self) -> TrainState[Data]:
        """Train to the last epoch, or until `patience` epochs bring no better score."""
        state = self.state
        epochs = self.recipe.params.epochs
        try:
            while not state.finished():
                self._epoch(f"epoch {state.epoch + 1}/{epochs}")
        except (Stopped, RestartProcess):
            self._save()
            raise
        finally:
            self.prefetcher.close()
        if state.epoch < epochs:
            why = f"no better {self.recipe.monitor} for {self.recipe.params.patience}"
            self.run.note(f"ended after epoch {state.epoch} of {epochs}: {why}")
        self.run.param("micro_batch.used", self.accumulation.micro.size)
        return state

    def _epoch(self, text: str) -> None:
        """The rest of the current epoch, and its evaluation."""
        state = self.state
        state.model.train()
        meter = ThroughputMeter(state.device)
        for batch in self.prefetcher.batches():
            self._step(batch, text)
            meter.add(count(batch))
        self._log(meter.metrics(self.accumulation.gflop or 0.0))
        scores = self._evaluate()
        state.end_epoch(scores)
        if self.paging:
            self.paging.pause()
        self.run.progress(state.done, state.total, text)

    def _evaluate(self) -> Scores:
        """Evaluate and log; if memory ran out, the data leave the card."""
        state = self.state
        eval_batches = state.plan.eval_batches
        faults = eval_batches.faults
        scores = validate(self.recipe, state.eval_model, self.data, self.run, state.precision, eval_batches)
        if eval_batches.faults > faults:
            self.prefetcher.move_back()
        self._log({f"val/{name}": value for name, value in scores.items()})
        if scores and self.recipe.monitor not in scores and not any(state.history):
            self.run.note(
                f"the epoch to keep is picked by {self.recipe.monitor}, which is none of its scores "
                f"({', '.join(scores)}): the last one is kept"
            )
        return scores

    def _step(self, batch: Batch, text: str) -> None:
        """One optimizer step, then logging, checkpoint, and requests to stop or yield."""
        run = self.run
        state = self.state
        loss = self.accumulation.gradients(batch)
        state.monitor.add(divergence.StepIndex(state.done, state.epoch, state.index), loss)
        save = self.store.due()
        read = state.done % self.read_every == self.read_every - 1 or state.done + 1 == state.total
        if read or save or state.monitor.is_free:
            self._check_losses()
        self._optimizer_step(loss, batch)
        if read or self.accumulation.size_changed():
            micro_batch = self.accumulation.micro.size
            self._log({"train/loss": loss.mean(), "train/lr": state.rate, "train/micro_batch": micro_batch})
        if state.done == self.first + 1:
            self._settle(count(batch))
        if save:
            self._save()
        self._check_paging()
        if read or run.should_stop():
            run.progress(state.done, state.total, text)
        self._yield_card()

    def _check_paging(self) -> None:
        """Raise OutOfMemory when steps are slow because the driver pages memory."""
        slow = self.paging.step() if self.paging else ""
        if slow:
            self.run.out_of_memory += 1
            raise OutOfMemory(slow)

    def _yield_card(self) -> None:
        """Raise RestartProcess when others need the card, if this training can continue later."""
        if not self.run.restarts or self.store.folder is None:
            return
        why = self.run.should_yield()
        if why:
            self.run.note(why)
            raise RestartProcess(why)

    def _log(self, values: dict[str, float]) -> None:
        self.run.metrics({self.run.named(name): value for name, value in values.items()}, self.state.done)

    def _settle(self, size: int) -> None:
        """Decide where the data lie and whether to compile, from what the first step took and computed."""
        run = self.run
        state = self.state
        gflop = self.accumulation.gflop or 0.0
        compiled = self.accumulation.compiled
        compiled.decide(gflop * 1e9 * size * (state.total - state.done))
        if state.device.type == "cuda":
            self.prefetcher.settle(room_bytes(run.budget_mib, state.device))
            run.resident_mib = self.prefetcher.moved_bytes / MIB
        run.param("data_on", self.prefetcher.where)
        run.param("compile.used", compiled.why)
        run.metric(run.named("train/gflop_per_sample"), gflop)

    def _save(self) -> None:
        """Write a checkpoint; every loss so far is known to be fine, but for that of the newest weights."""
        self._check_losses()
        self.run.sync()
        self.store.save(self.state.identity(), self.state.write, self.state.done)
        if self.paging:
            self.paging.pause()

    def _optimizer_step(self, loss: LossSum, batch: Batch) -> None:
        """The optimizer's step. If memory runs out inside it, weights are half updated: none can be kept."""
        state = self.state
        micro = self.accumulation.micro
        try:
            state.step(loss)
        except KINDS as error:
            if not is_out_of_memory(error):
                raise
            reason = brief(error)
        else:
            self.accumulation.stepped()
            return
        self.prefetcher.move_back()
        micro.last_try = micro.stuck == state.done
        size = micro.size
        self.accumulation.shrink(batch, reason)
        micro.stuck = state.done if micro.size == size else -1
        raise RollbackToCheckpoint(
            f"out of memory in the optimizer's step ({reason})", state.plan, fresh=True
        )

    def _check_losses(self) -> None:
        """Report a bad pending loss; raises RollbackToCheckpoint if the recipe allows it, else Diverged."""
        state = self.state
        recipe = self.recipe
        found = state.monitor.check()
        if found is None:
            return
        self.store.drop(found.at.step)
        indices = list[int]()
        if found.at.epoch == state.epoch:
            indices = samples(state.epoch_batches(self.data), found.at.index)
        more = {"rate": state.rate, "micro_batch": state.plan.micro.size, "read_at_step": state.done + 1}
        divergence.report(self.run, found, state.model, indices, state.monitor, more)
        if recipe.rollback and state.plan.rate == 1.0:
            reason = f"{found}; the learning rate is now times {recipe.rollback:g}"
            raise RollbackToCheckpoint(reason, replace(state.plan, rate=recipe.rollback))
        raise Diverged(
            f"{found}; see divergence.json. "
            "Try a smaller learning rate, clipping (clip), or precision fp32 or bf16"
        )
