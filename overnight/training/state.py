"""The state of a training between two optimizer steps: what a checkpoint holds."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from overnight.files import source_sha256
from overnight.run import Run
from overnight.training.acceleration import Precision, fuse, to_device
from overnight.training.batches import Batch, seeded
from overnight.training.checkpoint import Identity
from overnight.training.divergence import LossMonitor, LossSum, divisor
from overnight.training.out_of_memory import is_bounded, reserve_optimizer_state
from overnight.training.plan import MicroBatchState, Plan, read_plan
from overnight.training.recipe import Recipe, Scores
from overnight.training.snapshot import generators
from overnight.training.weights import TrainedWeights, Weights

Data = TypeVar("Data")
COUNTERS = ("epoch", "index", "done", "history")
READS = 400  # times in a training that losses are fetched from the card and logged


@dataclass
class BestEpoch:
    """The best epoch, counted from 1; its weights are on the host."""

    weights: Weights
    scores: Scores
    epoch: int


class TrainState(Generic[Data]):
    """done: optimizer steps in all; index: those of the epoch; total: those of the whole training."""

    def __init__(self, recipe: Recipe[Data], run: Run, data: Data, plan: Plan | None = None) -> None:
        torch.manual_seed(run.seed)
        size = recipe.params.micro_batch or recipe.params.batch
        self.recipe = recipe
        self.data = data
        self.plan = plan or Plan(MicroBatchState(size, size))
        self.seed = run.seed
        self.device = torch.device(run.device)
        self.total = max(1, recipe.steps_per_epoch(data) * recipe.params.epochs)
        self.model = to_device(recipe.build(), self.device).train()
        # kept, because walking through the modules costs more than a small net's optimizer step
        self.parameters = list(self.model.parameters())
        self.optimizer = self._optimizer()
        self.weights = TrainedWeights(self.model)
        self.average = [p.detach().clone() for p in self.weights.trainable.values()] if recipe.ema else []
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.precision = Precision(recipe.params.precision, self.device)
        self.monitor = LossMonitor()
        self.epoch = 0
        self.index = 0
        self.done = 0
        self.best: BestEpoch | None = None
        self.history = list[Scores]()
        self.reserved = list[Tensor]()
        self.logged_size = 0  # the micro-batch that was logged last
        self.identity = self._identity()
        self._set_rates()

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.recipe.optimizer(self.model)
        fuse(optimizer)
        return optimizer

    def _set_rates(self) -> None:
        factor = self.plan.rate * self.recipe.schedule(min(self.done, self.total - 1), self.total)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def reserve(self) -> None:
        """Hold room for the optimizer's state until it is made, where memory is bounded."""
        if not self.optimizer.state and is_bounded(self.device):
            self.reserved = reserve_optimizer_state(self._optimizer, self.weights.trainable.values())

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def is_read(self) -> bool:
        """The loss of this step is then fetched from the card and logged."""
        every = max(1, self.total // READS)
        return self.done % every == every - 1 or self.done + 1 == self.total

    def epoch_batches(self, data: Data) -> Iterable[Batch]:
        batches = self.recipe.batches
        if self.recipe.final_epoch_batches and self.epoch >= self.recipe.params.epochs * 5 / 6:
            batches = self.recipe.final_epoch_batches
        return batches(data, seeded(self.seed, self.epoch))

    def step(self, loss: LossSum) -> None:
        self.reserved.clear()
        count = None if loss.averaged else divisor(loss.count)
        self.precision.step(self.optimizer, self.parameters, count, self.recipe.clip)
        if self.average:
            self._update_average()
        self.done += 1
        self.index += 1
        self._set_rates()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(self.average, list(self.weights.trainable.values()), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """By way of the host: a full card has no room for a third."""
        for parameter, average in zip(self.weights.trainable.values(), self.average, strict=False):
            with _disable_current_modes():
                kept = parameter.to("cpu", copy=True)
            parameter.copy_(average)
            average.copy_(kept)

    def end_epoch(self, scores: Scores) -> None:
        self.history.append(scores)
        name = self.recipe.monitor
        if self.best is None or rank(scores, name) >= rank(self.best.scores, name):
            self.best = BestEpoch(self.weights.copied(), scores, self.epoch + 1)
        self.epoch += 1
        self.index = 0

    def finished(self) -> bool:
        """All epochs are done, or `patience` of them brought no better score."""
        params = self.recipe.params
        name = self.recipe.monitor
        if self.epoch >= params.epochs:
            return True
        ranks = [rank(scores, name) for scores in self.history if name.removeprefix("-") in scores]
        if params.patience is None or not ranks:
            return False
        return len(ranks) - 1 - ranks.index(max(ranks)) >= params.patience

    def _identity(self) -> Identity:
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        shapes = [(name, tuple(t.shape), str(t.dtype), t.requires_grad) for name, t in tensors]
        return {
            "torch": torch.__version__,
            "code of the loop": source_sha256(sorted(Path(__file__).parent.glob("*.py")))[:16],
            "device": self.device.type,
            "precision": self.precision.name,
            "seed": str(self.seed),
            "parameters": _digest(shapes),
            "frozen weights": self.weights.digest,
            "optimizer": type(self.optimizer).__name__,
            "values": _digest(sorted(self.recipe.params.result_params().items())),
            "optimizer steps": str(self.total),
        }

    def write(self, file: Any) -> None:
        """Tensors and plain values, which can be read back without running code."""
        state = {
            "weights": self.weights.live(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "monitor": self.monitor.state_dict(),
            **{name: getattr(self, name) for name in COUNTERS},
            "best": None if self.best is None else vars(self.best),
            "plan": asdict(self.plan),
            "random": [get() for get, _ in generators(self.device)],
        }
        torch.save(state, file)

    def read(self, path: Path, plan: Plan | None) -> None:
        """Continue from a checkpoint, but with this plan, if any."""
        with _disable_current_modes():
            found = torch.load(path, map_location="cpu", weights_only=True)
        self.weights.load(found["weights"])
        for average, value in zip(self.average, found["average"], strict=True):
            average.copy_(value)
        # cloned outside, because the optimizer keeps these tensors, which the virtual card must count
        self.optimizer.load_state_dict(tree_map_only(Tensor, Tensor.clone, found["optimizer"]))
        self.precision.scaler.load_state_dict(found["scaler"])
        self.monitor.load_state_dict(found["monitor"])
        for name in COUNTERS:
            setattr(self, name, found[name])
        self.best = BestEpoch(**found["best"]) if found["best"] else None
        self.plan = plan or read_plan(found["plan"], self.plan.micro.largest)
        for (_, set_state), state in zip(generators(self.device), found["random"], strict=True):
            set_state(state)
        self._set_rates()


def rank(scores: Scores, name: str) -> float:
    """The higher the better, also of a name that begins with "-"; NaN is worse than every number."""
    value = scores.get(name.removeprefix("-"), 0.0)
    if math.isnan(value):
        return -math.inf
    return -value if name.startswith("-") else value


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
