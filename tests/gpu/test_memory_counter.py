"""The virtual card's counter beside torch's own profiler, which shares no code with it, to the byte."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from overnight.artifact import DataSpec
from overnight.gpu.memory_counter import Counter
from overnight.training.recipe import Recipe

NUMBERS = 64  # bytes of numbers that Python hands to operators, which are tensors to them and to the profiler
MEMORY, STEP, OPERATOR = "[memory]", "end of step", "operator"
Work = Callable[[], Iterator[None]]  # yields at the end of each of its steps


class Seen(NamedTuple):
    """What both saw: live bytes at the end of every step, and the most at any time, theirs also between
    operators alone.
    """

    ours: list[int]
    theirs: list[int]
    between: int
    our_peak: int
    their_peak: int


def watch(work: Work, count: bool = True) -> Seen:
    """Run *work* under both, or under the profiler alone."""
    counter, ours = Counter(), list[int]()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile,
        counter if count else nullcontext(),
    ):
        for _ in work():
            with torch.profiler.record_function(STEP):
                ours.append(counter.use())
    live, peak, between, theirs, busy_until = 0, 0, 0, list[int](), 0
    for at, kind, size, end in moments(profile):
        if kind == MEMORY:
            live, peak = live + size, max(peak, live + size)
        elif kind == STEP:
            theirs.append(live)
        elif kind == OPERATOR:
            busy_until = max(busy_until, end)
        elif at >= busy_until:  # the end of an operator that no other one called
            between = max(between, live)
    return Seen(ours, theirs, between, counter.peak(), peak)


def moments(profile: torch.profiler.profile) -> list[tuple[int, str, int, int]]:
    """(when, what, bytes, end) of everything that the profiler recorded and that matters here, in order."""
    found = []
    for event in profile.profiler.kineto_results.events():
        begin, end = event.start_ns(), event.start_ns() + event.duration_ns()
        if event.name() in {MEMORY, STEP}:
            found.append((begin, event.name(), event.nbytes(), end))
        elif event.name().startswith("aten::"):
            found += [(begin, OPERATOR, 0, end), (end, "end", 0, end)]
    return sorted(found, key=lambda moment: moment[0])


def trains(
    net: Callable[[], nn.Module],
    data: Callable[[], torch.Tensor],
    optimizer: Any,
    cast: bool = False,
    **options: Any,
) -> Work:
    """Steps of a classifier of three classes."""

    def work() -> Iterator[None]:
        torch.manual_seed(0)
        model = net()
        steps = optimizer(model.parameters(), **options)
        for _ in range(4):
            steps.zero_grad()
            inputs = data()
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                loss = functional.cross_entropy(model(inputs).float(), torch.randint(0, 3, (len(inputs),)))
            loss.backward()
            steps.step()
            yield

    return work


def cnn() -> nn.Module:
    layers = [
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2),
    ]
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 128), nn.LayerNorm(128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 3))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


class Last(nn.Module):
    """A classifier by the last of a sequence's outputs."""

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.net(x)
        return self.head((out[0] if isinstance(out, tuple) else out)[:, -1])


def images() -> torch.Tensor:
    return torch.randn(16, 3, 24, 24)


def rows() -> torch.Tensor:
    return torch.randn(64, 40)


def words() -> torch.Tensor:
    return torch.randn(4, 20, 32)


def follows(method: "Callable[[], Recipe[Any]]") -> Work:
    """Steps of one of the project's own methods, on made-up samples, with a look at it in eval mode after
    each.
    """

    def work() -> Iterator[None]:
        torch.manual_seed(0)
        recipe = method()
        model = recipe.build()
        optimizer = recipe.optimizer(model)
        for _ in range(3):
            batch = recipe.example_batch(2)
            optimizer.zero_grad()
            loss, _ = recipe.loss(model, batch)
            loss.backward()
            optimizer.step()
            model.eval()
            with torch.inference_mode():
                recipe.loss(model, batch)
            model.train()
            yield

    return work


def classifier() -> "Recipe[Any]":
    from tasks.vision.cnn import CnnParams, cnn_recipe

    return cnn_recipe(CnnParams(channels=8, blocks=1), DataSpec(shape=(3, 16, 16), classes=("a", "b", "c")))


