"""Convolutional nets for labelled images of any size, trained with batched augmentation."""

from typing import TYPE_CHECKING

from overnight.artifact import Artifact, DataSpec
from overnight.run import Run
from overnight.step import step
from tasks.vision.params import CnnParams

if TYPE_CHECKING:
    from torch import Tensor

    from overnight.training.recipe import Recipe

__all__ = ["CnnParams", "cnn_recipe", "train_cnn"]


def cnn_recipe(params: CnnParams, spec: DataSpec) -> "Recipe[dict[str, Tensor]]":
    """How the classifier trains.

    The step adds what needs files: measures of the training images, and published weights.
    """
    from tasks.vision import training

    return training.recipe(params, spec)


@step(gpu=True, recipe=cnn_recipe, vram_mib=2048)
def train_cnn(run: Run, params: CnnParams, images: Artifact) -> Artifact:
    """Train a classifier of images; val picks the epoch, test is only reported.

    In: artifact "images". Out: artifact "model", which tells the class of an image of any size and form. Logs
    test/accuracy beside test/majority (always the class most frequent in train), test/loss,
    test/balanced_accuracy, a table by class, the confusion matrix, the most confident mistakes, and
    test/accuracy_tta where asked for. Raises DataError: fewer than two classes, weights that do not fit.
    Source: He et al. 2016, table 1 and section 4.2; Jordan 2024 (arXiv:2404.00498); one cycle: Smith 2018.
    """
    from tasks.vision import training

    return training.fit(run, params, images)
