"""Every recipe with its options on fake tensors of a CUDA card: no tensor of the host meets one of the card."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench._fit_recipes import LmParams, boxes, graph, images, lm_recipe
from overnight.training.acceleration import Precision, fuse
from overnight.training.batches import count
from overnight.training.prefetch import Prefetcher
from tasks.detection.training import detect
from tasks.vision import augment

CARD = torch.device("cuda")
RGB, GREY = (3, 32, 32), (1, 28, 28)
LEFT = (
    ".numpy() is not supported",
    ".tolist() is not supported",
    "DataDependentOutputException",
    "aten._local_scalar",
)
CASES = {
    "resnet20": lambda: images(RGB, channels=8, blocks=1, batch=8),
    "resnet20 grey": lambda: images(GREY, channels=8, blocks=1, batch=8),
    "resnet20 augmented": lambda: images(RGB, channels=8, blocks=1, batch=8, flip=True, crop=4, cutout=8),
    "resnet20 grey, stem 2": lambda: images(GREY, channels=8, blocks=1, batch=8, stem=2, crop=2),
    "resnet20 adamw, ema": lambda: images(RGB, channels=8, blocks=1, batch=8, optimizer="adamw", ema=0.9),
    "resnet18": lambda: images(RGB, arch="resnet18", channels=8, batch=8, init="scratch", cutout=4),
    "speedrun": lambda: images(RGB, arch="speedrun", channels=8, batch=8, optimizer="muon", flip="alternating", crop=2),
    "yolo": lambda: boxes(64, width_multiplier=0.25, batch=4),
    "yolo plain": lambda: boxes(64, width_multiplier=0.25, batch=4, mosaic=0, scale_jitter=0, color_jitter=0),
    "gcn": lambda: graph(60, 200, 16, hidden=8),
    "gcn sparse, 3 layers": lambda: graph(60, 200, 50, 300, hidden=8, layers=3),
    "gcn 1 layer": lambda: graph(60, 200, 16, layers=1),
    "sage": lambda: graph(60, 200, 16, conv="sage", hidden=8),
    "sage sparse": lambda: graph(60, 200, 50, 300, conv="sage", hidden=8),
    "gat": lambda: graph(60, 200, 16, conv="gat", hidden=8),
    "gat sparse": lambda: graph(60, 200, 50, 300, conv="gat", hidden=8),
    "transformer": lambda: lm_recipe(LmParams(layers=1, width=32, heads=2, context=16, dropout=0.0)),
}  # fmt: skip


def on_card(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CARD)


def moved(model):
    """The model with its weights and buffers on the fake card, laid out as the loop lays them out."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(on_card(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = on_card(buffer)
    return model


@contextmanager
def until_it_leaves_the_card():
    """What reads values goes on with host code, which no fake tensor can follow; other devices are an error."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in f"{type(error).__name__}: {error}" for sign in LEFT):
            raise


@pytest.fixture
def fake(monkeypatch):
    """Fake tensors, and an autocast that believes in the card."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@pytest.mark.parametrize("name", CASES)
def test_loss_and_evaluation_stay_on_the_card(name, fake):
    recipe = CASES[name]()
    model = moved(recipe.build())
    batch = {key: on_card(tensor) for key, tensor in recipe.example_batch(recipe.params.batch).items()}
    with torch.autocast("cuda", torch.bfloat16):
        total, counted = recipe.loss(model.train(), batch)
        assert total.device.type == "cuda"
        assert total.dtype == torch.float32
        assert counted.numel() == 1
        if recipe.eval_example:
            with until_it_leaves_the_card(), torch.inference_mode():
                recipe.evaluate(model.eval(), recipe.eval_example(), "val")
    assert count(batch) > 0


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [RGB, GREY, (3, 1, 8)])
def test_the_views_of_test_time_augmentation_stay_on_the_card(fake, flip, shape):
    views = augment.views(torch.empty(4, *shape, dtype=torch.uint8, device=CARD), flip)
    assert sum(weight for weight, _ in views) == pytest.approx(1.0)
    assert {view.device.type for _, view in views} == {"cuda"}


def test_predictions_of_the_detector_and_the_graph_net_stay_on_the_card(fake):
    model = moved(boxes(64, width_multiplier=0.25, batch=2).build()).eval()
    with until_it_leaves_the_card():
        assert detect(model, torch.empty(2, 3, 64, 64, dtype=torch.uint8, device=CARD), 0.1).is_cuda
    for case in ("gcn", "gcn sparse, 3 layers", "sage", "gat sparse"):
        recipe = CASES[case]()
        net = moved(recipe.build()).eval()
        batch = {key: on_card(tensor) for key, tensor in recipe.example_batch(4).items()}
        assert net.embed(batch).device.type == "cuda"


def test_the_optimizer_is_fused_and_grad_scaler_waits_for_no_card(fake):
    model = moved(CASES["resnet20 adamw, ema"]().build())
    optimizer = torch.optim.AdamW(model.parameters())
    assert fuse(optimizer)
    assert optimizer.param_groups[0]["fused"]
    assert optimizer._step_supports_amp_scaling


def test_gradients_are_divided_by_a_count_of_their_own_dtype(fake, monkeypatch):
    parameter = torch.nn.Parameter(torch.empty(3, device=CARD))
    parameter.grad = torch.empty(3, device=CARD)
    kinds = []
    monkeypatch.setattr(torch, "_foreach_div_", lambda _gradients, count: kinds.append(count.dtype))
    precision = Precision("fp32", torch.device("cpu"))
    count_on_card = torch.empty((), dtype=torch.float64, device=CARD)
    precision.step(torch.optim.SGD([parameter], 0.1), [parameter], count_on_card, 0.0)
    assert kinds == [torch.float32]


def test_data_that_lie_on_the_card_are_said_to(fake):
    for device, said in ((CARD, "card: made there"), (torch.device("cpu"), "host: not tensors by name")):
        loader = Prefetcher(object(), CARD)
        loader.make = lambda _data, device=device: [{"nodes": torch.empty(3, device=device)}]
        loader.settle(1e9)
        assert loader.where == said
