"""Recipe: all that a method says about its training. train(): the one elastic loop that runs it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from overnight.config import Params, runtime_option
from overnight.errors import RestartProcess
from overnight.run import Run
from overnight.training.accumulate import Memory
from overnight.training.batches import Batch, Batches, rows
from overnight.training.checkpoint import Keeper
from overnight.training.evaluate import evaluate
from overnight.training.loop import Course, RollbackToCheckpoint
from overnight.training.out_of_memory import free, in_slices
from overnight.training.state import Plan, State, planned

__all__ = [
    "Batch",
    "Batches",
    "Recipe",
    "Scores",
    "TrainParams",
    "TrainResult",
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
    batch: int = Field(
        128, ge=1, description="samples an optimizer step sees, whatever the card holds at once"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    patience: int | None = Field(
        None,
        ge=1,
        description="epochs without a better score on val before it ends early; never when left out",
    )
    micro_batch: int | None = runtime_option(
        None, "samples on the card at once; the engine chooses when left out", ge=1
    )
    grow: bool = runtime_option(
        False, "after out of memory, try the larger micro-batch again from time to time"
    )
    compile: Literal["auto", "on", "off"] = runtime_option(
        "auto", "compile the model; auto: on a CUDA card, when the training is long enough to pay for it"
    )
    checkpoint_s: float = runtime_option(
        45.0,
        "seconds between checkpoints, more where writing one is slow; 0: after every optimizer step",
        ge=0,
    )


@dataclass(frozen=True)
class Recipe(Generic[Data]):
    """What a method says about its training; pure, opens no file, knows no device.

    build() -> model. example(n) -> a batch of n made-up samples with the real shapes and dtypes, from the spec alone.
    batches(data, generator) -> one epoch of effective batches, in an order and augmentation drawn from the generator alone, best
    as Batches, which can begin in the middle.
    loss(model, batch) -> (sum over samples, count). optimizer(model). schedule(done, total) -> factor of the learning rate,
    for done from 0 to total - 1.
    evaluate(model, data, split) -> scores, in eval mode without gradients; `best` names the one that picks the epoch:
    the higher, the better.
    """

    build: Callable[[], nn.Module]
    example: Callable[[int], Batch]
    batches: Callable[[Data, torch.Generator], Iterable[Batch]]
    steps_per_epoch: Callable[[Data], int]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]
    evaluate: Callable[[nn.Module, Data, str], Scores]
    params: TrainParams
    best: str = "accuracy"
    clip: float = 0.0  # largest gradient norm, 0: no clipping
    ema: float = 0.0  # decay of the weight average that is evaluated and kept, 0: none
    split: Callable[[Batch, int], Iterator[Batch]] = field(default_factory=lambda: rows)
    closing: Callable[[Data, torch.Generator], Iterable[Batch]] | None = (
        None  # in place of `batches` in the last sixth of the epochs
    )
    couples: str = ""  # what makes the loss of a sample depend on others of its micro-batch (a contrastive loss), in words; else empty
    sample: Callable[[], Data] | None = (
        None  # made-up data whose split "val" fills one slice of an evaluation, to predict its memory by
    )
    rollback: float = 0.0  # when training diverges, once: go back to the last checkpoint, with the learning rate times this; 0: fail


@dataclass
class TrainResult:
    """The weights of the best epoch, in eval mode, and how it got there."""

    model: nn.Module
    scores: Scores
    epoch: int
    history: list[Scores]


def train(recipe: Recipe[Data], run: Run, data: Data) -> TrainResult:
    """Train on `data`, choosing the epoch by the score `recipe.best` on the split "val" (the last epoch without one).

    Goes on from the run's checkpoint, if there is one. Out of memory costs a smaller micro-batch, never the training. Where it computes on
    a CUDA card, the engine chooses layout, fused optimizer, compiling, and where the data lie (a dict of tensors moves to the card when it
    fits). Logs train/loss, train/lr (thinned), val/*, train/samples_per_s and train/tflops per epoch, train/micro_batch,
    train/gflop_per_sample; the second training of a step logs train-2/loss, val-2/*, and so on. Raises BadInput, DoesNotFit, Diverged, Stopped, OutOfMemory where memory is paged silently, and RestartProcess where a fresh
    process is to go on: see errors.py.
    """
    params = recipe.params
    size = params.micro_batch or params.batch
    keeper = Keeper(run.checkpoint_folder(), params.checkpoint_s, run.log)
    plan = planned(Plan(Memory(size, size)), keeper.left())
    while True:
        try:
            return _fitted(run, Course(recipe, run, data, plan, keeper).through())
        except RollbackToCheckpoint as error:
            plan, reason, fresh = (
                error.plan,
                str(error),
                error.fresh and run.restarts and keeper.folder is not None,
            )
        if fresh:
            keeper.leave(asdict(plan))
            run.note(f"goes on in a fresh process, from the last checkpoint: {reason}")
            raise RestartProcess(reason)
        run.note(f"starts over at the last checkpoint: {reason}")
        run.logged_before |= run.logged  # what is done again is not logged again
        free()


def _fitted(run: Run, state: State[Data]) -> TrainResult:
    """The best epoch's weights, back on the device."""
    assert state.best is not None  # epochs >= 1
    run.param("best_epoch", state.best.epoch)
    state.model.zero_grad(set_to_none=True)
    state.judged.load_state_dict(state.best.weights)
    return TrainResult(state.judged.eval(), state.best.scores, state.best.epoch, state.history)


def cosine(warmup: float = 0.05, floor: float = 0.0) -> Callable[[int, int], float]:
    """Linear warm-up over a share of the steps, then half a cosine down to `floor` of the rate."""

    def factor(done: int, total: int) -> float:
        import math

        rise = max(1, int(total * warmup))
        if done < rise:
            return (done + 1) / rise
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, total - rise)))

    return factor


def scores_on(
    predict: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device, size: int = 512
) -> Tensor:
    """Outputs for all inputs, a slice of at most `size` at a time (smaller where memory runs out), gathered on the host."""
    return torch.cat(in_slices(lambda part: predict(part).float(), inputs, device, size))


def constant(_done: int, _total: int) -> float:
    """A schedule that changes nothing."""
    return 1.0
