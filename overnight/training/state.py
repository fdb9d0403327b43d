"""The state of a training between two optimizer steps: what a checkpoint holds."""

import copy
import hashlib
import math
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only

from overnight.errors import DoesNotFit
from overnight.files import source_sha256
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.run import Run
from overnight.training.acceleration import FAILURES, Precision, fuse, to_device
from overnight.training.accumulate import LossSum, MicroBatchState
from overnight.training.batches import Batch, seeded
from overnight.training.checkpoint import Identity
from overnight.training.divergence import LossMonitor
from overnight.training.evaluate import EvalBatches
from overnight.training.out_of_memory import brief, free, random_state, set_random_state
from overnight.training.recipe import Recipe, Scores

Data = TypeVar("Data")
Weights = dict[str, Tensor]
COUNTERS = ("epoch", "index", "done", "history")


@dataclass
class ResumePlan:
    """What a training keeps when it returns to its last checkpoint. rate: factor of the schedule."""

    micro: MicroBatchState
    rate: float = 1.0
    eval_batches: EvalBatches = field(default_factory=EvalBatches)


@dataclass
class BestEpoch:
    """The epoch to keep; its weights are on the host."""

    weights: Weights
    scores: Scores
    epoch: int


class TrainState(Generic[Data]):
    """Model, average of the weights, optimizer, schedule, loss scale, losses, position, best epoch.

    done: optimizer steps in all; index: those of the epoch; total: those of the whole training; restored:
    from a checkpoint.
    """

    def __init__(self, recipe: Recipe[Data], run: Run, data: Data, plan: ResumePlan) -> None:
        self.recipe = recipe
        self.plan = plan
        self.seed = run.seed
        self.device = torch.device(run.device)
        self.total = max(1, recipe.steps_per_epoch(data) * recipe.params.epochs)
        self.model = to_device(recipe.build(), self.device)
        # kept, because walking through the modules costs more than a small net's optimizer step
        self.parameters = list(self.model.parameters())
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval() if recipe.ema else None
        self.optimizer = self._optimizer()
        self.precision = Precision(recipe.params.precision, self.device)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        self.monitor = LossMonitor()
        self.epoch = 0
        self.index = 0
        self.done = 0
        self.best: BestEpoch | None = None
        self.history = list[Scores]()
        self.reserved = list[Tensor]()
        self.restored = False

    def _factor(self, done: int) -> float:
        """Factor of the learning rate after `done` steps; torch asks for one step too many."""
        return self.plan.rate * self.recipe.schedule(min(done, self.total - 1), self.total)

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.recipe.optimizer(self.model)
        fuse(optimizer)
        return optimizer

    def reserve(self) -> None:
        """Hold room for the optimizer's state until it is made, where memory is bounded."""
        if not self.optimizer.state and is_bounded(self.device):
            self.reserved = reserve_optimizer_state(self._optimizer, self.parameters)

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate and keep: the average of the weights, if there is one."""
        return self.average or self.model

    @property
    def rate(self) -> float:
        """The learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def epoch_batches(self, data: Data) -> Iterable[Batch]:
        """All batches of the current epoch, drawn from its own seed."""
        batches = self.recipe.batches
        if self.recipe.final_epoch_batches and self.epoch >= self.recipe.params.epochs * 5 / 6:
            batches = self.recipe.final_epoch_batches
        return batches(data, seeded(self.seed, self.epoch))

    def step(self, loss: LossSum) -> None:
        """The optimizer's step with the gradients in .grad, then schedule, average and counters."""
        self.reserved.clear()
        count = None if loss.averaged else loss.divisor
        self.precision.step(self.optimizer, self.parameters, count, self.recipe.clip)
        self.schedule.step()
        if self.average is not None:
            _update_average(self.average, self.model, self.recipe.ema, self.done)
        self.done += 1
        self.index += 1

    def end_epoch(self, scores: Scores) -> None:
        """Keep the weights if no epoch before was better, and go to the next one."""
        self.history.append(scores)
        name = self.recipe.monitor
        if self.best is None or rank(scores, name) >= rank(self.best.scores, name):
            with _disable_current_modes():  # on the host, which no counter is to take for the card
                weights = {
                    key: tensor.detach().to("cpu", copy=True)
                    for key, tensor in self.eval_model.state_dict().items()
                }
            self.best = BestEpoch(weights, scores, self.epoch + 1)
        self.epoch += 1
        self.index = 0

    def finished(self) -> bool:
        """Whether all epochs are done, or `patience` of them brought no better score."""
        params = self.recipe.params
        name = self.recipe.monitor
        if self.epoch >= params.epochs:
            return True
        ranks = [rank(scores, name) for scores in self.history if name in scores]
        if params.patience is None or not ranks:
            return False
        return len(ranks) - 1 - ranks.index(max(ranks)) >= params.patience

    def identity(self) -> Identity:
        """What must be equal for a checkpoint to be usable."""
        shapes = [(name, tuple(t.shape), str(t.dtype)) for name, t in self.model.state_dict().items()]
        return {
            "torch": torch.__version__,
            "code of the loop": _code_digest(),
            "device": self.device.type,
            "precision": self.precision.name,
            "seed": str(self.seed),
            "parameters": _digest(shapes),
            "optimizer": type(self.optimizer).__name__,
            "values": _digest(sorted(self.recipe.params.result_params().items())),
            "optimizer steps": str(self.total),
        }

    def write(self, file: Any) -> None:
        """Write everything as tensors and plain values, which can be read back without running code."""
        state = {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "hidden": [hidden_buffers(model) for model in self._models()],
            **{name: getattr(self, name) for name in COUNTERS},
            "best": None if self.best is None else {**vars(self.best)},
            "plan": asdict(self.plan),
            "random": all_random_states(self.device),
        }
        torch.save(state, file)

    def read(self, path: Path) -> None:
        """Continue from a checkpoint; the micro-batch is the smaller of its own and the plan's."""
        with _disable_current_modes():
            found = torch.load(path, map_location="cpu", weights_only=True)
        # cloned outside, because the optimizer keeps these tensors, which the virtual card must count
        found["optimizer"] = tree_map_only(Tensor, Tensor.clone, found["optimizer"])
        for name, part in self._parts().items():
            part.load_state_dict(found[name])
        for model, buffers in zip(self._models(), found["hidden"], strict=True):
            restore_hidden_buffers(model, buffers, self.device)
        for name in COUNTERS:
            setattr(self, name, found[name])
        self.best = BestEpoch(**found["best"]) if found["best"] else None
        self.plan = merged(self.plan, found["plan"])
        factor = self.schedule.lr_lambdas[0](
            self.schedule.last_epoch
        )  # with the plan's rate, which may be new
        for group, base in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = base * factor
        restore_random_states(found["random"], self.device)
        self.restored = True

    def _models(self) -> list[nn.Module]:
        return [self.model] if self.average is None else [self.model, self.average]

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.precision.scaler,
            "monitor": self.monitor,
        }
        if self.average is not None:
            parts["average"] = self.average
        return parts


