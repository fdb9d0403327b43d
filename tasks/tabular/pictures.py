"""Pictures of a model of tables: what its columns are worth, and how its answers compare with the truth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.shared.figures import ACCENT, COLOURS, SOFT, names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 25  # columns or features
BINS = 15


def classes(truth: np.ndarray, probabilities: np.ndarray) -> "Figure":
    """ROC of two classes, and how often an answer was right at each predicted probability."""
    from matplotlib.figure import Figure
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import roc_curve

    two = probabilities.shape[1] == 2
    figure = Figure(figsize=(9 if two else 5, 4.2), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, 1 + two)))
    if two:
        false, true, _ = roc_curve(truth, probabilities[:, 1])
        axes[0].plot(false, true, color=ACCENT)
        axes[0].set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    said = probabilities[:, 1] if two else probabilities.max(1)
    came = truth == 1 if two else probabilities.argmax(1) == truth
    share, mean = calibration_curve(came, said, n_bins=BINS, strategy="quantile")
    axes[-1].plot(mean, share, "o-", color=COLOURS[1])
    which = "" if two else " of the answer"
    axes[-1].set(xlabel=f"predicted probability{which}", ylabel="share that came true", title="calibration")
    for one in axes:
        one.plot([0, 1], [0, 1], ":", color=SOFT)
    return figure


def residuals(truth: np.ndarray, found: np.ndarray, unit: str) -> "Figure":
    """Predicted against true numbers, and the distribution of their difference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = np.quantile(np.concatenate([truth, found]), [0.002, 0.998])
    inside = (truth >= low) & (truth <= high) & (found >= low) & (found <= high)
    left.hexbin(truth[inside], found[inside], gridsize=45, bins="log", cmap="Blues", mincnt=1)
    left.plot([low, high], [low, high], ":", color=SOFT)
    of = f" [{unit}]" if unit else ""
    left.set(xlabel=f"true{of}", ylabel=f"predicted{of}", title="each row")
    error = found - truth
    ends = np.quantile(error, [0.005, 0.995])
    right.hist(np.clip(error, *ends), bins=40, color=COLOURS[1])
    right.axvline(0, color=SOFT, linestyle=":")
    right.set(xlabel=f"predicted - true{of}, 99 % of the rows", ylabel="rows", title="residuals")
    return figure


def importance(found: Mapping[str, Sequence[float]], score: str) -> "Figure":
    """How much worse the score on val gets when a column is shuffled; each repeat is a dot."""
    from matplotlib.figure import Figure

    best = sorted(found, key=lambda name: -float(np.mean(found[name])))[:MOST][::-1]
    figure = Figure(figsize=(7, 0.26 * len(best) + 1.2), layout="constrained")
    axes = figure.subplots()
    _bars(axes, best, np.array([np.mean(found[name]) for name in best]))
    for row, name in enumerate(best):
        axes.plot(found[name], [row] * len(found[name]), ".", color=COLOURS[1])
    axes.set_title(f"how much worse {score} on val gets when a column is shuffled", fontsize=10)
    return figure


def weights(features: Sequence[str], values: np.ndarray, about: str) -> "Figure":
    """The features with the largest weights."""
    from matplotlib.figure import Figure

    order = np.argsort(-np.abs(values))[:MOST][::-1]
    figure = Figure(figsize=(7, 0.26 * len(order) + 1), layout="constrained")
    axes = figure.subplots()
    _bars(axes, [features[i] for i in order], values[order])
    axes.set_title(f"what speaks for (right) and against (left) {about}", fontsize=10)
    return figure


def _bars(axes: "Axes", labels: Sequence[str], values: np.ndarray) -> None:
    colours = [ACCENT if value > 0 else COLOURS[1] for value in values]
    axes.barh(range(len(labels)), values, color=colours)
    axes.set_yticks(range(len(labels)), names(labels), parse_math=False)
    axes.tick_params(axis="y", labelsize=8)
