"""A residual net for small images (He et al. 2016, the CIFAR form), trained with batched augmentation."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from overnight import pictures
from overnight.artifact import Artifact, DataSpec
from overnight.errors import DataError
from overnight.loop.memory import SLICE
from overnight.run import Run
from overnight.step import step
from overnight.threads import one_thread
from overnight.training import Batch, Batches, Recipe, Scores, TrainParams, cosine, scores_on, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = dict[str, Tensor]
SMALL = 2**18  # values of a layer below which a second thread costs more than it brings


class CnnParams(TrainParams):
    """The net, its augmentation and its optimiser."""

    width: int = Field(16, ge=4, le=512, description="channels of the first of three stages; each next one doubles them")
    blocks: int = Field(3, ge=1, le=18, description="residual blocks a stage: 3 make ResNet-20")
    stem: Literal[1, 2] = Field(1, description="stride of the first convolution; 2 costs a quarter of the time")
    flip: bool = Field(False, description="mirror half of the images left to right")
    crop: int = Field(0, ge=0, description="px of random shift, with mirrored borders")
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.2, gt=0, description="peak, at this batch")
    warmup: float = Field(0.2, ge=0, lt=1, description="share of the steps before the peak; half a cosine follows")
    weight_decay: float = Field(5e-4, ge=0, description="of convolutions and the linear layer")
    label_smoothing: float = Field(0.1, ge=0, lt=1)


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(inside, outside, stride), nn.ReLU(), _conv(outside, outside))
        self.around = nn.Identity() if inside == outside and stride == 1 else _conv(inside, outside, stride, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) -> (N, outside, H / stride, W / stride)."""
        return functional.relu(self.body(x) + self.around(x))


