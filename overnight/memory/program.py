"""The program whose memory is asked for: warm-up, optimizer steps and evaluations, as the training loop makes them.

It runs in a World: with made-up tensors that have shapes alone (fake.py), or for real (measure.py).
"""

import contextlib
import copy
import itertools
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from overnight.training.acceleration import FUSED
from overnight.training.batches import Batch, split_by_sample
from overnight.training.recipe import Recipe

STEPS = 3  # a warm-up that makes the optimizer's state, one step with it, one after an evaluation


class World(Protocol):
    """Where the program runs."""

    target: str

    def model(self, recipe: Recipe[Any]) -> nn.Module:
        """The untrained net."""

    def batch(self, recipe: Recipe[Any], size: int) -> Batch:
        """Made-up samples as the loop hands them to the loss."""

    def score(self, recipe: Recipe[Any], model: nn.Module) -> None:
        """Evaluate the recipe on made-up data."""

    def during(self, phase: str) -> AbstractContextManager[None]:
        """A phase of the program."""

    def settled(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, copies: list[list[Tensor]]
    ) -> None:
        """After a step: what belongs to whom."""


def drive(recipe: Recipe[Any], micro: int, world: World) -> None:
    """Run the program with micro-batches of `micro` samples."""
    with world.during("build"):
        model = world.model(recipe).train()
        averaged = copy.deepcopy(model).requires_grad_(False).eval() if recipe.ema else None
        optimizer = recipe.optimizer(model)
        as_on(world.target, optimizer, recipe)
        undo = (
            [buffer.detach().clone() for buffer in model.buffers()] if by_the_loop(recipe) else []
        )  # what a step that fails is undone by
    with world.during("data"):
        parts = _parts(recipe, micro, world)
    judged, best = averaged or model, dict[str, Tensor]()
    for number in range(STEPS):
        _step(recipe, model, optimizer, parts, world)
        world.settled(
            model, optimizer, [undo, list(judged.state_dict().values()) if averaged is not None else []]
        )
        if averaged is not None:
            with world.during("optimizer"), torch.no_grad():
                _follow(averaged, model)
        if number:
            with world.during("evaluate"):
                _evaluate(recipe, judged, parts[0], world)
            if world.target == "cpu" and by_the_loop(
                recipe
            ):  # the best weights wait on the host, which is where all is on a CPU
                with world.during("keep"):
                    best = {name: tensor.detach().clone() for name, tensor in judged.state_dict().items()}
                world.settled(model, optimizer, [list(best.values())])


def precision(recipe: Recipe[Any], target: str) -> torch.dtype | None:
    """What autocast lowers to; None for float32."""
    asked = getattr(recipe.params, "precision", "auto")
    if asked == "auto":
        asked = "fp32" if target == "cpu" else "bf16"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]


def resident(recipe: Recipe[Any]) -> bool:
    """Whether the batch is one whole that stays on the device, as a graph is."""
    return recipe.micro_batches is not split_by_sample


def as_on(target: str, optimizer: torch.optim.Optimizer, recipe: Recipe[Any]) -> None:
    """Let it update weights as on the target: on a CPU one after the other, on a card by fused kernels, which hold nothing beside the state.

    In a loop of somebody's own, and where an optimizer has no such kernel, a card updates all weights in one go, with temporaries.
    """
    fused = by_the_loop(recipe) and isinstance(optimizer, FUSED)
    for group in optimizer.param_groups:
        if target != "cuda" or group.get("foreach", 0) is not None or group.get("fused"):
            continue
        group["fused" if fused and all(p.is_floating_point() for p in group["params"]) else "foreach"] = True


def by_the_loop(recipe: Recipe[Any]) -> bool:
    """Whether overnight's own loop trains it."""
    from overnight.memory.modules import ModuleParams

    return not isinstance(recipe.params, ModuleParams)


def _parts(recipe: Recipe[Any], micro: int, world: World) -> list[Batch]:
    """The first micro-batches of an effective batch: two of them tell what accumulation costs."""
    whole = world.batch(recipe, micro if resident(recipe) else max(micro, recipe.params.batch))
    return list(itertools.islice(recipe.micro_batches(whole, micro), 2))


def cast(recipe: Recipe[Any], target: str) -> AbstractContextManager[Any]:
    """The autocast region of a forward pass. Always of the CPU: where the target is a card, its lists are laid over."""
    dtype = precision(recipe, target)
    return torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()


def _step(
    recipe: Recipe[Any], model: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Batch], world: World
) -> None:
    optimizer.zero_grad(set_to_none=True)
    for part in parts:
        with world.during("data"):
            batch = on_device(recipe, part, world.target)
        with world.during("forward"), cast(recipe, world.target):
            loss, _ = recipe.loss(model, batch)
        del batch
        with world.during("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
    world.settled(model, None, [])
    with world.during("optimizer"):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, 1.0)
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()


def on_device(recipe: Recipe[Any], part: Batch, target: str) -> Batch:
    """The part as the loss sees it: on a card a copy, unless the whole batch lives there."""
    if target == "cpu" or resident(recipe):
        return dict(part)
    return {name: tensor.clone() for name, tensor in part.items()}


def _evaluate(recipe: Recipe[Any], model: nn.Module, part: Batch, world: World) -> None:
    """The scores of a split of made-up data; where the recipe has none, a forward pass on a micro-batch."""
    was = model.training
    model.eval()
    with torch.inference_mode(), cast(recipe, world.target):
        if recipe.eval_example is None:
            recipe.loss(model, on_device(recipe, part, world.target))
        else:
            world.score(recipe, model)
    model.train(was)


def _follow(averaged: nn.Module, model: nn.Module) -> None:
    """What keeping an average of the weights costs."""
    ours: list[Tensor] = list(averaged.parameters())
    theirs: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 0.1)
