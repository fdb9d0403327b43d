"""What a trained classifier tells: scores, tables and pictures of the test split."""

import csv
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from overnight.artifact import Artifact
from overnight.run import Run
from overnight.training.loop import TrainResult
from tasks.shared import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = dict[str, Tensor]


def report(
    run: Run, images: Artifact, data: Data, probabilities: np.ndarray, averaged: np.ndarray | None
) -> None:
    """Scores and pictures of the test split.

    `averaged`: probabilities over several views of each image, a score apart.
    """
    labels, guesses, classes = data["test_labels"].numpy(), probabilities.argmax(1), images.spec.classes
    right = guesses == labels
    majority = int(torch.bincount(data["train_labels"]).argmax())
    loss = -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean()
    run.metrics(
        {
            "test/accuracy": right.mean(),
            "test/majority": (labels == majority).mean(),
            "test/loss": float(loss),
        }
    )
    run.picture("confusion", figures.confusion(labels, guesses, classes))
    run.picture("mistakes", _mistakes(data["test_images"], labels, probabilities, classes))
    _by_class(run, labels, guesses, classes)
    if averaged is not None:
        run.metric("test/accuracy_tta", float((averaged.argmax(1) == labels).mean()))


def tell(run: Run, data: Data, probabilities: np.ndarray, fitted: TrainResult, epochs: int) -> None:
    """The result in a sentence."""
    accuracy, classes = (
        (probabilities.argmax(1) == data["test_labels"].numpy()).mean(),
        probabilities.shape[1],
    )
    val = fitted.scores.get("accuracy")
    by = f"best epoch {fitted.epoch} of {epochs} (val {val:.1%})" if val is not None else "the last epoch"
    run.note(f"CNN: {accuracy:.1%} of {len(probabilities)} test images right, {classes} classes; {by}")


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
        table.writerows(
            [name, t, f"{r:.4f}", f"{p:.4f}"]
            for name, t, r, p in zip(classes, true, recall, precision, strict=True)
        )
    run.publish(path)


def _mistakes(
    images: Tensor, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], most: int = 32
) -> "Figure":
    """The wrong answers given with the most confidence: truth, answer and its probability."""
    guesses, sure, names = probabilities.argmax(1), probabilities.max(1), figures.names(classes)
    wrong = np.flatnonzero(guesses != labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    titles = [f"is {names[labels[i]]}\nsaid {names[guesses[i]]} {sure[i]:.0%}" for i in worst]
    title = f"{len(wrong)} of {len(labels)} test images wrong; the most confident {len(worst)}"
    return figures.grid(images[worst].numpy(), titles, title=title)
