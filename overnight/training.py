"""Recipe: all that a method says about its training. train(): the one loop that runs it."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from overnight.config import Params, knob
from overnight.errors import OutOfMemory
from overnight.run import Run

Data = TypeVar("Data")
Batch = dict[str, Tensor]  # every tensor has the samples in its first dimension
Scores = dict[str, float]


class TrainParams(Params):
    """The values that every gradient-trained step has."""

    epochs: int = Field(10, ge=1)
    batch: int = Field(128, ge=1, description="samples an optimiser step sees, whatever the card holds at once")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batch: int | None = knob(None, "samples on the card at once; the engine chooses when left out", ge=1)


@dataclass(frozen=True)
class Recipe(Generic[Data]):
    """What a method says about its training; pure, opens no file, knows no device.

    build() -> model. example(n) -> a batch of n made-up samples with the real shapes and dtypes, from the spec alone.
    batches(data, generator) -> one epoch of effective batches, in an order and augmentation drawn from the generator.
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


@dataclass
class Fitted:
    """The weights of the best epoch, in eval mode, and how it got there."""

    model: nn.Module
    scores: Scores
    epoch: int
    history: list[Scores]


def rows(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in micro-batches of at most `size` samples."""
    total = len(next(iter(batch.values())))
    for start in range(0, total, size):
        yield {name: tensor[start : start + size] for name, tensor in batch.items()}


def train(recipe: Recipe[Data], run: Run, data: Data) -> Fitted:
    """Train on `data`, choosing the epoch by the score `recipe.best` on the split "val" (the last epoch without one).

    Logs train/loss, train/lr and train/samples_per_s per optimiser step (thinned), val/* per epoch. Raises OutOfMemory, Stopped.
    """
    torch.manual_seed(run.seed)
    params = recipe.params
    device = torch.device(run.device)
    model = recipe.build().to(device)
    run.param("parameters", sum(p.numel() for p in model.parameters()))
    averaged = _average(model, recipe.ema)
    optimiser, generator = recipe.optimiser(model), torch.Generator().manual_seed(run.seed)
    precision = _Precision(params.precision, device)
    run.param("precision", precision.name)
    total = max(1, recipe.steps_per_epoch(data) * params.epochs)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: recipe.schedule(done, total))
    done, best, history = 0, None, list[Scores]()
    every = max(1, total // 400)
    for epoch in range(params.epochs):
        model.train()
        began, samples = time.perf_counter(), 0
        batches = recipe.closing if recipe.closing and epoch >= params.epochs * 5 / 6 else recipe.batches
        for batch in batches(data, generator):
            loss, count = _optimiser_step(recipe, model, optimiser, precision, batch, device)
            scheduler.step()
            _follow(averaged, model, recipe.ema, done)
            done, samples = done + 1, samples + len(next(iter(batch.values())))
            if done % every == 0 or done == total:
                run.metrics({"train/loss": loss / max(count, 1.0), "train/lr": optimiser.param_groups[0]["lr"]}, done)
                run.progress(done, total, f"epoch {epoch + 1}/{params.epochs}")
        run.metric("train/samples_per_s", samples / (time.perf_counter() - began), done)
        scores = evaluate(recipe, averaged or model, data, "val", precision)
        run.metrics({f"val/{name}": value for name, value in scores.items()}, done)
        history.append(scores)
        if best is None or scores.get(recipe.best, 0.0) >= best.scores.get(recipe.best, 0.0):
            best = Fitted(copy.deepcopy(averaged or model).eval(), scores, epoch + 1, history)
        run.progress(done, total, f"epoch {epoch + 1}/{params.epochs}")
    assert best is not None  # epochs >= 1
    run.param("best_epoch", best.epoch)
    return best


def evaluate(recipe: Recipe[Data], model: nn.Module, data: Data, split: str, precision: "_Precision | None" = None) -> Scores:
    """The recipe's scores of a split, in eval mode and without gradients."""
    device = next(model.parameters()).device
    was = model.training
    model.eval()
    with torch.inference_mode(), (precision or _Precision(recipe.params.precision, device)).cast():
        scores = recipe.evaluate(model, data, split)
    model.train(was)
    return scores


def _optimiser_step(
    recipe: Recipe[Data], model: nn.Module, optimiser: torch.optim.Optimizer, precision: "_Precision", batch: Batch, device: torch.device
) -> tuple[float, float]:
    """One step on one effective batch, in micro-batches: sums of losses divided once by the whole count."""
    parts = list(recipe.split(batch, recipe.params.micro_batch or len(next(iter(batch.values())))))
    optimiser.zero_grad(set_to_none=True)
    loss_sum = count_sum = 0.0
    try:
        for part in parts:
            with precision.cast():
                loss, count = recipe.loss(model, {name: tensor.to(device, non_blocking=True) for name, tensor in part.items()})
            precision.backward(loss)
            loss_sum, count_sum = loss_sum + float(loss.detach()), count_sum + float(count)
        precision.step(optimiser, model, max(count_sum, 1.0), recipe.clip)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"out of memory with {len(next(iter(parts[0].values())))} samples on the card: {str(error)[:200]}") from None
    return loss_sum, count_sum


class _Precision:
    """Mixed precision: which dtype, and the loss scale that fp16 needs."""

    def __init__(self, asked: str, device: torch.device) -> None:
        self.device = device.type
        self.name = _auto(device) if asked == "auto" else asked
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.name == "fp16")

    def cast(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast region of a forward pass."""
        return torch.autocast(self.device, self.dtype) if self.dtype else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimiser: torch.optim.Optimizer, model: nn.Module, count: float, clip: float) -> None:
        """Divide the summed gradients by the count, clip, and step."""
        self.scaler.unscale_(optimiser)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, count)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        self.scaler.step(optimiser)
        self.scaler.update()


def _auto(device: torch.device) -> str:
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def _average(model: nn.Module, decay: float) -> nn.Module | None:
    return copy.deepcopy(model).requires_grad_(False).eval() if decay else None


@torch.no_grad()
def _follow(averaged: nn.Module | None, model: nn.Module, decay: float, done: int) -> None:
    """Exponential moving average of the weights, with a warm-up so that short runs work; buffers are copied."""
    if averaged is None:
        return
    rate = min(decay, (1 + done) / (10 + done))
    ours: list[Tensor] = list(averaged.parameters())
    theirs: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - rate)
    for mine, other in zip(averaged.buffers(), model.buffers(), strict=True):
        mine.copy_(other)


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
    """Outputs for all inputs, a slice at a time, gathered on the host."""
    return torch.cat([predict(inputs[i : i + size].to(device)).float().cpu() for i in range(0, len(inputs), size)])


def constant(_done: int, _total: int) -> float:
    """A schedule that changes nothing."""
    return 1.0