class Net(nn.Module):
    """uint8 (N, C, H, W) -> logits (N, classes). Images above 64 px are first halved, by strided convolutions, to at most 64."""

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, blocks: int, stem: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((shape[0], 1, 1), 0.5))
        self.register_buffer("std", torch.full((shape[0], 1, 1), 0.25))
        strides = _stem_strides(max(shape[1:]), stem)
        layers: list[nn.Module] = []
        for inside, stride in zip([shape[0], *[width] * len(strides)], strides, strict=False):
            layers += [_conv(inside, width, stride), nn.ReLU()]
        for stage in range(3):
            into, out = width * 2 ** max(0, stage - 1), width * 2**stage
            layers += [Block(out if block else into, out, 2 if stage and not block else 1) for block in range(blocks)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised, convolved, averaged over the picture, classified."""
        x = (images.float() / 255 - self.mean) / self.std
        logits: Tensor = self.head(self.body(x.contiguous(memory_format=torch.channels_last)).mean((2, 3)))
        return logits


def _conv(inside: int, outside: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution and batch norm; the weights lie as the pixels do (not by Module.to, which fake tensors cannot follow)."""
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
    conv.weight = nn.Parameter(conv.weight.detach().contiguous(memory_format=torch.channels_last))
    return nn.Sequential(conv, nn.BatchNorm2d(outside))


def _stem_strides(side: int, stem: int) -> list[int]:
    """Strides of the first convolutions: the stages see at most 64 px, and at least 8 where the image has them."""
    halvings = max(stem - 1, math.ceil(math.log2(side / 64)))
    return [2] * min(halvings, int(math.log2(max(side, 8) / 8))) or [1]


def cnn_recipe(params: CnnParams, spec: DataSpec) -> Recipe[Data]:
    """How the classifier trains; the normalisation constants are put in by the step, which has the data."""

    def example(n: int) -> Batch:
        return {"images": torch.zeros((n, *spec.shape), dtype=torch.uint8), "labels": torch.zeros(n, dtype=torch.int64)}

    return Recipe(
        build=partial(build, spec, params),
        example=example,
        batches=partial(batches, params),
        steps_per_epoch=lambda data: max(1, len(data["train_labels"]) // params.batch),
        loss=partial(_loss, params.label_smoothing),
        optimiser=partial(_optimiser, params),
        schedule=cosine(params.warmup),
        evaluate=_evaluate,
        sample=lambda: {f"val_{name}": tensor for name, tensor in example(SLICE).items()},
        params=params,
    )


def build(spec: DataSpec, params: CnnParams) -> nn.Module:
    """The untrained net."""
    return Net(spec.shape, len(spec.classes), params.width, params.blocks, params.stem)


def batches(params: CnnParams, data: Data, generator: torch.Generator) -> Batches:
    """One epoch in a new order; what does not fill the last batch waits for another epoch's order."""
    images, labels = data["train_images"], data["train_labels"]
    order = torch.randperm(len(labels), generator=generator)
    starts = range(0, max(len(labels) - params.batch, 0) + 1, params.batch)

    def batch(chosen: Tensor, generator: torch.Generator) -> Batch:
        return {"images": augment(images, chosen, params, generator), "labels": labels[chosen]}

    return Batches([order[start : start + params.batch] for start in starts], batch, generator)


def augment(images: Tensor, chosen: Tensor, params: CnnParams, generator: torch.Generator) -> Tensor:
    """The chosen uint8 (N, C, H, W), shifted and flipped by a single gather: no float, no padding, no loop over samples."""
    if not params.crop and not params.flip:
        return images[chosen]
    n, (height, width) = len(chosen), images.shape[2:]
    rows, columns = (_shifted(length, n, params.crop, generator) for length in (height, width))
    if params.flip:
        mirror = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirror, width - 1 - columns, columns)
    pixels_NHWC = images.permute(0, 2, 3, 1)[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pixels_NHWC.permute(0, 3, 1, 2)


def _shifted(length: int, n: int, most: int, generator: torch.Generator) -> Tensor:
    """For each of n images the source index of every pixel after a random shift; borders are mirrored."""
    most = min(most, length - 1)
    shift = torch.randint(-most, most + 1, (n, 1), generator=generator)
    return (length - 1) - ((length - 1) - (torch.arange(length) + shift).abs()).abs()


def _loss(smoothing: float, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    labels = batch["labels"]
    loss = functional.cross_entropy(model(batch["images"]).float(), labels, label_smoothing=smoothing, reduction="sum")
    return loss, torch.tensor(len(labels))


def _optimiser(params: CnnParams, model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if params.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=params.lr)
    return torch.optim.SGD(groups, lr=params.lr, momentum=0.9, nesterov=True)


def _evaluate(model: nn.Module, data: Data, split: str) -> Scores:
    labels = data[f"{split}_labels"]
    logits = scores_on(model, data[f"{split}_images"], next(model.parameters()).device)
    return {"accuracy": float((logits.argmax(1) == labels).double().mean()), "loss": float(functional.cross_entropy(logits, labels))}


@step(gpu=True, recipe=cnn_recipe, vram_mib=2048)
def train_cnn(run: Run, params: CnnParams, images: Artifact) -> Artifact:
    """Train a classifier of images; val picks the epoch, test is only reported.

    In: artifact "images". Out: artifact "model" whose predictor maps uint8 (N, C, H, W) to probabilities (N, classes).
    Logs test/accuracy beside test/majority (always the class most frequent in train), test/loss, test/balanced_accuracy, a
    table by class, the confusion matrix and the most confident mistakes. Source: He et al. 2016, sections 3 and 4.2; one-cycle schedule after Smith 2018.
    """
    if len(images.expect("images").spec.classes) < 2:
        raise DataError(f"a classifier needs two classes to tell apart; the images have {list(images.spec.classes)}")
    data = {name: torch.from_numpy(array) for name, array in images.arrays().items()}
    recipe = cnn_recipe(params, images.spec)
    with one_thread(_layer(params, images.spec) < SMALL):
        fitted = train(replace(recipe, build=lambda: _normalised(recipe.build(), data["train_images"])), run, data)
        probabilities = _probabilities(fitted.model, data["test_images"])
    accuracy = _report(run, images, data, probabilities)
    run.note(
        f"CNN: {accuracy:.1%} of {len(probabilities)} test images right, {len(images.spec.classes)} classes; "
        f"best epoch {fitted.epoch} of {params.epochs} (val {fitted.scores['accuracy']:.1%})"
    )
    config = {"spec": images.spec.model_dump(mode="json"), "params": params.model_dump(mode="json")}
    return run.save_model("tasks.cnn:predictor", fitted.model.state_dict(), config, images.spec, data["test_images"][:4].numpy())


def _layer(params: CnnParams, spec: DataSpec) -> int:
    """Values that a layer of the first stage puts out for a batch."""
    halved = math.prod(_stem_strides(max(spec.shape[1:]), params.stem))
    return params.batch * params.width * math.prod(spec.shape[1:]) // halved**2


def _normalised(net: nn.Module, images: Tensor) -> nn.Module:
    """The net with the mean and deviation of each channel of the training images."""
    assert isinstance(net, Net)
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]).double()
    levels, total = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1)
    mean = (counts * levels).sum(1) / total
    std = ((counts * levels**2).sum(1) / total - mean**2).clamp(min=0).sqrt()
    net.mean.copy_(mean.view(-1, 1, 1))
    net.std.copy_(std.clamp(min=1 / 255).view(-1, 1, 1))
    return net


