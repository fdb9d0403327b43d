"""Trainings of a few weights on a frozen base: in 4 and in 8 bits, in fp32 with adapters, and convolutional."""

import os
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from overnight.training.batches import Batches
from overnight.training.recipe import Recipe, cosine

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


KINDS = ("nf4", "int8", "lora", "conv")


def recipe(kind, params, before_step=lambda: None, seed=1, **changes):
    """A training of such a net on points(); `before_step` is called in every optimizer step."""

    class Adam(torch.optim.AdamW):
        def step(self, closure=None):
            before_step()
            super().step(closure)

    def batches(data, generator):
        order = torch.randperm(len(data["x"]), generator=generator).split(params.batch)
        return Batches(order, lambda index, _generator: {n: t[index] for n, t in data.items()}, generator)

    def loss(model, batch):
        logits = model(batch["x"])
        return functional.cross_entropy(logits, batch["y"], reduction="sum"), torch.tensor(len(batch["y"]))

    def score(model, data, _split):
        return {"accuracy": float((model(data["x"]).argmax(1) == data["y"]).double().mean())}

    values = {
        "build": partial(build, kind, seed),
        "example_batch": lambda n: {"x": torch.zeros(n, 64), "y": torch.zeros(n, dtype=torch.long)},
        "batches": batches,
        "steps_per_epoch": lambda data: -(-len(data["x"]) // params.batch),
        "loss": loss,
        "optimizer": lambda model: Adam([p for p in model.parameters() if p.requires_grad], lr=0.01),
        "schedule": cosine(),
        "evaluate": score,
        "ema": 0.9,
    }
    return Recipe(params=params, **{**values, **changes})


def points():
    """96 of three classes."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (96,), generator=generator)
    return {"x": torch.randn(96, 64, generator=generator) + functional.one_hot(y, 64), "y": y}
