"""Train an image classifier."""

from typing import Annotated

from pydantic import AfterValidator

from overnight.artifact import Artifact
from overnight.config import Experiment
from overnight.data.dataset import Dataset, Entry
from overnight.step import pipeline
from tasks.vision.cnn import CnnParams, train_cnn
from tasks.vision.load import ImageParams, load_images


def _of_images(data: Entry) -> Entry:
    if data.kind != "images":
        raise ValueError(
            f"data set {data.name!r} is of kind {data.kind!r}; a vision experiment takes one of kind 'images'"
        )
    return data


class Vision(Experiment):
    """Which images, and how the net is trained on them."""

    data: Annotated[Dataset, AfterValidator(_of_images)]
    images: ImageParams = ImageParams()
    cnn: CnnParams = CnnParams()


@pipeline
def vision(cfg: Vision) -> Artifact:
    """Images in, trained classifier out."""
    images = load_images(cfg.images, cfg.data)
    return train_cnn(cfg.cnn, images)
