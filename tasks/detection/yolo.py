"""A compact anchor-free object detector, trained from scratch.

Written from the papers: CSP stages (PP-YOLOE), PANet, shared towers with norms per stride (RTMDet),
task-aligned assignment (TOOD), quality and distribution focal loss (GFL), GIoU, the RetinaNet prior, mosaic
(YOLOv4), COCO's average precision.
"""

from typing import TYPE_CHECKING

from overnight import Artifact, DataSpec, Run, step
from tasks.detection.params import YoloParams

if TYPE_CHECKING:
    import numpy as np

    from overnight.training.recipe import Recipe

__all__ = ["YoloParams", "train_yolo", "yolo_recipe"]


def yolo_recipe(params: YoloParams, spec: DataSpec) -> "Recipe[dict[str, np.ndarray]]":
    """The training of a detector for images of `spec.shape` (3, H, W) with `spec.classes`.

    The loss is normalised by how much object the images hold (see detection_loss), a count that adds up over
    micro-batches.
    """
    from tasks.detection import training

    return training.recipe(params, spec)


@step(gpu=True, recipe=yolo_recipe, vram_mib=3000)
def train_yolo(run: Run, params: YoloParams, boxes: Artifact) -> Artifact:
    """Train on the images of a "boxes" artifact; val chooses the epoch by map50, test is only reported.

    Logs test/map50, test/map50_95 (COCO's definitions) and test/ap50/<class>, detections drawn on test
    images, precision-recall curves. Hands on a model: images of any size and form in, a row for each box out,
    with the score of best F1 on val as its threshold. Raises DataError for a set without training images, or
    of a size that is no multiple of 32.
    """
    from tasks.detection import training

    return training.fit(run, params, boxes)
