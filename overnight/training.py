"""Recipe: all that a method says about its training. train(): the one elastic loop that runs it."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from overnight.config import Params, knob
from overnight.errors import Diverged, DoesNotFit, Stopped
from overnight.loop import divergence
from overnight.loop.batches import Batch, Batches, count, rows, samples
from overnight.loop.checkpoint import Keeper
from overnight.loop.elastic import Elastic, Memory, Sums, too_large
from overnight.loop.memory import KINDS, Slices, brief, evaluated, free, in_slices, is_out_of_memory
from overnight.loop.precision import Precision
from overnight.loop.state import Plan, State
from overnight.run import Run

__all__ = [
    "Batch",
    "Batches",
    "Fitted",
    "Recipe",
    "Scores",
    "TrainParams",
    "constant",
    "cosine",
    "evaluate",
    "in_slices",
    "rows",
    "scores_on",
    "train",
]
Data = TypeVar("Data")
Scores = dict[str, float]


class TrainParams(Params):
    """The values that every gradient-trained step has."""

    epochs: int = Field(10, ge=1)
    batch: int = Field(128, ge=1, description="samples an optimiser step sees, whatever the card holds at once")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batch: int | None = knob(None, "samples on the card at once; the engine chooses when left out", ge=1)
    grow: bool = knob(False, "after out of memory, try the larger micro-batch again from time to time")
    checkpoint_s: float = knob(45.0, "seconds between checkpoints, more where writing one is slow; 0: after every optimiser step", ge=0)


@dataclass(frozen=True)
class Recipe(Generic[Data]):
    """What a method says about its training; pure, opens no file, knows no device.

    build() -> model. example(n) -> a batch of n made-up samples with the real shapes and dtypes, from the spec alone.
    batches(data, generator) -> one epoch of effective batches, in an order and augmentation drawn from the generator alone, best
    as Batches, which can begin in the middle.
    loss(model, batch) -> (sum over samples, count). optimiser(model). schedule(done, total) -> factor of the learning rate.
    evaluate(model, data, split) -> scores, in eval mode without gradients; `best` names the one that picks the epoch.
    """

    build: Callable[[], nn.Module]
    example: Callable[[int], Batch]
    batches: Callable[[Data, torch.Generator], Iterable[Batch]]
    steps_per_epoch: Callable[[Data], int]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    optimiser: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]
    evaluate: Callable[[nn.Module, Data, str], Scores]
    params: TrainParams
    best: str = "accuracy"
    clip: float = 0.0  # largest gradient norm, 0: no clipping
    ema: float = 0.0  # decay of the weight average that is evaluated and kept, 0: none
    split: Callable[[Batch, int], Iterator[Batch]] = field(default_factory=lambda: rows)
    closing: Callable[[Data, torch.Generator], Iterable[Batch]] | None = None  # in place of `batches` in the last sixth of the epochs
    couples: str = ""  # what makes the loss of a sample depend on others of its micro-batch (a contrastive loss), in words; else empty
    sample: Callable[[], Data] | None = None  # made-up data whose split "val" fills one slice of an evaluation, to predict its memory by
    rollback: float = 0.0  # when training diverges, once: go back to the last checkpoint, with the learning rate times this; 0: fail


@dataclass
class Fitted:
    """The weights of the best epoch, in eval mode, and how it got there."""

    model: nn.Module
    scores: Scores
    epoch: int
    history: list[Scores]


def train(recipe: Recipe[Data], run: Run, data: Data) -> Fitted:
    """Train on `data`, choosing the epoch by the score `recipe.best` on the split "val" (the last epoch without one).

    Goes on from the run's checkpoint, if there is one. Out of memory costs a smaller micro-batch, never the training. Logs train/loss,
    train/lr and train/samples_per_s (thinned), val/* per epoch, train/micro_batch. Raises DoesNotFit, Diverged, Stopped.
    """
    params = recipe.params
    size = params.micro_batch or params.batch
    plan, keeper = Plan(Memory(size, size)), Keeper(run.checkpoint_folder(), params.checkpoint_s, run.log)
    while True:
        try:
            return _epochs(recipe, run, data, plan, keeper)
        except _StartOver as error:
            plan, reason = error.plan, str(error)
        run.note(f"starts over at the last checkpoint: {reason}")
        run.told |= run.logged  # what is done again is not logged again
        free()


def _epochs(recipe: Recipe[Data], run: Run, data: Data, plan: Plan, keeper: Keeper) -> Fitted:
    """The loop, from the last checkpoint to the end."""
    state = _begin(recipe, run, data, plan, keeper)
    elastic = Elastic(recipe, run, state.model, state.precision, state.plan.memory)
    watch, every, epochs = divergence.Watch(), max(1, state.total // 400), recipe.params.epochs
    try:
        while state.epoch < epochs:
            state.model.train()
            began, seen, text = time.perf_counter(), 0, f"epoch {state.epoch + 1}/{epochs}"
            for batch in state.batches(data):
                sums = elastic.gradients(batch)
                watch.add(divergence.Place(state.done, state.epoch, state.index), sums)
                due, read = keeper.due(), state.done % every == every - 1 or state.done + 1 == state.total
                if read or due or watch.free:
                    _check(watch, recipe, run, state, data)
                _step(state, sums, elastic, batch)
                seen += count(batch)
                if read or elastic.changed():
                    run.metrics({"train/loss": sums.mean(), "train/lr": state.rate, "train/micro_batch": elastic.memory.size}, state.done)
                if due:
                    keeper.save(state.identity(), state.write)
                if read or run.should_stop():
                    run.progress(state.done, state.total, text)
            if seen:
                run.metric("train/samples_per_s", seen / (time.perf_counter() - began), state.done)
            scores = _evaluate(recipe, state, data, run)
            run.metrics({f"val/{name}": value for name, value in scores.items()}, state.done)
            state.close_epoch(scores)
            run.progress(state.done, state.total, text)
    except Stopped:
        keeper.save(state.identity(), state.write)
        raise
    return _fitted(run, state, elastic)


class _StartOver(Exception):
    """Training goes back to its last checkpoint, by another plan."""

    def __init__(self, reason: str, plan: Plan) -> None:
        super().__init__(reason)
        self.plan = plan


def _begin(recipe: Recipe[Data], run: Run, data: Data, plan: Plan, keeper: Keeper) -> State[Data]:
    """A training at its start, or where the last attempt's checkpoint was written."""
    torch.manual_seed(run.seed)
    state = State(recipe, run, data, plan)
    run.param("parameters", sum(p.numel() for p in state.model.parameters()))
    run.param("precision", state.precision.name)
    found = keeper.newest(state.identity())
    if found is not None:
        state.read(found)
        run.note(f"goes on after optimiser step {state.done} of {state.total}, epoch {state.epoch + 1}, batch {state.index}")
    return state


def _step(state: State[Data], sums: Sums, elastic: Elastic, batch: Batch) -> None:
    """The optimiser's step. When memory runs out inside it, weights and moments are half new: nothing of them can be kept."""
    try:
        state.step(sums)
    except KINDS as error:
        if not is_out_of_memory(error):
            raise
        reason = brief(error)
    else:
        return
    elastic.shrink(batch, reason)
    raise _StartOver(f"out of memory in the optimiser's step ({reason})", state.plan)


def _check(watch: divergence.Watch, recipe: Recipe[Data], run: Run, state: State[Data], data: Data) -> None:
    """Raises Diverged, with a report, when a loss since the last look was no number; or starts over where the recipe allows it."""
    fault = watch.look()
    if fault is None:
        return
    indices = samples(state.epoch_batches(data), fault.place.index) if fault.place.epoch == state.epoch else []
    more = {"rate": state.rate, "micro_batch": state.plan.memory.size, "read_at_step": state.done + 1}
    divergence.report(run, fault, state.model, indices, watch, more)
    if recipe.rollback and state.plan.rate == 1.0:
        raise _StartOver(f"{fault}; the learning rate is now times {recipe.rollback:g}", replace(state.plan, rate=recipe.rollback))
    raise Diverged(f"{fault}; see divergence.json. Try a smaller learning rate, clipping (clip), or precision fp32 or bf16")


def _fitted(run: Run, state: State[Data], elastic: Elastic) -> Fitted:
    """The best epoch's weights, back on the device."""
    assert state.best is not None  # epochs >= 1
    run.param("best_epoch", state.best.epoch)
    run.param("micro_batch.used", elastic.memory.size)
    state.model.zero_grad(set_to_none=True)
    state.judged.load_state_dict(state.best.weights)
    return Fitted(state.judged.eval(), state.best.scores, state.best.epoch, state.history)


def _evaluate(recipe: Recipe[Data], state: State[Data], data: Data, run: Run) -> Scores:
    """The scores on "val"; what out of memory changed is told. Raises DoesNotFit."""
    slices = state.plan.slices
    before = slices.faults
    try:
        return evaluate(recipe, state.judged, data, "val", state.precision, slices)
    except KINDS as error:
        if not is_out_of_memory(error):
            raise
        reason = brief(error)
    finally:
        run.out_of_memory += slices.faults - before
        if slices.faults > before:
            run.note(f"out of memory in the evaluation, {slices.faults - before} times: done again in slices of {slices.limit or 'all'}")
    raise DoesNotFit("evaluation: " + too_large(slices.limit, slices.used, run.budget_mib, reason))


def evaluate(
    recipe: Recipe[Data], model: nn.Module, data: Data, split: str, precision: Precision | None = None, slices: Slices | None = None
) -> Scores:
    """The recipe's scores of a split, in eval mode and without gradients, in slices as small as the memory asks for."""
    device = next(model.parameters()).device
    cast = (precision or Precision(recipe.params.precision, device)).cast

    def score() -> Scores:
        with torch.inference_mode(), cast():
            return recipe.evaluate(model, data, split)

    was = model.training
    model.eval()
    scores = evaluated(score, slices or Slices())
    model.train(was)
    return scores


def cosine(warmup: float = 0.05, floor: float = 0.0) -> Callable[[int, int], float]:
    """Linear warm-up over a share of the steps, then half a cosine down to `floor` of the rate."""

    def factor(done: int, total: int) -> float:
        import math

        rise = max(1, int(total * warmup))
        if done < rise:
            return (done + 1) / rise
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, total - rise)))

    return factor


def scores_on(predict: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device, size: int = 512) -> Tensor:
    """Outputs for all inputs, a slice of at most `size` at a time (smaller where memory runs out), gathered on the host."""
    return torch.cat(in_slices(lambda part: predict(part).float(), inputs, device, size))


def constant(_done: int, _total: int) -> float:
    """A schedule that changes nothing."""
    return 1.0
