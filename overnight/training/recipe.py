"""Recipe: all that a method says about its training. The loop that runs it is in loop.py."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from overnight.errors import BadInput
from overnight.training.batches import Batch, split_by_sample
from overnight.training.params import TrainParams

Data = TypeVar("Data")
Scores = dict[str, float]
LOSS_CONTRACT = "loss(model, batch) returns (sum of the losses of all samples, their number)"
BATCH_CONTRACT = "a batch is a dict of tensors with the samples in their first dimension"


@dataclass(frozen=True)
class Recipe(Generic[Data]):
    """What a method says about its training; pure: it opens no file and knows no device.

    example_batch(n) -> n made-up samples with the real shapes and dtypes, from the spec alone.
    batches(data, generator) -> one epoch of effective batches, by the generator alone; of the type Batches it
        can be resumed in the middle at no cost.
    steps_per_epoch(data) -> optimizer steps.
    loss(model, batch) -> (sum over samples, count).
    schedule(done, total) -> factor of the learning rate, for done from 0 to total - 1.
    evaluate(model, data, split) -> scores; called in eval mode without gradients.
    monitor: the score that picks the epoch to keep, the higher the better; "-loss": the lower the better.
    clip: largest gradient norm; 0: no clipping.
    ema: decay of the average of the weights, which is then evaluated and kept; 0: no average.
    micro_batches(batch, size) -> the batch in parts of at most `size` samples.
    final_epoch_batches: replaces `batches` in the last sixth of the epochs.
    batch_dependent_loss: why a sample's loss depends on others of its micro-batch, in words.
    eval_example() -> made-up data whose "val" fills one batch of an evaluation, to predict its memory.
    sample_tokens: tokens of a sample, where each has as many; their speed is then logged too.
    rollback: after divergence, return once to the last checkpoint with the learning rate times this; 0: fail.
    """

    build: Callable[[], nn.Module]
    example_batch: Callable[[int], Batch]
    batches: Callable[[Data, torch.Generator], Iterable[Batch]]
    steps_per_epoch: Callable[[Data], int]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]
    evaluate: Callable[[nn.Module, Data, str], Scores]
    params: TrainParams
    monitor: str = "accuracy"
    clip: float = 0.0
    ema: float = 0.0
    micro_batches: Callable[[Batch, int], Iterator[Batch]] = split_by_sample
    final_epoch_batches: Callable[[Data, torch.Generator], Iterable[Batch]] | None = None
    batch_dependent_loss: str = ""
    eval_example: Callable[[], Data] | None = None
    sample_tokens: int = 0
    rollback: float = 0.0


def cosine(warmup: float = 0.05, floor: float = 0.0) -> Callable[[int, int], float]:
    """Linear warm-up over a share of the steps, then half a cosine down to `floor` of the rate."""

    def factor(done: int, total: int) -> float:
        rise = max(1, int(total * warmup))
        if done < rise:
            return (done + 1) / rise
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, total - rise)))

    return factor


def constant(_done: int, _total: int) -> float:
    return 1.0


def check_batch(batch: Batch) -> None:
    """Raises BadInput."""
    given: dict[Any, Any] = batch
    odd = [
        f"{name!r} is a {type(value).__name__}"
        for name, value in given.items()
        if not isinstance(value, Tensor)
    ]
    if odd:
        raise BadInput(f"{BATCH_CONTRACT}; in this one {', '.join(odd)}")
    if not given:
        raise BadInput(f"{BATCH_CONTRACT}; this one is empty")


def check_loss(returned: Any) -> None:
    """Raises BadInput."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise BadInput(f"the loss returned {_described(returned)}: {LOSS_CONTRACT}")
    loss, counted = returned
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise BadInput(
            f"the first that the loss returned is {_described(loss)}: {LOSS_CONTRACT}, "
            "the sum as a tensor of one value"
        )
    if not loss.requires_grad:
        raise BadInput(
            "the sum that the loss returned depends on no weight that is trained "
            f"(detached, or all weights frozen?): {LOSS_CONTRACT}"
        )
    if counted.numel() != 1 if isinstance(counted, Tensor) else not hasattr(counted, "__float__"):
        raise BadInput(
            f"the second that the loss returned is {_described(counted)}: {LOSS_CONTRACT}, "
            "the number as one value"
        )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
