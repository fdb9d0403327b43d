"""The program that is traced: optimizer steps and evaluations, as the training loop runs them."""

import contextlib
import itertools
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from overnight.memory.fake_tensors import FakeTensorContext
from overnight.memory.modules import by_own_loop, stays_on_device
from overnight.training.acceleration import FUSED
from overnight.training.batches import Batch
from overnight.training.recipe import Recipe
from overnight.training.weights import is_packed

STEPS = 3  # one that creates the optimizer's state, one with it, one after an evaluation


def run_program(recipe: Recipe[Any], micro: int, context: FakeTensorContext) -> None:
    own = by_own_loop(recipe)
    with context.during("build"):
        model = context.module(recipe.build, own and context.target == "cuda").train()
        trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        buffers = [b for b in model.buffers() if not is_packed(b)]
        average = [p.detach().clone() for p in trained] if recipe.ema else []
        optimizer = recipe.optimizer(model)
        _choose_kernels(context.target, optimizer, recipe)
        # the loop restores buffers after a failed step
        undo = [buffer.detach().clone() for buffer in buffers] if own else []
    with context.during("data"):
        parts = _parts(recipe, micro, context)
    best = list[Tensor]()
    for number in range(STEPS):
        _step(recipe, model, optimizer, parts, context)
        context.label_state(model, optimizer, [*undo, *average])
        if average:
            with context.during("optimizer"), torch.no_grad():
                torch._foreach_lerp_(average, trained, 0.1)
        if number:
            with context.during("evaluate"):
                _evaluate(recipe, model, parts[0], context)
            if context.target == "cpu" and own:  # the best weights are kept on the host
                with context.during("keep"):
                    best = [tensor.detach().clone() for tensor in (*trained, *buffers)]
                context.label_state(model, optimizer, best)


def _choose_kernels(target: str, optimizer: torch.optim.Optimizer, recipe: Recipe[Any]) -> None:
    """Let the optimizer update weights as on the target.

    A CPU updates one weight after the other; a card uses fused kernels, without temporaries. In a user's own
    loop, and without such a kernel, a card updates all weights at once (foreach), with temporaries.
    """
    fused = by_own_loop(recipe) and isinstance(optimizer, FUSED)
    for group in optimizer.param_groups:
        if target != "cuda" or group.get("foreach", 0) is not None or group.get("fused"):
            continue
        group["fused" if fused and all(p.is_floating_point() for p in group["params"]) else "foreach"] = True


def _parts(recipe: Recipe[Any], micro: int, context: FakeTensorContext) -> list[Batch]:
    """The first two micro-batches, which show what accumulation costs."""
    whole = context.batch(recipe, micro if stays_on_device(recipe) else max(micro, recipe.params.batch))
    return list(itertools.islice(recipe.micro_batches(whole, micro), 2))


def _cast(recipe: Recipe[Any], target: str) -> AbstractContextManager[Any]:
    asked = recipe.params.precision
    if asked == "auto":
        asked = "fp32" if target == "cpu" else "bf16"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(asked)
    return torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()


def _step(
    recipe: Recipe[Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: list[Batch],
    context: FakeTensorContext,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    for part in parts:
        with context.during("data"):
            batch = _on_device(recipe, part, context.target)
        with context.during("forward"), _cast(recipe, context.target):
            loss, _ = recipe.loss(model, batch)
        del batch
        with context.during("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
    context.label_state(model, None, [])
    with context.during("optimizer"):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, 1.0)
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()


def _on_device(recipe: Recipe[Any], part: Batch, target: str) -> Batch:
    if target == "cpu" or stays_on_device(recipe):
        return dict(part)
    return {name: tensor.clone() for name, tensor in part.items()}


def _evaluate(recipe: Recipe[Any], model: nn.Module, part: Batch, context: FakeTensorContext) -> None:
    was = model.training
    model.eval()
    with torch.inference_mode(), _cast(recipe, context.target):
        if recipe.eval_example is None:
            recipe.loss(model, _on_device(recipe, part, context.target))
        else:
            context.score(recipe, model)
    model.train(was)
