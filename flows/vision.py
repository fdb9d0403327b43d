"""Train an image classifier."""

from typing import Annotated

from overnight.artifact import Artifact
from overnight.config import Experiment
from overnight.data.dataset import Dataset, of_kind
from overnight.step import pipeline
from tasks.vision.cnn import CnnParams, train_cnn
from tasks.vision.load import ImageParams, load_images


class Vision(Experiment):
    """Which images, and how the net is trained on them."""

    data: Annotated[Dataset, of_kind("images")]
    images: ImageParams = ImageParams()
    cnn: CnnParams = CnnParams()


@pipeline
def vision(cfg: Vision) -> Artifact:
    """Images in, trained classifier out."""
    images = load_images(cfg.images, cfg.data)
    return train_cnn(cfg.cnn, images)
