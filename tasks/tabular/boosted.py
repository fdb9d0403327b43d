"""Gradient boosted trees of rows: scikit-learn's HistGradientBoosting, stopped early on val."""

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from overnight.events import Json
from tasks.tabular.columns import Type
from tasks.tabular.encoding import Rows, TreeEncoder, as_levels
from tasks.tabular.params import FitParams
from tasks.tabular.trees import LEAF, Trees

if TYPE_CHECKING:
    import polars as pl

NEVER = -30.0  # the logit of a class that no training row has
SMALL = 20_000  # rows


@dataclass(frozen=True)
class BoostedModel:
    """found: class numbers that training rows have; empty for a number."""

    encoder: TreeEncoder
    kinds: dict[str, Type]  # of each column
    trees: Trees
    found: list[int]
    classes: int
    converged: bool = True  # whether it stopped before the last round that it might make

    @property
    def owners(self) -> list[str]:
        """The column that each one of `codes` comes from."""
        return self.encoder.owners()

    def sizes(self) -> dict[str, float]:
        """How often the trees ask for a column, of those that they ask for."""
        asked = np.bincount(self.trees.feature[self.trees.left != LEAF], minlength=len(self.owners))
        found = Counter[str]()
        for name, times in zip(self.owners, asked.tolist(), strict=True):
            found[name] += times
        return {name: float(times) for name, times in found.items() if times}

    def codes(self, frame: "pl.DataFrame") -> np.ndarray:
        known = as_levels(frame, {name: self.kinds[name] for name in self.encoder.texts()})
        return self.encoder.codes(known)

    def raw(self, codes: np.ndarray) -> np.ndarray:
        """Logits (n, classes), or the number (n, 1)."""
        sums = self.trees.raw(codes)
        if not self.classes:
            return sums
        if sums.shape[1] == 1:  # half of the one logit of two classes each way is the same softmax
            sums = np.hstack([-sums, sums]) / 2
        every = np.full((len(sums), self.classes), NEVER)
        every[:, self.found] = sums
        return every

    def saved(self) -> tuple[Json, dict[str, np.ndarray]]:
        config = {"tree_encoder": asdict(self.encoder), "found": self.found}
        return config, asdict(self.trees)

    @classmethod
    def load(cls, config: Json, arrays: dict[str, np.ndarray], kinds: dict[str, Type]) -> Self:
        encoder = TreeEncoder(**config["tree_encoder"])
        return cls(encoder, kinds, Trees(**arrays), config["found"], len(config["classes"]))


def fit_boosted(
    params: FitParams,
    encoder: TreeEncoder,
    kinds: dict[str, Type],
    train: Rows,
    val: Rows,
    classes: int,
    seed: int,
) -> BoostedModel:
    """The rounds up to the best loss on val; all of them where val is empty."""
    found = np.unique(train.values) if classes else np.zeros(0, np.int64)
    known = val[np.isin(val.values, found)] if classes else val
    model = _estimator(params, classes, len(encoder.categorical), seed, stops=len(known.codes) > 0)
    more: dict[str, Any] = {}
    if len(known.codes):
        more = {"X_val": known.codes, "y_val": known.values, "sample_weight_val": known.weights}
    with _one_thread(len(train.codes) < SMALL):
        model.fit(train.codes, train.values, train.weights, **more)
    rounds = len(model._predictors)
    if more:
        rounds = max(1, int(np.argmax(model.validation_score_)))  # its first is of no tree at all
    still = bool(more) and rounds == params.rounds
    return BoostedModel(
        encoder, kinds, Trees.of(model, rounds), found.astype(int).tolist(), classes, converged=not still
    )


def _one_thread(when: bool) -> AbstractContextManager[Any]:
    """On small tables threads wait for one another longer than they work."""
    import sklearn.ensemble  # noqa: F401 - limits hold for what is loaded
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return cast("AbstractContextManager[Any]", threadpool_limits(1 if when else None, user_api="openmp"))


def _estimator(params: FitParams, classes: int, categorical: int, seed: int, stops: bool) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    return kind(
        learning_rate=params.lr,
        max_iter=params.rounds,
        max_leaf_nodes=params.leaves,
        min_samples_leaf=params.leaf_rows,
        categorical_features=list(range(categorical)) or None,  # they come first
        early_stopping=stops,
        n_iter_no_change=params.patience,
        tol=0.0,
        random_state=seed,
    )
