"""Recipes whose memory is predicted and measured: of the tasks, a transformer, and nets of agents."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from overnight.artifact import DataSpec
from overnight.training.recipe import Recipe, TrainParams, constant
from tasks.detection.yolo import YoloParams, yolo_recipe
from tasks.graphs.nodes import GnnParams, gnn_recipe
from tasks.vision.cnn import CnnParams, cnn_recipe

TEN = tuple("0123456789")


class LmParams(TrainParams):
    """A causal transformer."""

    vocabulary: int = 512
    context: int = 128
    width: int = 128
    heads: int = 4
    layers: int = 4
    dropout: float = 0.1
    tied: bool = True
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"


class Attention(nn.Module):
    def __init__(self, params: LmParams) -> None:
        super().__init__()
        self.heads, self.dropout = params.heads, params.dropout
        self.into, self.out = nn.Linear(params.width, 3 * params.width), nn.Linear(params.width, params.width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.into(x).chunk(3, -1)]
        mixed = functional.scaled_dot_product_attention(
            *parts, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, params: LmParams) -> None:
        super().__init__()
        self.first, self.second, self.attention = (
            nn.LayerNorm(params.width),
            nn.LayerNorm(params.width),
            Attention(params),
        )
        self.mlp = nn.Sequential(
            nn.Linear(params.width, 4 * params.width),
            nn.GELU(),
            nn.Linear(4 * params.width, params.width),
            nn.Dropout(params.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    def __init__(self, params: LmParams) -> None:
        super().__init__()
        self.tokens, self.places = (
            nn.Embedding(params.vocabulary, params.width),
            nn.Embedding(params.context, params.width),
        )
        self.layers = nn.ModuleList(Layer(params) for _ in range(params.layers))
        self.norm, self.head = (
            nn.LayerNorm(params.width),
            nn.Linear(params.width, params.vocabulary, bias=False),
        )
        if params.tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def lm_recipe(params: LmParams) -> Recipe[Any]:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits, tokens = model(batch["tokens"]), batch["tokens"]
        return functional.cross_entropy(
            logits.flatten(0, 1), tokens.flatten(), reduction="sum"
        ), torch.tensor(tokens.numel())

    example = lambda n: {"tokens": torch.zeros(n, params.context, dtype=torch.int64)}
    return _recipe(params, lambda: Transformer(params), example, loss, OPTIMIZERS[params.optimizer])


class NetParams(TrainParams):
    """The nets of an agent."""

    batch: int = 256
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"


def critic_recipe(params: NetParams, inputs: int = 64, hidden: int = 512) -> Recipe[Any]:
    """Actor and critic on vectors, the loss of PPO."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        actor, critic = model["actor"], model["critic"]  # type: ignore[index]
        logits, value = actor(batch["seen"]), critic(batch["seen"])[:, 0]
        chosen = logits.log_softmax(-1).gather(1, batch["acts"][:, None])[:, 0]
        ratio = (chosen - batch["old"]).exp()
        policy = -torch.minimum(ratio * batch["gain"], ratio.clamp(0.8, 1.2) * batch["gain"]).sum()
        return policy + functional.mse_loss(value, batch["gain"], reduction="sum"), torch.tensor(len(value))

    def build() -> nn.Module:
        tower = lambda out: nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, out)
        )
        return nn.ModuleDict({"actor": tower(8), "critic": tower(1)})

    def example(n: int) -> dict[str, Tensor]:
        return {
            "seen": torch.zeros(n, inputs),
            "acts": torch.zeros(n, dtype=torch.int64),
            "old": torch.zeros(n),
            "gain": torch.zeros(n),
        }

    return _recipe(params, build, example, loss, OPTIMIZERS[params.optimizer], clip=0.5)


def atari_recipe(params: NetParams) -> Recipe[Any]:
    """The convolutional Q-net of Mnih et al. 2015 and its target, on stacks of four screens."""

    def build() -> nn.Module:
        net = lambda: nn.Sequential(
            *(
                nn.Conv2d(4, 32, 8, 4),
                nn.ReLU(),
                nn.Conv2d(32, 64, 4, 2),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3),
                nn.ReLU(),
                nn.Flatten(),
            ),
            *(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6)),
        )
        return nn.ModuleDict({"now": net(), "target": net().requires_grad_(False)})

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        now, target = model["now"], model["target"]  # type: ignore[index]
        with torch.no_grad():
            aim = batch["reward"] + 0.99 * target(batch["after"].float() / 255).amax(1)
        value = now(batch["before"].float() / 255).gather(1, batch["acts"][:, None])[:, 0]
        return functional.smooth_l1_loss(value, aim, reduction="sum"), torch.tensor(len(value))

    def example(n: int) -> dict[str, Tensor]:
        screens = {name: torch.zeros(n, 4, 84, 84, dtype=torch.uint8) for name in ("before", "after")}
        return {**screens, "acts": torch.zeros(n, dtype=torch.int64), "reward": torch.zeros(n)}

    return _recipe(params, build, example, loss, OPTIMIZERS[params.optimizer], clip=10.0)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda model: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3),
    "sgd": lambda model: torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 1e-3, momentum=0.9
    ),
    "adafactor": lambda model: torch.optim.Adafactor(
        [p for p in model.parameters() if p.requires_grad], 1e-3
    ),
}


def _recipe(
    params: TrainParams, build: Any, example: Any, loss: Any, optimizer: Any, clip: float = 0.0
) -> Recipe[Any]:
    return Recipe(
        build=build,
        example_batch=example,
        batches=lambda data, _generator: data,
        steps_per_epoch=len,
        loss=loss,
        optimizer=optimizer,
        schedule=constant,
        evaluate=lambda _model, _data, _split: {},
        params=params,
        clip=clip,
    )