def rank(scores: Scores, name: str) -> float:
    """The score that picks the epoch; NaN is worse than every number."""
    value = scores.get(name, 0.0)
    return -math.inf if math.isnan(value) else value


def merged(now: ResumePlan, found: dict[str, Any]) -> ResumePlan:
    """A checkpoint's plan, but with the smaller sizes and the smaller rate of both."""
    micro = now.micro
    if micro.size >= found["micro"]["size"]:
        micro = MicroBatchState(**found["micro"] | {"largest": micro.largest})
    limits = [limit for limit in (now.eval_batches.limit, found["eval_batches"]["limit"]) if limit]
    return ResumePlan(micro, min(now.rate, found["rate"]), EvalBatches(min(limits, default=0)))


def merged_json(now: ResumePlan, text: bytes) -> ResumePlan:
    """As merged, with a plan in JSON; invalid JSON is ignored."""
    try:
        found = TypeAdapter(ResumePlan).validate_json(text, strict=True)
    except ValidationError:
        return now
    return merged(now, asdict(found)) if found.micro.size > 0 else now


# -------------------------------------------------------------------------- parts of a checkpoint


def hidden_buffers(model: nn.Module) -> Weights:
    """The buffers that the model's state_dict leaves out."""
    shown = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in shown}


@torch.no_grad()
def restore_hidden_buffers(model: nn.Module, found: Weights, device: torch.device) -> None:
    """Restore what hidden_buffers returned; a buffer that grew with the samples replaces the new model's."""
    now = dict(model.named_buffers())
    for name, value in found.items():
        owner, _, leaf = name.rpartition(".")
        if name in now and now[name].shape == value.shape:
            now[name].copy_(value)
        else:
            setattr(model.get_submodule(owner), leaf, value.to(device))


