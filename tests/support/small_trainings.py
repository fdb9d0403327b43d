"""A small training for several test files: a net of one hidden layer classifies three blobs of points."""

import torch
from torch import nn

from overnight.training.accumulate import GradientAccumulation
from overnight.training.evaluate import validate
from overnight.training.prefetch import Prefetcher
from overnight.training.recipe import Recipe, constant
from overnight.training.state import TrainState


class Killed(BaseException):
    """Stands for a signal that cannot be handled."""


def killed_at(step):
    """A function to call before each optimizer step; it ends the training in that one, half done."""
    calls = []

    def before_step():
        calls.append(1)
        if len(calls) == step:
            raise Killed

    return before_step


def recipe(params, monitor="accuracy", **changes):
    def batches(data, generator):
        order = torch.randperm(len(data["x"]), generator=generator)
        for index in order.split(params.batch):
            yield {"x": data["x"][index], "y": data["y"][index]}

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), torch.tensor(
            len(batch["y"])
        )

    def score(model, data, split):
        right = model(data[f"{split}_x"]).argmax(1) == data[f"{split}_y"]
        return {"accuracy": right.double().mean().item()}

    values = {
        "build": lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)),
        "example_batch": lambda n: {"x": torch.zeros(n, 4), "y": torch.zeros(n, dtype=torch.long)},
        "batches": batches,
        "steps_per_epoch": lambda data: -(-len(data["x"]) // params.batch),
        "loss": loss,
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.3),
        "schedule": constant,
        "evaluate": score,
    }
    return Recipe(params=params, monitor=monitor, **{**values, **changes})


def blobs():
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (300,), generator=generator)
    x = torch.randn(300, 4, generator=generator) + 3 * nn.functional.one_hot(y, 4)
    return {"x": x[:200], "y": y[:200], "val_x": x[200:], "val_y": y[200:]}


def train_by_hand(chosen, run, data, change):
    """The state after the loop's parts have run, with what `change` did to the accumulation before."""
    state = TrainState(chosen, run, data)
    loader = Prefetcher(data, state.device)
    loader.make = state.epoch_batches
    accumulation = GradientAccumulation(run, state, loader)
    change(accumulation)
    while not state.finished():
        for batch in loader.batches(state.epoch_batches, state.index):
            accumulation.optimizer_step(accumulation.gradients(batch), batch)
        state.end_epoch(validate(run, state))
    return state
