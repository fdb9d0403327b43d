"""How a convolutional net is trained, scored and saved; cnn.py has the step."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from overnight.artifact import Artifact, DataSpec
from overnight.data.images import as_text
from overnight.errors import DataError
from overnight.predictor import Column, Interface, class_columns
from overnight.run import Run
from overnight.training.batches import Batch, Batches
from overnight.training.evaluate import EVAL_BATCH, predict_all
from overnight.training.loop import train
from overnight.training.recipe import Recipe, Scores
from tasks.shared.threads import one_thread
from tasks.vision import augment
from tasks.vision.nets.layers import Scaled
from tasks.vision.nets.resnet18 import ResNet18
from tasks.vision.nets.resnet20 import Net, stem_strides
from tasks.vision.nets.speedrun import Speedrun
from tasks.vision.optimizers import optimizer, schedule
from tasks.vision.params import CnnParams
from tasks.vision.pretrained import initial
from tasks.vision.report import report, tell

Data = dict[str, Tensor]
SMALL = 2**18  # values of a layer below which a second thread costs more than it brings


def recipe(params: CnnParams, spec: DataSpec) -> Recipe[Data]:
    def example(n: int) -> Batch:
        images = {
            "images": torch.zeros((n, *spec.shape), dtype=torch.uint8),
            "labels": torch.zeros(n, dtype=torch.int64),
        }
        return images | augment.example(params, spec.shape, n)

    return Recipe(
        build=partial(build, spec, params),
        example_batch=example,
        batches=partial(batches, params),
        steps_per_epoch=lambda data: max(1, len(data["train_labels"]) // params.batch),
        loss=partial(_loss, params),
        optimizer=partial(optimizer, params),
        schedule=schedule(params),
        evaluate=_evaluate,
        eval_example=lambda: {f"val_{name}": tensor for name, tensor in example(EVAL_BATCH).items()},
        params=params,
        ema=params.ema,
    )


def build(spec: DataSpec, params: CnnParams) -> nn.Module:
    """The untrained net."""
    shape, classes, width = spec.shape, len(spec.classes), params.first_channels
    if params.arch == "resnet18":
        return ResNet18(shape, classes, width)
    return (
        Speedrun(shape, classes, width)
        if params.arch == "speedrun"
        else Net(shape, classes, width, params.blocks, params.stem)
    )


def batches(params: CnnParams, data: Data, generator: torch.Generator) -> Batches:
    """One epoch in a new order; what does not fill the last batch waits for another epoch's order."""
    images, labels = data["train_images"], data["train_labels"]
    order = torch.randperm(len(labels), generator=generator)
    starts = range(0, max(len(labels) - params.batch, 0) + 1, params.batch)
    mirror = augment.alternating(len(labels), generator) if params.flip == "alternating" else None

    def batch(chosen: Tensor, generator: torch.Generator) -> Batch:
        drawn = augment.draw(params, tuple(images.shape[1:]), len(chosen), generator)
        drawn |= {} if mirror is None else {"mirror": mirror[chosen]}
        found = {
            "images": images.index_select(0, chosen.to(images.device)),
            "labels": labels.index_select(0, chosen.to(labels.device)),
        }
        return found | drawn

    return Batches([order[start : start + params.batch] for start in starts], batch, generator)


def _loss(params: CnnParams, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of the images as their draws say; in evaluation the batch has none."""
    labels, logits = batch["labels"], model(augment.apply(batch, params))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(
        logits, labels, label_smoothing=params.label_smoothing, reduction="sum"
    ), torch.tensor(len(labels))


def _evaluate(model: nn.Module, data: Data, split: str) -> Scores:
    labels = data[f"{split}_labels"]
    if not len(labels):
        return {}
    logits = predict_all(model, data[f"{split}_images"], next(model.parameters()).device)
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "loss": float(functional.cross_entropy(logits, labels)),
    }


def fit(run: Run, params: CnnParams, images: Artifact) -> Artifact:
    if len(images.expect("images").spec.classes) < 2:
        raise DataError(
            f"a classifier needs two classes to tell apart; the images have {list(images.spec.classes)}"
        )
    data = {name: torch.from_numpy(array) for name, array in images.arrays().items()}
    made = recipe(params, images.spec)
    weights = initial(params, made.build().state_dict(), run.note, run.provisional)
    with one_thread(_layer(params, images.spec) < SMALL):
        fitted = train(
            replace(made, build=lambda: prepared(made.build(), data["train_images"], weights)), run, data
        )
        probabilities = probabilities_of(fitted.model, data["test_images"])
        averaged = _over_views(fitted.model, data["test_images"], bool(params.flip)) if params.tta else None
    report(run, images, data, probabilities, averaged)
    tell(run, data, probabilities, fitted, params.epochs)
    config = {"spec": images.spec.model_dump(mode="json"), "params": params.model_dump(mode="json")}
    classes, (height, width) = images.spec.classes, images.spec.shape[1:]
    example = {"image": as_text(data["test_images"][0].numpy())}
    interface = Interface(
        kind="images",
        about=f"{params.arch}: {len(classes)} classes of images, seen at {width} x {height} px",
        inputs=(Column(name="image", type="any", dimensions=(0, 2, 3)),),
        outputs=class_columns(classes),
        example=(example,),
    )
    state = fitted.model.state_dict()
    return run.save_model("tasks.vision.predictor:predictor", state, config, images.spec, interface)


def _layer(params: CnnParams, spec: DataSpec) -> int:
    """Values that a layer of the first stage puts out for a batch."""
    halved = math.prod(stem_strides(max(spec.shape[1:]), params.stem)) if params.arch == "resnet20" else 1
    return params.batch * params.first_channels * math.prod(spec.shape[1:]) // halved**2


def prepared(net: nn.Module, images: Tensor, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The net with the scale and whitened patches of the training images, and with initial weights."""
    assert isinstance(net, Scaled)
    net.measure(images)
    if isinstance(net, Speedrun):
        net.whiten(images)
    if weights:
        net.load_state_dict(net.state_dict() | weights)
    return net


@torch.inference_mode()
def probabilities_of(model: nn.Module, images: Tensor) -> np.ndarray:
    found: np.ndarray = predict_all(model, images, next(model.parameters()).device).softmax(1).numpy()
    return found


@torch.inference_mode()
def _over_views(model: nn.Module, images: Tensor, flip: bool) -> np.ndarray:
    """Probabilities by the mean of the logits over several views of each image."""

    def mean(part: Tensor) -> Tensor:
        return torch.stack([weight * model(view).float() for weight, view in augment.views(part, flip)]).sum(
            0
        )

    found: np.ndarray = predict_all(mean, images, next(model.parameters()).device).softmax(1).numpy()
    return found
