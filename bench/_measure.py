"""The real training loop on the CPU under torch's memory profiler, to compare a prediction with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from overnight.memory.modules import stays_on_device
from overnight.run import RecordingRun
from overnight.training.batches import Batch
from overnight.training.loop import train
from overnight.training.recipe import Recipe

EPOCHS, STEPS = 2, 2


def live_peak(recipe: Recipe[Any], micro: int, folder: Path) -> int:
    """The most bytes that torch's allocator had given out at once in two short epochs of made-up batches."""
    from torch.profiler import ProfilerActivity, profile

    made = list[Batch]()
    short = shortened(recipe, micro, made)
    data = recipe.eval_example() if recipe.eval_example else None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        made.append(whole_batch(recipe, micro))
        train(short, RecordingRun(folder), data)
    return peak_of(profiler)


def shortened(recipe: Recipe[Any], micro: int, made: list[Batch]) -> Recipe[Any]:
    """The recipe with two epochs of two steps, on the one batch that `made` will hold."""
    params = recipe.params.model_copy(update={"epochs": EPOCHS, "micro_batch": micro})
    short = replace(
        recipe,
        params=params,
        batches=lambda *_: made * STEPS,
        final_epoch_batches=None,
        steps_per_epoch=lambda _data: STEPS,
    )
    if recipe.eval_example is not None:
        return short
    return replace(short, evaluate=lambda model, _data, _split: _scored(short, model, made[0], micro))


def whole_batch(recipe: Recipe[Any], micro: int) -> Batch:
    """Made-up samples of an optimizer's step."""
    return recipe.example_batch(micro if stays_on_device(recipe) else max(micro, recipe.params.batch))


def _scored(recipe: Recipe[Any], model: torch.nn.Module, batch: Batch, micro: int) -> dict[str, float]:
    """An evaluation of a recipe that has no made-up data: a forward pass on one micro-batch."""
    device = next(model.parameters()).device
    recipe.loss(
        model,
        {name: tensor.to(device) for name, tensor in next(iter(recipe.micro_batches(batch, micro))).items()},
    )
    return {}


def peak_of(profiler: Any) -> int:
    """Adds up the allocations and releases that a profile holds."""
    found = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(found, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