def all_random_states(device: torch.device) -> dict[str, Any]:
    """Every global random state of the process, as tensors and plain values."""
    numpy = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else None
    return {
        "torch": random_state(device),
        "python": random.getstate(),
        "numpy": None if state is None else [state[0], state[1].tolist(), *map(float, state[2:])],
    }


def restore_random_states(found: dict[str, Any], device: torch.device) -> None:
    """Restore what all_random_states returned."""
    set_random_state(found["torch"], device)
    random.setstate(found["python"])
    if found["numpy"] is not None:
        import numpy as np

        name, key, position, has_gauss, gauss = found["numpy"]
        np.random.set_state((name, np.array(key, dtype=np.uint32), int(position), int(has_gauss), gauss))


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float, done: int) -> None:
    """Exponential moving average of the weights, with a warm-up for short trainings; buffers are copied."""
    rate = min(decay, (1 + done) / (10 + done))
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - rate)
    for mine, other in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(other)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _code_digest() -> str:
    """Of the source of this package."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return source_sha256(files)[:16]


# ---------------------------------------------------------------- room for the optimizer's state


def is_bounded(device: torch.device) -> bool:
    """Whether the device's memory is bounded: a real card's, or the virtual one's while it counts."""
    return device.type == "cuda" or _get_current_dispatch_mode() is not None


def reserve_optimizer_state(
    build: Callable[[], torch.optim.Optimizer], parameters: list[nn.Parameter]
) -> list[Tensor]:
    """Tensors as large as the state that the optimizer makes in its first step, to be freed just before that.

    So memory runs out in a forward pass, which can be undone. A second optimizer makes the tensors, in a step
    without rate or gradient; none for optimizers that make their state at once, or cannot step like that.
    Raises DoesNotFit.
    """
    tries = 2  # another process may have caused the first failure
    reason = ""
    for left in reversed(range(tries)):
        try:
            return _state_tensors(build(), parameters)
        except (MemoryError, *FAILURES) as error:
            if not is_out_of_memory(error):
                return []
            reason = brief(error)
        finally:
            for parameter in parameters:
                parameter.grad = None
        if left:
            free()
    raise DoesNotFit(
        "the weights, their gradients and the optimizer's state do not fit, before there is a single sample: "
        f"use a smaller model or an optimizer with less state, or ask for more ({reason})"
    )


def _state_tensors(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The state's tensors on the device, after a step that changes no weight."""
    if optimizer.state or not parameters:
        return []
    with _disable_current_modes():  # on the host, which no counter is to take for the card
        before = [p.detach().to("cpu", copy=True) for p in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        optimizer.step()
    finally:
        with torch.no_grad():  # an optimizer that divides by a norm of zero has spoilt the weights
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    return _tensors([*optimizer.state.values()], parameters[0].device)


def _tensors(values: Any, device: torch.device) -> list[Tensor]:
    """All tensors on the device in nested dicts, lists and tuples."""
    if isinstance(values, Tensor):
        return [values] if values.device == device else []
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return []
    return [tensor for value in values for tensor in _tensors(value, device)]
