"""All that a training is between two optimizer steps: what a checkpoint holds."""

import copy
import hashlib
import math
import random
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from overnight.training.acceleration import fuse, laid_out
from overnight.training.accumulate import Memory, Sums
from overnight.training.batches import Batch, seeded
from overnight.training.checkpoint import Identity
from overnight.training.divergence import Watch
from overnight.training.out_of_memory import Slices, random_state, set_random_state
from overnight.training.precision import Precision
from overnight.training.reservation import ballast, is_counted

if TYPE_CHECKING:
    from overnight.run import Run
    from overnight.training.recipe import Recipe

Data = TypeVar("Data")
Weights = dict[str, Tensor]


@dataclass
class Plan:
    """What a training keeps when it starts over at its last checkpoint."""

    memory: Memory
    rate: float = 1.0  # what the schedule is multiplied by
    slices: Slices = field(default_factory=Slices)


@dataclass
class Best:
    """The epoch to keep: its weights wait on the host."""

    weights: Weights
    scores: dict[str, float]
    epoch: int


class State(Generic[Data]):
    """Model, average, optimizer, schedule, loss scale, losses, position, best epoch. `done` counts optimizer steps, `index` those of the epoch."""

    def __init__(self, recipe: "Recipe[Data]", run: "Run", data: Data, plan: Plan) -> None:
        self.recipe, self.plan, self.seed = recipe, plan, run.seed
        self.device = torch.device(run.device)
        self.total = max(1, recipe.steps_per_epoch(data) * recipe.params.epochs)
        self.model = laid_out(recipe.build(), self.device)
        self.parameters = list(
            self.model.parameters()
        )  # walking through the modules costs more than an optimizer's step of a small net
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval() if recipe.ema else None
        self.optimizer = self._optimizer()
        self.precision = Precision(recipe.params.precision, self.device)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        self.watch = Watch()
        self.epoch = self.index = self.done = 0
        self.best: Best | None = None
        self.history = list[dict[str, float]]()
        self.ballast = list[Tensor]()
        self.restored = False  # from a checkpoint

    def _factor(self, done: int) -> float:
        """Of the learning rate, in the step after so many; torch asks for the one after the last, too."""
        return self.plan.rate * self.recipe.schedule(min(done, self.total - 1), self.total)

    def _optimizer(self) -> torch.optim.Optimizer:
        made = self.recipe.optimizer(self.model)
        fuse(made)
        return made

    def reserve(self) -> None:
        """Hold room for the optimizer's state until it is made, where memory is bounded."""
        if not self.optimizer.state and is_counted(self.device):
            self.ballast = ballast(self._optimizer, self.parameters)

    @property
    def judged(self) -> nn.Module:
        """What is evaluated and kept: the average of the weights, where there is one."""
        return self.average or self.model

    @property
    def rate(self) -> float:
        """The learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def epoch_batches(self, data: Data) -> Iterable[Batch]:
        """All batches of the current epoch, drawn from its own seed."""
        closing = self.epoch >= self.recipe.params.epochs * 5 / 6
        batches = self.recipe.closing if self.recipe.closing and closing else self.recipe.batches
        return batches(data, seeded(self.seed, self.epoch))

    def step(self, sums: Sums) -> None:
        """The optimizer's step with the gradients that are there, and all that follows it."""
        self.ballast.clear()
        self.precision.step(
            self.optimizer, self.parameters, None if sums.averaged else sums.divisor, self.recipe.clip
        )
        self.schedule.step()
        if self.average is not None:
            _follow(self.average, self.model, self.recipe.ema, self.done)
        self.done, self.index = self.done + 1, self.index + 1

    def close_epoch(self, scores: dict[str, float]) -> None:
        """Keep the weights when no epoch before was better, and go to the next one."""
        self.history.append(scores)
        name = self.recipe.best
        if self.best is None or rank(scores, name) >= rank(self.best.scores, name):
            with _disable_current_modes():  # on the host, which no counter is to take for the card
                weights = {
                    key: tensor.detach().to("cpu", copy=True)
                    for key, tensor in self.judged.state_dict().items()
                }
            self.best = Best(weights, scores, self.epoch + 1)
        self.epoch, self.index = self.epoch + 1, 0

    def over(self) -> bool:
        """Whether all epochs are done, or so many without a better score that the recipe has it end there."""
        params, name = self.recipe.params, self.recipe.best
        scores = [rank(scores, name) for scores in self.history if name in scores]
        idle = len(scores) - 1 - scores.index(max(scores)) if params.patience and scores else 0
        return self.epoch >= params.epochs or (params.patience is not None and idle >= params.patience)

    def identity(self) -> Identity:
        """What must be the same for a checkpoint to be of use."""
        shapes = [(name, tuple(t.shape), str(t.dtype)) for name, t in self.model.state_dict().items()]
        return {
            "torch": torch.__version__,
            "code of the loop": _code(),
            "device": self.device.type,
            "precision": self.precision.name,
            "seed": str(self.seed),
            "parameters": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
            "optimizer": type(self.optimizer).__name__,
            "values": hashlib.sha256(
                repr(sorted(self.recipe.params.result_params().items())).encode()
            ).hexdigest()[:16],
            "optimizer steps": str(self.total),
        }

    def write(self, file: Any) -> None:
        """Everything, as tensors and plain values that can be read back without running code."""
        state = {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "hidden": [hidden(model) for model in self._models()],
            **{name: getattr(self, name) for name in ("epoch", "index", "done", "history")},
            "best": None if self.best is None else {**vars(self.best)},
            "plan": asdict(self.plan),
            "random": randomness(self.device),
        }
        torch.save(state, file)

    def read(self, path: Path) -> None:
        """Go on where the checkpoint was written. The micro-batch is the smaller of its own and the one now asked for."""
        with _disable_current_modes():
            found = torch.load(path, map_location="cpu", weights_only=True)
        found["optimizer"] = tree_map_only(
            Tensor, Tensor.clone, found["optimizer"]
        )  # it is kept as it is where the card is a virtual one
        for name, part in self._parts().items():
            part.load_state_dict(found[name])
        for model, buffers in zip(self._models(), found["hidden"], strict=True):
            restore_hidden(model, buffers, self.device)
        for name in ("epoch", "index", "done", "history"):
            setattr(self, name, found[name])
        self.best = Best(**found["best"]) if found["best"] else None
        self.plan = merged(self.plan, found["plan"])
        for group, base in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, strict=True
        ):  # the plan's rate may be another
            group["lr"] = base * self.schedule.lr_lambdas[0](self.schedule.last_epoch)
        restore_randomness(found["random"], self.device)
        self.restored = True

    def _models(self) -> list[nn.Module]:
        return [self.model] if self.average is None else [self.model, self.average]

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        parts |= {"scaler": self.precision.scaler, "watch": self.watch}
        return parts | ({"average": self.average} if self.average is not None else {})


