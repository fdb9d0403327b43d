"""Pictures for a run's page, as matplotlib figures without global state."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]) -> "Figure":
    """Confusion matrix: rows are the truth, columns the prediction, colours the share of the row."""
    from matplotlib.figure import Figure

    n = len(classes)
    counts = np.bincount(labels * n + predictions, minlength=n * n).reshape(n, n)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    return figure
