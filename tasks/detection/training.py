"""How a detector is trained, scored and saved; yolo.py has the step."""

import re

import numpy as np
import torch
from torch import Tensor, nn

from overnight import Artifact, DataSpec, Run
from overnight.data.images import as_text
from overnight.errors import DataError
from overnight.predictor import Column, Interface
from overnight.training.batches import Batch, Batches
from overnight.training.evaluate import predict_in_batches
from overnight.training.loop import TrainResult, train
from overnight.training.recipe import Recipe, cosine
from tasks.detection import augment, report
from tasks.detection.boxes import detections
from tasks.detection.coco_ap import Precision, best_threshold, precision
from tasks.detection.loss import detection_loss
from tasks.detection.model import STRIDES, Yolo, decode, places
from tasks.detection.params import YoloParams
from tasks.shared.figures import names as shown

Arrays = dict[str, np.ndarray]
LIMIT = 100  # found boxes on one image
LEAST = 0.001  # the lowest score that takes part in an evaluation
SHOWN = 0.3  # the lowest score that counts where val has no boxes to choose it by


def recipe(params: YoloParams, spec: DataSpec) -> Recipe[Arrays]:
    _checked(spec)
    counts = max(1, spec.counts.get("train", 1))
    steps = -(-counts // params.batch) * params.epochs
    return Recipe(
        build=lambda: Yolo(len(spec.classes), params.width_multiplier),
        example_batch=lambda n: _example(params, spec, n),
        batches=lambda data, generator: _batches(params, data, generator, closing=False),
        final_epoch_batches=lambda data, generator: _batches(params, data, generator, closing=True),
        steps_per_epoch=lambda data: -(-len(data["train_images"]) // params.batch),
        loss=_loss,
        optimizer=lambda model: _optimizer(model, params),
        schedule=cosine(0.05, 0.02),
        evaluate=lambda model, data, split: _measure(model, data, split, params, len(spec.classes)).scores,
        eval_example=lambda: _sample(spec, min(params.batch, params.micro_batch or params.batch)),
        params=params,
        monitor="map50",
        clip=10.0,
        ema=min(0.999, 1 - 1 / max(4.0, 0.05 * steps)),
    )


def fit(run: Run, params: YoloParams, boxes: Artifact) -> Artifact:
    spec, data = boxes.expect("boxes").spec, boxes.arrays()
    made = recipe(params, spec)
    if not len(data["train_images"]):
        raise DataError(f"{boxes.path.name}: the split 'train' has no images; nothing can be learnt")
    fitted = train(made, run, data)
    val = found(fitted.model, data["val_images"], _evaluated_at_once(params))
    least = (
        best_threshold(list(val), list(data["val_boxes"]), list(data["val_labels"]), len(spec.classes))
        or SHOWN
    )
    _report(
        run, found(fitted.model, data["test_images"], _evaluated_at_once(params)), data, spec, fitted, least
    )
    config = {
        "classes": list(spec.classes),
        "width_multiplier": params.width_multiplier,
        "shape": list(spec.shape),
        "least_score": least,
    }
    interface = _interface(
        spec, least, data["test_images" if len(data["test_images"]) else "train_images"][0]
    )
    state = fitted.model.state_dict()
    return run.save_model("tasks.detection.predictor:predictor", state, config, spec, interface)


def _interface(spec: DataSpec, least: float, example: np.ndarray) -> Interface:
    numbers = ("score", "x1", "y1", "x2", "y2")
    return Interface(
        kind="images",
        about=f"Detector: {len(spec.classes)} classes, boxes in pixels of the image as it is seen; "
        f"by default those of score {least:.2f} and more, which is best on val",
        inputs=(Column(name="image", type="any", dimensions=(0, 2, 3)),),
        outputs=(
            Column(name="image", type="long"),
            Column(name="class", type="string"),
            *(Column(name=name, type="double") for name in numbers),
        ),
        options={"least_score": least},
        example=({"image": as_text(example)},),
    )


def _checked(spec: DataSpec) -> tuple[int, int]:
    """Height and width of the images."""
    if (
        len(spec.shape) != 3
        or spec.shape[0] != 3
        or any(side % STRIDES[-1] or side < 64 for side in spec.shape[1:])
    ):
        raise DataError(
            f"images of shape {spec.shape}: a detector takes (3, H, W) with sides of 64 pixels or more, "
            "divisible by 32"
        )
    if not spec.classes:
        raise DataError("the data set names no classes; a detector needs at least one")
    return spec.shape[1], spec.shape[2]


def _example(params: YoloParams, spec: DataSpec, n: int) -> Batch:
    """A made-up batch with the shapes, and at most the boxes, of a real one."""
    height, width = _checked(spec)
    boxes = max(1, spec.boxes) * (2 if params.mosaic else 1)
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(n, boxes, 2, 2, generator=generator).sort(2).values * torch.tensor([width, height])
    return {
        "images": torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator),
        "boxes": corners.flatten(2),
        "labels": torch.randint(0, len(spec.classes), (n, boxes), generator=generator),
        **augment.draw(n, (0.5, 0.5), params.scale_jitter, params.translate, params.color_jitter, generator),
    }


def _sample(spec: DataSpec, n: int) -> Arrays:
    """A made-up val split."""
    boxes = max(1, spec.boxes)
    return {
        "val_images": np.zeros((n, *spec.shape), np.uint8),
        "val_boxes": np.zeros((n, boxes, 4), np.float32),
        "val_labels": np.full((n, boxes), -1, np.int64),
    }


def _batches(params: YoloParams, data: Arrays, generator: torch.Generator, closing: bool) -> Batches:
    """One epoch, shuffled. The closing epochs see images as they are, but for flips: no mosaic, no jitter."""
    images, boxes, labels = (
        torch.from_numpy(data[f"train_{name}"]) for name in ("images", "boxes", "labels")
    )
    flips = (params.flip_probability, params.flip_vertical_probability)

    def batch(index: Tensor, generator: torch.Generator) -> Batch:
        found = {"images": images[index], "boxes": boxes[index], "labels": labels[index]}
        if closing:
            return found | augment.draw(len(index), flips, 0, 0, 0, generator)
        found = augment.mosaic(found, params.mosaic, generator) if params.mosaic else found
        return found | augment.draw(
            len(index), flips, params.scale_jitter, params.translate, params.color_jitter, generator
        )

    order = torch.randperm(len(images), generator=generator)
    return Batches(order.split(params.batch), batch, generator)  # type: ignore[no-untyped-call]


def _loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    batch = augment.apply(batch)
    images = batch["images"]
    logits, sides = model(images)
    return detection_loss(logits, sides, (images.shape[2], images.shape[3]), batch["boxes"], batch["labels"])


def _optimizer(model: nn.Module, params: YoloParams) -> torch.optim.Optimizer:
    """AdamW; norms and biases do not decay."""
    heavy = [p for p in model.parameters() if p.ndim > 1]
    light = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": heavy, "weight_decay": params.weight_decay}, {"params": light, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=params.lr)


def detect(model: nn.Module, images: Tensor, least: float) -> Tensor:
    """(B, 100, 6) for images (B, 3, H, W) on the model's device."""
    logits, sides = (output.float() for output in model(images))
    centres, strides = places(images.shape[2], images.shape[3], logits.device)
    boxes = decode(sides, centres, strides)
    limits = torch.tensor([images.shape[3], images.shape[2]] * 2, device=boxes.device)
    return detections(logits.sigmoid(), torch.minimum(boxes.clamp(min=0), limits), least, limit=LIMIT)


@torch.inference_mode()
def found(model: nn.Module, images: np.ndarray, size: int, least: float = LEAST) -> np.ndarray:
    """(N, 100, 6) x1 y1 x2 y2 score class in images (N, 3, H, W), `size` of them at once; -1 pads."""
    device = next(model.parameters()).device
    parts = predict_in_batches(
        lambda part: detect(model, part, least), torch.from_numpy(images), device, size
    )
    return np.asarray(torch.cat(parts or [torch.zeros(0, LIMIT, 6)]).numpy())


def _measure(model: nn.Module, data: Arrays, split: str, params: YoloParams, classes: int) -> Precision:
    """Average precision on a split; an empty one has no scores."""
    images, boxes, labels = (data[f"{split}_{name}"] for name in ("images", "boxes", "labels"))
    boxes_found = found(model, images, _evaluated_at_once(params))
    return precision(list(boxes_found), list(boxes), list(labels), classes)


def _evaluated_at_once(params: YoloParams) -> int:
    return min(params.batch, params.micro_batch or params.batch)


def _report(
    run: Run, boxes_found: np.ndarray, data: Arrays, spec: DataSpec, fitted: TrainResult, least: float
) -> None:
    """Test scores, pictures, tables, and the sentence that says what happened."""
    images, boxes, labels = (data[f"test_{name}"] for name in ("images", "boxes", "labels"))
    tested = precision(list(boxes_found), list(boxes), list(labels), len(spec.classes))
    run.metrics({f"test/{name}": value for name, value in tested.scores.items()})
    run.metrics({f"test/ap50/{_plain(spec.classes, kind)}": tested.ap[kind, 0] for kind in tested.seen})
    by = (
        f"best epoch {fitted.epoch} by val mAP50 {fitted.scores['map50']:.3f}"
        if fitted.scores
        else f"epoch {fitted.epoch}, the last: val has no boxes to choose by"
    )
    if not tested.scores:
        run.note(f"detector of {len(spec.classes)} classes: {by}; no boxes to test on")
        return
    names = shown(spec.classes)
    run.picture("detections", report.drawn(images, boxes_found, boxes, labels, names, least))
    run.picture("precision_recall", report.curves(tested, names))
    parts = zip(boxes_found, boxes, labels, strict=True)
    images_judged = [report.judged(*part, least) for part in parts]
    run.picture("confusion", report.confusion(images_judged, spec.classes))
    report.by_class(run.folder / "classes.csv", images_judged, tested, spec.classes)
    run.publish(run.folder / "classes.csv")
    scores = tested.scores
    run.note(
        f"detector: mAP50 {scores['map50']:.3f}, mAP50:95 {scores['map50_95']:.3f} on {len(images)} test "
        f"images; {by}"
    )


def _plain(classes: tuple[str, ...], kind: int) -> str:
    """A class as part of a metric's name: letters of any script, digits, - and _.

    Its number where that is not unique.
    """
    names = [re.sub(r"[^\w\-]+", "_", name).strip("_") for name in classes]
    name = names[kind]
    return name if name and names.count(name) == 1 else f"{name}_{kind}".lstrip("_")
