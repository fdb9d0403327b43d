"""The training loop, from the last checkpoint to the end."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from torch import nn

from overnight.errors import Diverged, RestartProcess, Stopped, one_line
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.run import Run
from overnight.training.accumulate import GradientAccumulation
from overnight.training.batches import samples
from overnight.training.checkpoint import UNSUITABLE, CheckpointStore
from overnight.training.divergence import LossSum, report
from overnight.training.evaluate import validate
from overnight.training.out_of_memory import free
from overnight.training.params import TrainParams
from overnight.training.plan import Plan, RollbackToCheckpoint, read_plan
from overnight.training.prefetch import Prefetcher
from overnight.training.recipe import Recipe, Scores
from overnight.training.state import TrainState
from overnight.training.throughput import ThroughputMeter

Data = TypeVar("Data")


@dataclass
class TrainResult:
    """The model in eval mode with the weights of the best epoch (`epoch`), and the scores of all."""

    model: nn.Module
    scores: Scores
    epoch: int
    history: list[Scores]


def train(recipe: Recipe[Data], run: Run, data: Data) -> TrainResult:
    """Train and return the epoch with the best score `recipe.monitor` on the split "val", or the last one.

    Continues from the run's checkpoint. Out of memory makes the micro-batch smaller. On a CUDA card the
    engine chooses layout, fused optimizer, compiling, and where the data lie (a dict of tensors moves to the
    card when it fits).

    Logs train/loss, train/lr (thinned), val/*, per epoch train/samples_per_s, train/tflops and
    train/tokens_per_s, train/micro_batch, train/gflop_per_sample; the second training of a step logs
    train-2/loss and so on.

    Raises BadInput, DoesNotFit, Diverged, Stopped, OutOfMemory where memory is paged silently, and
    RestartProcess where a fresh process is to continue.
    """
    store = CheckpointStore(run.checkpoint_folder(), recipe.params.checkpoint_s, run.log)
    rollback = None
    while True:
        state = _start(recipe, run, data, store, rollback)
        loader = Prefetcher(data, state.device, run.note)
        accumulation = GradientAccumulation(run, state, loader)
        try:
            with closing(loader), _saving_when_stopped(run, state, store):
                while not state.finished():
                    meter = ThroughputMeter(state.device)
                    for batch in meter.counted(loader.batches(state.epoch_batches, state.index)):
                        read = state.is_read
                        loss = accumulation.gradients(batch)
                        _check_losses(run, state, store, wait=read)
                        accumulation.optimizer_step(loss, batch)
                        _report_step(run, state, loss, read)
                        if store.due():
                            _save(run, state, store)
                        _yield_card(run, store)
                    _log(run, state, meter.metrics(accumulation.end_epoch(), recipe.sample_tokens))
                    _evaluate(run, state, loader)
            return _best_epoch(run, state)
        except RollbackToCheckpoint as error:
            rollback = RollbackToCheckpoint(str(error), error.plan, error.fresh)  # without its traceback
        del state, loader, accumulation  # before the next ones take memory
        _start_over(run, store, rollback)


def _start(
    recipe: Recipe[Data], run: Run, data: Data, store: CheckpointStore, rollback: RollbackToCheckpoint | None
) -> TrainState[Data]:
    plan = rollback.plan if rollback else _plan_left(store, recipe.params)
    state = TrainState(recipe, run, data, plan)
    for path in store.usable(state.identity):
        try:
            state.read(path, plan)
            break
        except UNSUITABLE as error:
            if is_out_of_memory(error):
                raise
            store.refuse(path, f"it cannot be loaded ({type(error).__name__}: {one_line(error)})")
        del state  # half of it is the checkpoint's
        state = TrainState(recipe, run, data, plan)
    run.param("parameters", sum(p.numel() for p in state.parameters))
    run.param("precision", state.precision.name)
    last = run.logged_before.get(run.named("train/loss"))
    if state.done:
        where = f"epoch {state.epoch + 1}, batch {state.index}"
        run.note(f"goes on after optimizer step {state.done} of {state.total}, {where}")
    elif last is not None:
        run.note(
            "begins again, without a checkpoint of use; "
            f"what is shown up to step {last} is of the attempt before"
        )
    state.reserve()
    return state


def _plan_left(store: CheckpointStore, params: TrainParams) -> Plan | None:
    """The plan of a process that a fresh one was to follow; it is newer than the checkpoint's."""
    try:
        return read_plan(store.read_plan(), params.micro_batch or params.batch)
    except ValueError:
        return None


def _start_over(run: Run, store: CheckpointStore, rollback: RollbackToCheckpoint) -> None:
    """Return to the last checkpoint; raises RestartProcess where a fresh process is better."""
    if rollback.fresh and run.restarts and store.folder is not None:
        store.save_plan(asdict(rollback.plan))
        run.note(f"goes on in a fresh process, from the last checkpoint: {rollback}")
        raise RestartProcess(str(rollback))
    run.note(f"starts over at the last checkpoint: {rollback}")
    run.logged_before |= run.logged  # repeated steps are not logged again
    free()


def _check_losses(run: Run, state: TrainState[Any], store: CheckpointStore, wait: bool) -> None:
    """Raise RollbackToCheckpoint for a bad pending loss if the recipe allows it, else Diverged.

    wait: for the card; otherwise only losses on the host are checked.
    """
    found = state.monitor.check() if wait or state.monitor.is_free else None
    if found is None:
        return
    store.drop(found.at.step)
    indices = list[int]()
    if found.at.epoch == state.epoch:
        indices = samples(state.epoch_batches(state.data), found.at.index)
    more = {
        "losses_before": list(state.monitor.last),
        "samples": indices,
        "rate": state.rate,
        "micro_batch": state.plan.micro.size,
        "read_at_step": state.done + 1,
    }
    report(run, found, state.weights.trainable, more)
    rollback = state.recipe.rollback
    if rollback and state.plan.rate == 1.0:
        reason = f"{found}; the learning rate is now times {rollback:g}"
        raise RollbackToCheckpoint(reason, replace(state.plan, rate=rollback))
    raise Diverged(
        f"{found}; see divergence.json. "
        "Try a smaller learning rate, clipping (clip), or precision fp32 or bf16"
    )


@contextmanager
def _saving_when_stopped(run: Run, state: TrainState[Any], store: CheckpointStore) -> Iterator[None]:
    try:
        yield
    except (Stopped, RestartProcess):
        _save(run, state, store)
        raise


def _save(run: Run, state: TrainState[Any], store: CheckpointStore) -> None:
    """Every loss so far is known to be fine, but for that of the newest weights."""
    _check_losses(run, state, store, wait=True)
    run.sync()
    store.save(state.identity, state.write, state.done)


def _log(run: Run, state: TrainState[Any], values: dict[str, float]) -> None:
    run.metrics({run.named(name): value for name, value in values.items()}, state.done)


def _report_step(run: Run, state: TrainState[Any], loss: LossSum, read: bool) -> None:
    """Raises Stopped."""
    size = state.plan.micro.size
    if read or state.logged_size != size:
        state.logged_size = size
        _log(run, state, {"train/loss": loss.mean(), "train/lr": state.rate, "train/micro_batch": size})
    if read or run.should_stop():
        _progress(run, state, state.epoch + 1)


def _progress(run: Run, state: TrainState[Any], epoch: int) -> None:
    """Raises Stopped."""
    params = state.recipe.params
    may_end_early = params.patience is not None
    run.progress(state.done, state.total, f"epoch {epoch}/{params.epochs}", at_most=may_end_early)


def _yield_card(run: Run, store: CheckpointStore) -> None:
    """Raise RestartProcess when others need the card, if this training can continue later."""
    why = run.should_yield() if run.restarts and store.folder is not None else ""
    if why:
        run.note(why)
        raise RestartProcess(why)


def _evaluate(run: Run, state: TrainState[Any], loader: Prefetcher[Any]) -> None:
    """Also end the epoch; if memory ran out, the data leave the card. Raises Stopped."""
    monitor = state.recipe.monitor
    faults = state.plan.eval_batches.faults
    with state.averaged():
        scores = validate(run, state)
        if state.plan.eval_batches.faults > faults:
            loader.move_back()
        _log(run, state, {f"val/{name}": value for name, value in scores.items()})
        if scores and monitor.removeprefix("-") not in scores and not any(state.history):
            run.note(
                f"the epoch to keep is picked by {monitor}, which is none of its scores "
                f"({', '.join(scores)}): the last one is kept"
            )
        state.end_epoch(scores)
    _progress(run, state, state.epoch)


def _best_epoch(run: Run, state: TrainState[Any]) -> TrainResult:
    params = state.recipe.params
    if state.epoch < params.epochs:
        why = f"no better {state.recipe.monitor.removeprefix('-')} for {params.patience}"
        run.note(f"ended after epoch {state.epoch} of {params.epochs}: {why}")
    best = state.best
    assert best is not None  # epochs >= 1
    run.param("micro_batch.used", state.plan.micro.size)
    run.param("best_epoch", best.epoch)
    state.model.zero_grad(set_to_none=True)
    state.weights.load(best.weights)
    return TrainResult(state.model.eval(), best.scores, best.epoch, state.history)