def hidden(model: nn.Module) -> Weights:
    """The buffers that its state_dict leaves out."""
    shown = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in shown}


@torch.no_grad()
def restore_hidden(model: nn.Module, found: Weights, device: torch.device) -> None:
    """What `hidden` gave; some grow with the samples, so that a new model's have another shape."""
    now = dict(model.named_buffers())
    for name, value in found.items():
        owner, _, leaf = name.rpartition(".")
        if name in now and now[name].shape == value.shape:
            now[name].copy_(value)
        else:
            setattr(model.get_submodule(owner), leaf, value.to(device))


def rank(scores: dict[str, float], name: str) -> float:
    """What the epoch is picked by; a score that is no number is worse than every other."""
    value = scores.get(name, 0.0)
    return -math.inf if math.isnan(value) else value


def merged(now: Plan, found: dict[str, Any]) -> Plan:
    """The plan of a checkpoint, where the one now in force is not smaller still."""
    memory = (
        now.memory
        if now.memory.size < found["memory"]["size"]
        else Memory(**found["memory"] | {"largest": now.memory.largest})
    )
    limits = [limit for limit in (now.slices.limit, found["slices"]["limit"]) if limit]
    return Plan(memory, min(now.rate, found["rate"]), Slices(min(limits, default=0)))


def planned(now: Plan, left: bytes) -> Plan:
    """As merged, of a plan in JSON; what is none changes nothing."""
    try:
        found = TypeAdapter(Plan).validate_json(left, strict=True)
    except ValidationError:
        return now
    return merged(now, asdict(found)) if found.memory.size > 0 else now


def randomness(device: torch.device) -> dict[str, Any]:
    """Every global random state of the process, as plain values."""
    numpy = sys.modules.get("numpy")
    words = numpy.random.get_state() if numpy else None
    return {
        "torch": random_state(device),
        "python": random.getstate(),
        "numpy": None if words is None else [words[0], words[1].tolist(), *map(float, words[2:])],
    }


def restore_randomness(found: dict[str, Any], device: torch.device) -> None:
    """What `randomness` gave."""
    set_random_state(found["torch"], device)
    random.setstate(found["python"])
    if found["numpy"] is not None:
        import numpy as np

        name, words, place, has_gauss, gauss = found["numpy"]
        np.random.set_state((name, np.array(words, dtype=np.uint32), int(place), int(has_gauss), gauss))


@torch.no_grad()
def _follow(averaged: nn.Module, model: nn.Module, decay: float, done: int) -> None:
    """Exponential moving average of the weights, with a warm-up so that short runs work; buffers are copied."""
    rate = min(decay, (1 + done) / (10 + done))
    ours: list[Tensor] = list(averaged.parameters())
    theirs: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - rate)
    for mine, other in zip(averaged.buffers(), model.buffers(), strict=True):
        mine.copy_(other)


def _code() -> str:
    """Digest of the loop's own source."""
    folder = Path(__file__).parent
    files = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
