"""Trainings of a few weights on a frozen base: killed anywhere, they end bit-equal, from small checkpoints.

The bases: in 4 and in 8 bits, in fp32 with adapters, and a convolutional backbone with batch norm.
"""

import argparse
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench._rows import Row, bar, folder, kept
from overnight.run import RecordingRun
from overnight.training.batches import Batch, Batches
from overnight.training.loop import train
from overnight.training.recipe import Recipe, Scores, TrainParams, cosine
from overnight.training.weights import TrainedWeights

KINDS = ("nf4", "int8", "lora", "conv")
PARAMS = TrainParams(epochs=4, batch=16, checkpoint_s=0)  # 6 steps an epoch
STEPS = 24
KILLS = 10  # of each kind
WIDTH = 256


class Adapted(nn.Module):
    """A linear layer and a trained product of two small matrices beside it (LoRA; Hu et al. 2021)."""

    def __init__(self, base: nn.Module, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(functional.dropout(self.down(x), 0.1, self.training))


def linear(kind: str) -> nn.Module:
    """A layer whose weights are quantised when it moves to its device."""
    if kind == "lora":
        return nn.Linear(WIDTH, WIDTH)
    os.environ["HF_HUB_OFFLINE"] = "1"  # bitsandbytes looks for kernels on the hub
    import bitsandbytes as bnb

    if kind == "int8":
        return bnb.nn.Linear8bitLt(WIDTH, WIDTH, has_fp16_weights=False)
    made = bnb.nn.Linear4bit(WIDTH, WIDTH, compute_dtype=torch.float32, quant_type="nf4")
    made.support_avx512bf16_for_cpu = False  # in eval mode it rounds the weights for good, and trains no more
    return made


def build(kind: str, seed: int = 1) -> nn.Module:
    """The net; the weights of its base depend on `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "conv":
            base = [
                nn.Conv2d(1, 64, 3),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3),
                nn.BatchNorm2d(64),
            ]
            backbone = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *base, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            return nn.Sequential(backbone.requires_grad_(False), nn.Linear(64, 3))
        layers = [
            nn.Linear(64, WIDTH).requires_grad_(False),
            Adapted(linear(kind)),
            nn.Tanh(),
            Adapted(linear(kind)),
        ]
        return nn.Sequential(*layers, nn.Tanh(), nn.Linear(WIDTH, 3).requires_grad_(False))


def recipe(
    kind: str, params: TrainParams, before_step: Callable[[], None] = lambda: None, seed: int = 1
) -> Recipe[Batch]:
    """A training of such a net on points(); `before_step` is called in every optimizer step."""

    class Adam(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            before_step()
            super().step(closure)

    def batches(data: Batch, generator: torch.Generator) -> Batches:
        order = torch.randperm(len(data["x"]), generator=generator).split(params.batch)
        return Batches(order, lambda index, _generator: {n: t[index] for n, t in data.items()}, generator)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch["x"])
        return functional.cross_entropy(logits, batch["y"], reduction="sum"), torch.tensor(len(batch["y"]))

    def score(model: nn.Module, data: Batch, _split: str) -> Scores:
        return {"accuracy": float((model(data["x"]).argmax(1) == data["y"]).double().mean())}

    return Recipe(
        build=partial(build, kind, seed),
        example_batch=lambda n: {"x": torch.zeros(n, 64), "y": torch.zeros(n, dtype=torch.long)},
        batches=batches,
        steps_per_epoch=lambda data: -(-len(data["x"]) // params.batch),
        loss=loss,
        optimizer=lambda model: Adam([p for p in model.parameters() if p.requires_grad], lr=0.01),
        schedule=cosine(),
        evaluate=score,
        params=params,
        ema=0.9,
    )


def points() -> Batch:
    """96 of three classes."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (96,), generator=generator)
    return {"x": torch.randn(96, 64, generator=generator) + functional.one_hot(y, 64), "y": y}


def attempt(place: Path, kind: str, kill_at: int) -> None:
    """Train, and leave the trained weights in `place`; ends by signal 9 inside optimizer step `kill_at`."""
    steps = iter(range(1, 1 << 30))

    def before_step() -> None:
        if next(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    run = RecordingRun(place, seed=3)
    run.checkpoints = place / "checkpoints"
    fitted = train(recipe(kind, PARAMS, before_step), run, points())
    notes = [event["text"] for event in run.of("note")]
    found = {"weights": TrainedWeights(fitted.model).live(), "history": fitted.history, "notes": notes}
    torch.save(found, place / "found.pt")


def in_child(place: Path, kind: str, kill_at: int = 0) -> Row | None:
    """What an attempt in a process of its own leaves; None if it was killed."""
    child = multiprocessing.get_context("fork").Process(target=attempt, args=(place, kind, kill_at))
    child.start()
    child.join()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the training of {kind} ended with {child.exitcode}")
    return torch.load(place / "found.pt", weights_only=True) if child.exitcode == 0 else None


def killed(kind: str, whole: Row, step: int) -> Row:
    """One kill, and the attempt after it."""
    place = folder()
    if in_child(place, kind, step) is not None:
        raise RuntimeError(f"the training of {kind} was not killed at step {step}")
    sizes = [path.stat().st_size for path in place.rglob("*.pt")]
    found = in_child(place, kind) or {}
    ours, theirs = found["weights"], whole["weights"]
    return {
        "step": step,
        "resumed": step == 1 or f"after optimizer step {step - 1} of {STEPS}" in found["notes"][0],
        "equal": found["history"] == whole["history"]
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours),
        "checkpoint_bytes": max(sizes, default=0),
    }


def bases(options: argparse.Namespace) -> bool:
    """Ten random steps of each kind."""
    good = True
    for kind in KINDS:
        parameters = list(build(kind).parameters())  # imports what children then have
        whole = in_child(folder(), kind)
        assert whole is not None
        steps = random.Random(kind).sample(range(1, STEPS + 1), KILLS)
        make = lambda n, kind=kind, whole=whole, steps=steps: killed(kind, whole, steps[n])
        rows = kept(f"training-bases-{kind}", range(KILLS), options.fresh, make)
        equal = sum(row["equal"] and row["resumed"] for row in rows)
        good &= bar(f"{kind}: killed, resumed and bit-equal", f"{equal} of {KILLS}", "all", equal == KILLS)
        trained = sum(p.nbytes for p in parameters if p.requires_grad)
        most = 9 * trained + (64 << 10)  # 3 x (weights and two moments) + 64 KiB
        size = max(row["checkpoint_bytes"] for row in rows)
        what = f"{kind}: largest checkpoint, bytes ({trained} are trained)"
        good &= bar(what, size, f"<= {most}", size <= most)
    return good
