"""A step that trains in real children; by files a test arranges out of memory in the optimizer, or a pause."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from overnight import Run, step
from overnight.training.batches import Batches
from overnight.training.loop import train
from overnight.training.recipe import Recipe, TrainParams, constant


class LastingParams(TrainParams):
    """What is to happen, each once over all children, as files in `folder` tell."""

    folder: str = ""
    full_at: int = Field(0, description="optimizer step inside which memory runs out; 0: none")
    pause_at: int = Field(0, description="loss at which it waits until it is to yield; 0: none")


def once(params: LastingParams, name: str) -> bool:
    """True the first time in all children."""
    try:
        (Path(params.folder) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def lasting_recipe(
    params: LastingParams, _spec: Any = None, yields: Callable[[], str] = lambda: ""
) -> Recipe[dict[str, torch.Tensor]]:
    """Points in float64, without anything that splitting changes."""
    calls = {"step": 0, "loss": 0}

    class Sgd(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            calls["step"] += 1
            if calls["step"] == params.full_at and once(params, "full"):
                raise torch.OutOfMemoryError("CUDA out of memory (made up)")

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        calls["loss"] += 1
        if calls["loss"] == params.pause_at and once(params, "paused"):
            while not yields():
                time.sleep(0.02)
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), torch.tensor(
            len(batch["y"])
        )

    def batches(data: dict[str, torch.Tensor], generator: torch.Generator) -> Batches:
        order = torch.randperm(len(data["x"]), generator=generator).split(params.batch)
        return Batches(
            order, lambda index, _generator: {name: tensor[index] for name, tensor in data.items()}, generator
        )

    return Recipe(
        build=lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double(),
        example_batch=lambda n: {"x": torch.zeros(n, 4).double(), "y": torch.zeros(n, dtype=torch.long)},
        batches=batches,
        steps_per_epoch=lambda data: -(-len(data["x"]) // params.batch),
        loss=loss,
        optimizer=lambda model: Sgd(model.parameters(), lr=0.1, momentum=0.9),
        schedule=constant,
        evaluate=lambda model, data, _split: {
            "accuracy": float((model(data["x"]).argmax(1) == data["y"]).double().mean())
        },
        params=params,
    )


def points() -> dict[str, torch.Tensor]:
    """160 of three classes."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (160,), generator=generator)
    return {
        "x": (torch.randn(160, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4)).double(),
        "y": y,
    }


@step(gpu=True, recipe=lasting_recipe)
def lasts(run: Run, params: LastingParams) -> None:
    """Train, and leave the weights in the step's folder."""
    fitted = train(lasting_recipe(params, yields=run.should_yield), run, points())
    torch.save(fitted.model.state_dict(), run.folder / "weights.pt")
    run.note("trained")
