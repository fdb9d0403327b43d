"""Baselines of bench/training.py: recipes with and without batch normalisation, and a plain loop by hand."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from overnight.artifact import Artifact
from overnight.data.dataset import load_entry
from overnight.run import RecordingRun
from overnight.training.batches import Batch, seeded
from overnight.training.recipe import Recipe
from tasks.vision.augment import apply
from tasks.vision.cnn import CnnParams, cnn_recipe
from tasks.vision.load import ImageParams, load_images

Data = dict[str, Tensor]


def images(name: str) -> Artifact:
    """A data set as the pipeline's own step makes it, read once for every run of the benchmark."""
    folder = Path(tempfile.gettempdir()) / f"overnight-bench-{os.getuid()}" / name
    if not (folder / "images.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        made = load_images.body(RecordingRun(folder), ImageParams(), load_entry(name))
        (folder / "images.json").write_text(made.model_dump_json())
    return Artifact.model_validate_json((folder / "images.json").read_text())


def tensors(artifact: Artifact, most: int | None = None) -> Data:
    """Its arrays, the training part cut to `most` images."""
    found = {name: torch.from_numpy(array) for name, array in artifact.arrays().items()}
    return {name: t[:most] if name.startswith("train") else t for name, t in found.items()}


def resnet(artifact: Artifact, params: CnnParams, judged: bool = True) -> Recipe[Data]:
    """The task's own recipe; not judged: its evaluation costs nothing, so that training alone is timed."""
    chosen = cnn_recipe(params, artifact.spec)
    return chosen if judged else replace(chosen, evaluate=lambda _model, _data, _split: {"accuracy": 0.0})


def plain_net(artifact: Artifact, params: CnnParams, dtype: torch.dtype) -> Recipe[Data]:
    """A convolutional net without normalisation or dropout: splitting its batch changes only the rounding."""
    channels, classes = artifact.spec.shape[0], len(artifact.spec.classes)

    def build() -> nn.Module:
        layers = [nn.Conv2d(channels, 16, 3, 2, 1), nn.Tanh(), nn.Conv2d(16, 32, 3, 2, 1), nn.Tanh()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, classes)).to(
            dtype
        )

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(apply(batch, params).to(dtype) / 128 - 1)
        return functional.cross_entropy(logits, batch["labels"], reduction="sum"), torch.tensor(
            len(batch["labels"])
        )

    chosen = cnn_recipe(params, artifact.spec)
    judge = chosen.evaluate
    as_numbers = lambda data: {
        k: (t.to(dtype) / 128 - 1 if k.endswith("images") else t) for k, t in data.items() if k[:3] == "val"
    }
    return replace(
        chosen,
        build=build,
        loss=loss,
        evaluate=lambda model, data, split: judge(model, as_numbers(data), split),
    )


def by_hand(
    recipe: Recipe[Data], params: CnnParams, data: Data, seed: int, log: Callable[[float], None]
) -> nn.Module:
    """The loop that one writes without overnight: the same model, batches, seed, optimizer and schedule."""
    torch.manual_seed(seed)
    model = recipe.build()
    optimizer = recipe.optimizer(model)
    total = recipe.steps_per_epoch(data) * params.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: recipe.schedule(done, total))
    model.train()
    for epoch in range(params.epochs):
        for batch in recipe.batches(data, seeded(seed, epoch)):
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(
                model(apply(batch, params)), batch["labels"], label_smoothing=params.label_smoothing
            )
            loss.backward()
            optimizer.step()
            schedule.step()
            log(loss.item())
    return model


class Injector:
    """Out of memory at chosen calls of a phase; counts those it raised."""

    def __init__(self) -> None:
        self.calls, self.raised, self.at, self.last = (
            dict[str, int](),
            dict[str, int](),
            dict[str, set[int]](),
            "",
        )

    def __call__(self, phase: str) -> None:
        self.calls[phase] = self.calls.get(phase, 0) + 1
        if self.calls[phase] in self.at.get(phase, ()):
            self.raised[phase], self.last = self.raised.get(phase, 0) + 1, phase
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (injected)")


class _Backward(torch.autograd.Function):
    """The identity; its backward asks the injector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inject: Injector) -> Tensor:
        ctx.inject = inject
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.inject("backward")
        return gradients[0], None


def faulty(recipe: Recipe[Data], inject: Injector) -> Recipe[Data]:
    """The recipe, with an injector in forward, in backward, in the optimizer's step and in the evaluation."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        inject("forward")
        total, count = recipe.loss(model, batch)
        return _Backward.apply(total, inject), count  # type: ignore[no-untyped-call]

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        made = recipe.optimizer(model)
        made.register_step_post_hook(lambda *_: inject("optimizer"))
        return made

    def build() -> nn.Module:
        model = recipe.build()
        model.register_forward_pre_hook(
            lambda module, _inputs: None if module.training else inject("evaluation")
        )
        return model

    return replace(recipe, build=build, loss=loss, optimizer=optimizer)
