"""Classes of texts by an encoder, pretrained or from scratch."""

from typing import TYPE_CHECKING

from overnight.artifact import Artifact, DataSpec
from overnight.run import Run
from overnight.step import step
from tasks.text.classify_params import ClassifyParams

if TYPE_CHECKING:
    from torch import Tensor

    from overnight.training.recipe import Recipe

__all__ = ["ClassifyParams", "classifier_recipe", "train_classifier"]


def classifier_recipe(params: ClassifyParams, spec: DataSpec) -> "Recipe[dict[str, Tensor]]":
    """How the classifier trains; the step puts pretrained weights in."""
    from tasks.text import classify_training

    return classify_training.recipe(params, spec)


@step(gpu=True, recipe=classifier_recipe, vram_mib=2048)
def train_classifier(run: Run, params: ClassifyParams, texts: Artifact) -> Artifact:
    """Train a classifier of texts; val picks the epoch, test is only reported.

    In: artifact "texts". Out: artifact "model". Logs test/accuracy beside test/majority and
    test/accuracy_tfidf (logistic regression over words and pairs of words), test/balanced_accuracy, the
    confusion matrix, a table by class and one of the most confident mistakes. Raises DataError: weights that
    cannot be loaded, or that read fewer tokens than `longest`.
    Source: Devlin et al. 2019 for tuning all weights; the mean over tokens: Reimers and Gurevych 2019.
    """
    from tasks.text import classify_training

    return classify_training.fit(run, params, texts)