def detector() -> "Recipe[Any]":
    from tasks.detection.yolo import YoloParams, yolo_recipe

    return yolo_recipe(
        YoloParams(batch=2, width_multiplier=0.5),
        DataSpec(shape=(3, 64, 64), classes=("a", "b"), counts={"train": 4}, boxes=3),
    )


def graph(conv: str) -> "Recipe[Any]":
    from tasks.graphs.nodes import GnnParams, gnn_recipe

    spec = DataSpec(
        shape=(12,), classes=("a", "b"), nodes=50, edges=120, counts={"train": 20, "val": 10, "test": 20}
    )
    return gnn_recipe(GnnParams.model_validate({"conv": conv}), spec)


WORK = {
    "cnn": trains(cnn, images, torch.optim.SGD, lr=0.1, momentum=0.9),
    "cnn, mixed precision": trains(cnn, images, torch.optim.SGD, cast=True, lr=0.1),
    "mlp, adam": trains(mlp, rows, torch.optim.Adam),
    "mlp, adam over lists": trains(mlp, rows, torch.optim.Adam, foreach=True),
    "mlp, adam in one": trains(mlp, rows, torch.optim.AdamW, fused=True),
    "attention": trains(Attends, words, torch.optim.AdamW),
    "attention, mixed precision": trains(Attends, words, torch.optim.AdamW, cast=True),
    "transformer": trains(
        lambda: Last(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 32), words, torch.optim.AdamW
    ),
    "lstm": trains(lambda: Last(nn.LSTM(32, 16, batch_first=True), 16), words, torch.optim.SGD),
    "classifier": follows(classifier),
    "detector": follows(detector),
    "gcn": follows(lambda: graph("gcn")),
    "sage": follows(lambda: graph("sage")),
}


def odds() -> Iterator[None]:
    """Other ways to come by memory; each yield is a look."""
    kept: list[Any] = [torch.tensor([[1.0, 2.0], [3.0, 4.0]])]
    yield
    grown = torch.empty(0).resize_(1000)
    kept += [grown, torch.add(torch.ones(300), 1, out=torch.empty(0)), grown.resize_(5000)]
    yield
    kept += [
        torch.eye(50).to_sparse_csr(),
        torch.eye(50).to_sparse(),
        torch.eye(50).to_sparse() @ torch.ones(50, 4),
    ]
    yield
    kept += [
        torch.vmap(lambda x: x.sum() * x)(torch.ones(10, 30)),
        torch.func.grad(lambda x: (x**2).sum())(torch.ones(100)),
    ]
    yield
    kept += [
        torch.empty(0).set_(torch.UntypedStorage(8000)),
        copy.deepcopy(kept[0]),
        torch.linalg.svd(torch.randn(20, 20)),
    ]
    yield
    kept += [
        torch.fft.rfft(torch.randn(200)),
        torch.randn(10, 10).topk(3),
        torch.randn(9).split(3),
        torch.randperm(20),
    ]
    yield
    with torch.inference_mode():
        kept += [
            torch.ones(6, 4).t().reshape(-1),
            torch.ones(6, 4).contiguous(),
            torch.ones(9).to(torch.float64),
            nn.Linear(8, 9)(torch.ones(8)),
        ]
    yield
    del kept[3:8]
    grown.resize_(0)
    yield


WORK["odds"] = odds


@pytest.mark.parametrize("name", WORK)
def test_the_counter_agrees_with_the_profiler(name):
    """Live bytes at the end of each step to the byte.

    Its peak misses at most what an operator takes and gives back while it runs.
    """
    seen = watch(WORK[name])
    assert seen.ours == seen.theirs
    assert len(seen.ours) >= 3
    assert 0 < seen.ours[-1] < seen.between <= seen.our_peak + NUMBERS
    assert seen.our_peak <= seen.their_peak


@pytest.mark.parametrize("name", ["cnn", "transformer", "classifier", "gcn"])
def test_what_is_counted_needs_what_it_needs_uncounted(name):
    """Being watched changes how autograd adds up gradients, and not how much memory the whole thing takes at
    most.
    """
    counted, plain = watch(WORK[name]), watch(WORK[name], count=False)
    assert counted.theirs == plain.theirs
    assert counted.their_peak == pytest.approx(plain.their_peak, rel=0.02)


def test_results_are_those_without_it():
    def losses() -> list[float]:
        torch.manual_seed(0)
        model = classifier().build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8)).square().mean()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    with Counter():
        counted = losses()
    assert counted == losses()