def images(shape: tuple[int, ...], **values: Any) -> Recipe[Any]:
    return cnn_recipe(
        CnnParams(**values),
        DataSpec(shape=shape, classes=TEN, counts={"train": 5000, "val": 512, "test": 512}),
    )


def boxes(size: int, **values: Any) -> Recipe[Any]:
    return yolo_recipe(
        YoloParams(**values),
        DataSpec(shape=(3, size, size), classes=TEN[:3], boxes=12, counts={"train": 400, "val": 60}),
    )


def graph(nodes: int, edges: int, width: int, nonzeros: int = 0, **values: Any) -> Recipe[Any]:
    return gnn_recipe(
        GnnParams(**values),
        DataSpec(shape=(width,), classes=TEN[:7], nodes=nodes, edges=edges, nonzeros=nonzeros),
    )


Cases = dict[str, tuple[Callable[[], Recipe[Any]], int]]  # name -> recipe and micro-batch
SMALL = (3, 32, 32)


def lm(**values: Any) -> Callable[[], Recipe[Any]]:
    return lambda: lm_recipe(LmParams(**values))


def matrix() -> Cases:
    """Every case."""
    return {**cnn_cases(), **detector_cases(), **graph_cases(), **lm_cases(), **agent_cases()}


def cnn_cases() -> Cases:
    return {
        "cnn 16 b512 sgd": (partial(images, SMALL, channels=16, blocks=1, batch=512), 512),
        "cnn 16 b128 sgd": (partial(images, SMALL, channels=16, batch=128), 128),
        "cnn 32 b128/32 sgd": (partial(images, SMALL, channels=32, blocks=1, batch=128), 32),
        "cnn 32 b64 adamw": (partial(images, SMALL, channels=32, blocks=2, batch=64, optimizer="adamw"), 64),
        "cnn 32 b64 bf16": (partial(images, SMALL, channels=32, blocks=2, batch=64, precision="bf16"), 64),
        "cnn 32 b128 bf16 adamw": (
            partial(images, SMALL, channels=32, blocks=1, batch=128, precision="bf16", optimizer="adamw"),
            128,
        ),
        "cnn 64 b32 sgd": (partial(images, SMALL, channels=64, blocks=1, batch=32), 32),
        "cnn 24 b64 grey 28 px": (partial(images, (1, 28, 28), channels=24, blocks=2, batch=64), 64),
        "cnn 16 b16 128 px": (partial(images, (3, 128, 128), channels=16, blocks=1, batch=16, stem=2), 16),
    }


def detector_cases() -> Cases:
    return {
        "yolo 0.5 b16 96 px": (partial(boxes, 96, width_multiplier=0.5, batch=16), 16),
        "yolo 0.5 b16/4 96 px": (partial(boxes, 96, width_multiplier=0.5, batch=16), 4),
        "yolo 1.0 b8 192 px": (partial(boxes, 192, width_multiplier=1.0, batch=8), 8),
        "yolo 1.0 b8 128 px bf16": (partial(boxes, 128, width_multiplier=1.0, batch=8, precision="bf16"), 8),
        "yolo 1.0 b16 96 px plain": (partial(boxes, 96, width_multiplier=1.0, batch=16, mosaic=0), 16),
    }


def graph_cases() -> Cases:
    return {
        "gcn sparse": (partial(graph, 2708, 5278, 1433, 49216), 140),
        "gcn dense": (partial(graph, 20000, 60000, 128), 5000),
        "gcn 3 layers": (partial(graph, 20000, 60000, 64, layers=3, hidden=128), 5000),
        "sage dense": (partial(graph, 10000, 40000, 64, conv="sage"), 2000),
        "gat dense": (partial(graph, 10000, 40000, 64, conv="gat"), 2000),
        "sage bf16": (partial(graph, 10000, 40000, 64, conv="sage", precision="bf16"), 2000),
    }


def lm_cases() -> Cases:
    return {
        "lm 4x128 b16 adamw": (lm(batch=16), 16),
        "lm 4x128 b16/4 adamw": (lm(batch=16), 4),
        "lm 4x128 b16 bf16": (lm(batch=16, precision="bf16"), 16),
        "lm 4x128 b16 no dropout": (lm(batch=16, dropout=0.0), 16),
        "lm 2x256 b8 untied sgd": (
            lm(batch=8, width=256, layers=2, tied=False, optimizer="sgd", dropout=0.0),
            8,
        ),
        "lm 2x128 b2 adafactor": (lm(batch=2, layers=2, optimizer="adafactor", dropout=0.0), 2),
        "lm 1x128 b4 vocabulary 8192": (lm(batch=4, layers=1, vocabulary=8192, dropout=0.0), 4),
        "lm 4x256 b8 bf16 no dropout": (lm(batch=8, width=256, precision="bf16", dropout=0.0), 8),
    }


def agent_cases() -> Cases:
    return {
        "ppo nets b256 adamw": (lambda: critic_recipe(NetParams()), 256),
        "ppo nets b4096 sgd": (lambda: critic_recipe(NetParams(batch=4096, optimizer="sgd")), 4096),
        "ppo nets b2048 bf16": (lambda: critic_recipe(NetParams(batch=2048, precision="bf16")), 2048),
        "dqn nets b32 adamw": (lambda: atari_recipe(NetParams(batch=32)), 32),
        "dqn nets b256/64 adamw": (lambda: atari_recipe(NetParams(batch=256)), 64),
        "dqn nets b128 bf16": (lambda: atari_recipe(NetParams(batch=128, precision="bf16")), 128),
    }