@torch.inference_mode()
def _probabilities(model: nn.Module, images: Tensor) -> np.ndarray:
    found: np.ndarray = scores_on(model, images, next(model.parameters()).device).softmax(1).numpy()
    return found


def _report(run: Run, images: Artifact, data: Data, probabilities: np.ndarray) -> float:
    """Scores and pictures of the test split; the accuracy."""
    labels, guesses, classes = data["test_labels"].numpy(), probabilities.argmax(1), images.spec.classes
    right = guesses == labels
    majority = int(torch.bincount(data["train_labels"]).argmax())
    loss = -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean()
    run.metrics({"test/accuracy": right.mean(), "test/majority": (labels == majority).mean(), "test/loss": float(loss)})
    run.picture("confusion", pictures.confusion(labels, guesses, classes))
    run.picture("mistakes", _mistakes(data["test_images"], labels, probabilities, classes))
    _by_class(run, labels, guesses, classes)
    return float(right.mean())


def _by_class(run: Run, labels: np.ndarray, guesses: np.ndarray, classes: Sequence[str]) -> None:
    """Precision and recall of each class as a table, the mean recall as a metric."""
    n, right = len(classes), labels == guesses
    hits, true, said = (np.bincount(values, minlength=n) for values in (labels[right], labels, guesses))
    recall, precision = hits / np.maximum(true, 1), hits / np.maximum(said, 1)
    run.metric("test/balanced_accuracy", float(recall[true > 0].mean()))
    path = run.folder / "classes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "test images", "recall", "precision"])
        table.writerows([name, t, f"{r:.4f}", f"{p:.4f}"] for name, t, r, p in zip(classes, true, recall, precision, strict=True))
    run.publish(path)


def _mistakes(images: Tensor, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], most: int = 32) -> "Figure":
    """The wrong answers given with the most confidence: truth, answer and its probability."""
    guesses, sure, names = probabilities.argmax(1), probabilities.max(1), pictures.names(classes)
    wrong = np.flatnonzero(guesses != labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    titles = [f"is {names[labels[i]]}\nsaid {names[guesses[i]]} {sure[i]:.0%}" for i in worst]
    title = f"{len(wrong)} of {len(labels)} test images wrong; the most confident {len(worst)}"
    return pictures.grid(images[worst].numpy(), titles, title=title)


def predictor(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 (N, C, H, W) -> float32 probabilities (N, classes), by the model in that folder."""
    from safetensors.torch import load_file

    config = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["config"]
    spec = DataSpec.model_validate(config["spec"])
    net = build(spec, CnnParams.model_validate(config["params"]))
    net.load_state_dict(load_file(folder / "weights.safetensors"))
    net.eval()

    def predict(images: np.ndarray) -> np.ndarray:
        array = np.asarray(images)
        if array.dtype != np.uint8 or array.shape[1:] != spec.shape:
            raise DataError(f"the model takes uint8 images of {('N', *spec.shape)}, not {array.dtype} of {array.shape}")
        return _probabilities(net, torch.from_numpy(array))

    return predict
