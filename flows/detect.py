"""Train an object detector."""

from typing import Self

from pydantic import model_validator

from overnight import Artifact, Dataset, Experiment, pipeline
from tasks.detection.scenes import ComposeParams, SceneParams, compose_scenes, load_boxes
from tasks.detection.yolo import YoloParams, train_yolo
from tasks.vision.load import ImageParams, load_images


class Detect(Experiment):
    """A data set of boxes, letterboxed by `scenes`; or one of images, put into scenes by `compose`."""

    data: Dataset
    images: ImageParams | None = None
    compose: ComposeParams | None = None
    scenes: SceneParams = SceneParams()
    yolo: YoloParams = YoloParams()

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if self.compose:
            self.data.require_kind("images", "compose puts single objects into scenes")
        else:
            self.data.require_kind("boxes", "without a compose section a detector takes boxes as they are")
        if self.images and not self.compose:
            raise ValueError("images: is for composed scenes alone; leave it out, or add a compose section")
        if self.compose and "scenes" in self.model_fields_set:
            raise ValueError(
                "scenes: letterboxes a set of kind boxes; with a compose section set compose.size instead"
            )
        return self


@pipeline
def detect(cfg: Detect) -> Artifact:
    """Images with boxes in, trained detector out."""
    if cfg.compose:
        boxes = compose_scenes(cfg.compose, load_images(cfg.images or ImageParams(), cfg.data))
    else:
        boxes = load_boxes(cfg.scenes, cfg.data)
    return train_yolo(cfg.yolo, boxes)
