"""Linear models of rows: logistic regression for classes, ridge regression for numbers."""

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from overnight.errors import DataError
from overnight.events import Json
from overnight.gpu.rmm import limit_memory
from overnight.run import Run
from tasks.tabular import rapids
from tasks.tabular.columns import Type
from tasks.tabular.encoding import Encoder, Rows, as_levels
from tasks.tabular.params import FitParams

if TYPE_CHECKING:
    import polars as pl
    import scipy.sparse as sp

NEVER = -30.0  # the logit of a class that no training row has


@dataclass(frozen=True)
class LinearModel:
    """weights: float64 (outputs, features); bias: float64 (outputs,)."""

    encoder: Encoder
    kinds: dict[str, Type]  # of each column
    weights: np.ndarray
    bias: np.ndarray
    converged: bool = True

    @property
    def owners(self) -> list[str]:
        """The column that each one of `codes` comes from."""
        return [*self.encoder.numeric, *self.encoder.categorical]

    def sizes(self) -> dict[str, float]:
        """The largest weight of each column."""
        largest = np.abs(self.weights).max(0).tolist()
        found = dict(zip(self.encoder.numeric, largest, strict=False))
        start = len(self.encoder.numeric) + len(self.encoder.flagged)
        for name, levels in zip(self.encoder.categorical, self.encoder.levels, strict=True):
            found[name] = max(largest[start : start + len(levels)])
            start += len(levels)
        return found

    def codes(self, frame: "pl.DataFrame") -> np.ndarray:
        known = as_levels(frame, {name: self.kinds[name] for name in self.encoder.categorical})
        return self.encoder.codes(known)

    def raw(self, codes: np.ndarray) -> np.ndarray:
        """Logits (n, classes), or the number (n, 1)."""
        return np.asarray(self.encoder.matrix(codes) @ self.weights.T + self.bias)

    def saved(self) -> tuple[Json, dict[str, np.ndarray]]:
        return {"encoder": asdict(self.encoder)}, {"weights": self.weights, "bias": self.bias}

    @classmethod
    def load(cls, config: Json, arrays: dict[str, np.ndarray], kinds: dict[str, Type]) -> Self:
        return cls(Encoder(**config["encoder"]), kinds, arrays["weights"], arrays["bias"])


def fit_linear(
    run: Run,
    params: FitParams,
    encoder: Encoder,
    kinds: dict[str, Type],
    rows: Rows,
    classes: int,
) -> LinearModel:
    """rows: those to learn from; their values are class numbers, or numbers where `classes` is 0."""
    matrix = encoder.matrix(rows.codes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if classes:
            coef, bias = _logistic(run, params, matrix, rows, classes)
        else:
            coef, bias = _ridge(params, matrix, rows.values)
    converged = not any("converge" in str(warning.message).lower() for warning in caught)
    return LinearModel(encoder, kinds, coef, bias, converged)


def _logistic(
    run: Run,
    params: FitParams,
    matrix: "sp.csr_matrix",
    rows: Rows,
    classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (classes, features) and bias (classes,) of a softmax.

    A class that never occurs in training gets none of it.
    """
    problem = rapids.cuml_problem(run)
    if params.backend == "cuml" and problem:
        raise DataError(f"predictor: backend cuml was asked for, but {problem}; set backend: auto")
    cuml = params.backend == "cuml" or (
        params.backend == "auto" and problem is None and len(rows.values) >= params.cuml_from_rows
    )
    run.param("backend", "cuml" if cuml else "sklearn")
    model = _cuml_model(run, params) if cuml else _sklearn_model(params)
    model.fit(matrix, rows.values, **({} if rows.weights is None else {"sample_weight": rows.weights}))
    found = np.asarray(model.classes_, dtype=np.int64)
    coef, intercept = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64).ravel()
    if len(coef) == 1:  # one logit for two classes: half of it each way is the same softmax
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    every, bias = np.zeros((classes, matrix.shape[1])), np.full(classes, NEVER)
    every[found], bias[found] = coef, intercept
    return every, bias


def _sklearn_model(params: FitParams) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=params.strength, max_iter=params.iterations)


def _cuml_model(run: Run, params: FitParams) -> Any:
    limit_memory(run.budget_mib)
    from cuml.linear_model import LogisticRegression

    return LogisticRegression(C=params.strength, max_iter=params.iterations, output_type="numpy")


def _ridge(params: FitParams, matrix: "sp.csr_matrix", values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (1, features) and bias (1,), by the normal equations: exact, with nothing to converge."""
    centre = np.asarray(matrix.mean(0), np.float64).ravel()
    wide = matrix.astype(np.float64)
    gram = (wide.T @ wide).toarray() - len(values) * np.outer(centre, centre)
    gram[np.diag_indices_from(gram)] += 1 / params.strength
    mean = values.mean()
    right = np.asarray(wide.T @ (values - mean)).ravel()
    weights = np.linalg.solve(gram, right)
    return weights[None], np.array([mean - centre @ weights])
