"""Columns that tell the target on their own: most often they are known only after the answer is."""

from typing import TYPE_CHECKING

import numpy as np

from tasks.tabular.encoding import is_number
from tasks.tabular.scores import auc

if TYPE_CHECKING:
    import polars as pl

    from tasks.tabular.target import Labelled

MOST_ROWS = 50_000  # looked at
MOST_BINS = 256
BIN_ROWS = 10  # of a bin at least, on average
VALUE_ROWS = 4  # of each value of a number on average, from which on values are not put into bins
AUC, R2 = 0.99, 0.9  # a column that is better than this on its own is named


def telling(rows: "Labelled", chosen: np.ndarray, identity: np.ndarray) -> dict[str, float]:
    """ROC AUC (classes, one against the rest) or R2 (numbers) of each feature that tells too much by itself.

    A mean target by value, or by bins of numbers: learned on one half of the rows, scored on the other, and
    the other way round. chosen: row numbers of train and val; identity: equal rows share a half.
    """
    some = chosen[np.argsort(identity[chosen], kind="stable")[:MOST_ROWS]]
    half = (identity[some] & np.uint64(1)).astype(bool)
    targets = rows.values[some].astype(np.float64)[:, None]
    if rows.task == "classify":
        present = np.unique(rows.values[some])
        targets = (
            rows.values[some][:, None] == present[-1:]
            if len(present) == 2
            else rows.values[some][:, None] == present
        ).astype(np.float64)
    frame = rows.frame[some]
    found = {name: _alone(frame[name], targets, half, rows.task == "classify") for name in rows.features}
    limit = AUC if rows.task == "classify" else R2
    return {name: score for name, score in found.items() if score > limit}


def _alone(column: "pl.Series", targets: np.ndarray, half: np.ndarray, is_class: bool) -> float:
    bins = _bins(column, int((~half).sum()))
    said = np.empty_like(targets)
    for side in (half, ~half):
        size = int(bins.max()) + 1
        counts = np.bincount(bins[~side], minlength=size)[:, None]
        sums = np.stack([np.bincount(bins[~side], t[~side], minlength=size) for t in targets.T], axis=1)
        mean = targets[~side].mean(0) if (~side).any() else targets.mean(0)
        said[side] = ((sums + mean) / (counts + 1))[bins[side]]
    scores = [_score(truth, guess, is_class) for truth, guess in zip(targets.T, said.T, strict=True)]
    straight = 0.0
    if is_number(column.dtype) and targets.shape[1] == 1:
        straight = _straight(column, targets[:, 0], is_class)
    return max(float(np.mean(scores)), straight)


def _score(truth: np.ndarray, guess: np.ndarray, is_class: bool) -> float:
    if is_class:
        return auc(truth > 0, guess)
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - guess) ** 2).sum() / spread) if spread else 0.0


def _straight(column: "pl.Series", truth: np.ndarray, is_class: bool) -> float:
    """Of the number itself, without bins; a missing value is the median."""
    values = column.cast(float).to_numpy()
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0
    filled = np.where(finite, values, np.median(values[finite]))
    if is_class:
        one = auc(truth > 0, filled)
        return max(one, 1 - one)
    if filled.std() == 0 or truth.std() == 0:
        return 0.0
    return float(np.corrcoef(filled, truth)[0, 1] ** 2)


def _bins(column: "pl.Series", rows: int) -> np.ndarray:
    """Int64 (n,): a bin for each value; numbers of many values by quantiles. 0: missing."""
    most = min(MOST_BINS, max(8, rows // BIN_ROWS))
    if not column.dtype.is_numeric() or column.n_unique() <= max(most, rows // VALUE_ROWS):
        return column.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    values = column.cast(float).to_numpy()
    finite = np.isfinite(values)
    edges = np.unique(np.quantile(values[finite], np.linspace(0, 1, most + 1)[1:-1]))
    return np.where(finite, np.searchsorted(edges, np.where(finite, values, 0)) + 1, 0)
