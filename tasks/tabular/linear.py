"""Predict a class from a row of a table: logistic regression, the baseline to beat."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from overnight.artifact import Artifact, DataSpec
from overnight.config import Params, runtime_option
from overnight.errors import DataError
from overnight.gpu.card import Card
from overnight.gpu.rmm import limit_memory
from overnight.memory.formulas import Formula
from overnight.run import Run
from overnight.step import step
from tasks.shared import figures
from tasks.shared.predictors import load_model
from tasks.tabular import memory, rapids
from tasks.tabular.encoding import Encoder, is_number

if TYPE_CHECKING:
    import polars as pl
    import scipy.sparse as sp
    from matplotlib.figure import Figure

MOST_CLASSES = 50


class ClassifierParams(Params):
    """What to predict, and from which columns.

    Choosing ones known before the answer is, is up to these values.
    """

    target: str = Field(
        description="an SQL expression over the columns; its values are the classes, rows where it is null "
        "are left out"
    )
    numeric: list[str] = Field(
        [],
        description="columns scaled to mean 0 and deviation 1; a missing value becomes the median and is "
        "flagged",
    )
    categorical: list[str] = Field(
        [], description="columns of which every level gets a weight; missing is a level"
    )
    levels: int = Field(
        200, ge=2, description="the most frequent levels of a column that are kept; the rest are one"
    )
    order: str | None = Field(
        None, description="the last rows by this column are the test part; a seeded random part when left out"
    )
    test: float = Field(0.2, gt=0, lt=1, description="share of the rows that is only for the scores")
    strength: float = Field(1.0, gt=0, description="inverse of the L2 penalty")
    iterations: int = Field(300, ge=1)
    backend: Literal["auto", "sklearn", "cuml"] = runtime_option(
        "auto", "cuml fails where there is no card; auto takes it for large tables where it works"
    )
    cuml_from_rows: int = runtime_option(
        1_000_000, "auto stays with scikit-learn below, since importing cuML alone takes seconds"
    )


def classifier_peak(params: ClassifierParams, table: DataSpec) -> Formula:
    """Nothing of the card with scikit-learn, which small tables take.

    With cuML what its matrix and its solver need.
    """
    if params.backend == "sklearn" or (params.backend == "auto" and 0 < table.rows < params.cuml_from_rows):
        return Formula(why=f"scikit-learn on the processor (cuML from {params.cuml_from_rows:,} rows on)")
    if not table.rows:
        return Formula(
            needs="cuml",
            unknown="the rows of its table are unknown: run join_tables once, or write them into the set's "
            "entry",
        )
    numbers = 2 * len(params.numeric)  # each has a flag for what is missing
    features = numbers + (params.levels + 2) * len(params.categorical)
    filled = numbers + len(params.categorical)  # one level of each
    return memory.fitted(table.rows, features, filled, MOST_CLASSES)


def classifier_probe(card: Card | None, params: ClassifierParams, table: Artifact) -> dict[str, str]:
    """The library that will fit: their solvers end at slightly different weights."""
    large = table.spec.rows >= params.cuml_from_rows
    automatic = "cuml" if large and rapids.cuml_choice(card) else "sklearn"
    return {"backend": automatic if params.backend == "auto" else params.backend}


@step(gpu=True, vram_mib=1024, peak=classifier_peak, probe=classifier_probe)
def fit_classifier(run: Run, params: ClassifierParams, table: Artifact) -> Artifact:
    """A table -> logistic regression over scaled numbers and one-hot levels.

    Logs test/accuracy beside test/majority, test/log_loss beside test/log_loss_prior, test/roc_auc (one
    against the rest, averaged); pictures: ROC and calibration, and the largest weights. Raises DataError for
    a column that is missing or of the wrong type.
    """
    frame, labels, classes = _labelled(run, params, table.expect("table"))
    train, test = _split(run, params, frame, labels)
    encoder = Encoder.fit(frame[train], params.numeric, params.categorical, params.levels)
    codes = encoder.codes(frame)
    matrix = encoder.matrix(codes)
    weights, bias = _fit(run, params, matrix[train], labels[train], len(classes))
    probabilities = _softmax(matrix[test] @ weights.T + bias)
    scores = _scores(labels[train], labels[test], probabilities)
    run.metrics(
        {
            f"test/{name}": value
            for name, value in sorted(scores.items(), key=lambda item: item[0] != "roc_auc")
        }
    )
    _draw(run, encoder, weights, classes, labels[test], probabilities)
    auc = f"ROC AUC {scores['roc_auc']:.3f}, " if "roc_auc" in scores else ""
    run.note(
        f"{' or '.join(classes) if len(classes) < 5 else f'{len(classes)} classes'}: "
        f"{auc}{100 * scores['accuracy']:.1f} % of {len(test):,} {'later' if params.order else 'held-out'} "
        "rows, "
        f"{100 * scores['majority']:.1f} % by always saying the commonest class"
    )
    return _save(run, encoder, weights, bias, classes, codes[test[:5]])


def _labelled(
    run: Run, params: ClassifierParams, table: Artifact
) -> "tuple[pl.DataFrame, np.ndarray, list[str]]":
    """The rows that have a class, their class numbers, and the classes in order."""
    import polars as pl

    frame = pl.scan_parquet(table.path / "table.parquet")
    wanted = list(
        dict.fromkeys([*params.numeric, *params.categorical, *([params.order] if params.order else [])])
    )
    have = frame.collect_schema()
    problems = [f"no column {name!r}; the table has {', '.join(have)}" for name in wanted if name not in have]
    problems += [
        f"numeric: {c!r} is {have[c]}, not a number"
        for c in params.numeric
        if c in have and not is_number(have[c])
    ]
    if problems or not params.numeric + params.categorical:
        raise DataError(
            [f"classifier: {p}" for p in problems]
            or "classifier: name at least one column under numeric or categorical"
        )
    try:
        target = pl.sql_expr(params.target).cast(pl.String).alias("\0class")
        rows = frame.select(*wanted, target).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"classifier: target {params.target!r} does not work: {str(error).splitlines()[0]}"
        ) from None
    known = rows.drop_nulls("\0class")
    run.metrics({"rows/in": rows.height, "rows/without_class": rows.height - known.height})
    classes = sorted(known["\0class"].unique().to_list())
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(
            f"classifier: target {params.target!r} has {len(classes)} classes in {known.height} rows; it "
            f"needs 2 to {MOST_CLASSES}"
        )
    labels = (
        known["\0class"]
        .replace_strict({c: i for i, c in enumerate(classes)}, return_dtype=pl.Int64)
        .to_numpy()
    )
    return known.drop("\0class"), labels, classes


def _split(
    run: Run, params: ClassifierParams, frame: "pl.DataFrame", labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of both parts; rows that are equal by the order column stay together."""
    if params.order:
        column = frame[params.order]
        if column.null_count():
            raise DataError(
                f"classifier: {column.null_count()} rows have no {params.order!r} to order them by; require "
                "it in the table"
            )
        first = column.sort()[int(len(column) * (1 - params.test))]
        late = (column >= first).to_numpy()
    else:
        from overnight.data.splits import stratified

        late = np.zeros(len(labels), bool)
        late[stratified(labels.tolist(), params.test, run.seed)] = True
    train, test = np.flatnonzero(~late), np.flatnonzero(late)
    if not len(test) or len(np.unique(labels[train])) < 2:
        raise DataError(
            f"classifier: the split leaves {len(train)} rows to learn from with fewer than 2 classes, or no "
            f"test row ({len(test)})"
        )
    return train, test


def _fit(
    run: Run, params: ClassifierParams, matrix: "sp.csr_matrix", labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (classes, features) and bias (classes,) of a softmax.

    A class that never occurs in training gets none of it.
    """
    problem = rapids.cuml_problem(run)
    if params.backend == "cuml" and problem:
        raise DataError(f"classifier: backend cuml was asked for, but {problem}; set backend: auto")
    cuml = params.backend == "cuml" or (
        params.backend == "auto" and problem is None and len(labels) >= params.cuml_from_rows
    )
    run.param("backend", "cuml" if cuml else "sklearn")
    model = _cuml_model(run, params) if cuml else _sklearn_model(params)
    model.fit(matrix, labels)
    found = np.asarray(model.classes_, dtype=np.int64)
    coef, intercept = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64).ravel()
    if len(coef) == 1:  # one logit for two classes: half of it each way is the same softmax
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weights, bias = np.zeros((classes, matrix.shape[1])), np.full(classes, -30.0)
    weights[found], bias[found] = coef, intercept
    return weights, bias


def _sklearn_model(params: ClassifierParams) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=params.strength, max_iter=params.iterations)


def _cuml_model(run: Run, params: ClassifierParams) -> Any:
    limit_memory(run.budget_mib)
    from cuml.linear_model import LogisticRegression

    return LogisticRegression(C=params.strength, max_iter=params.iterations, output_type="numpy")


def _scores(train: np.ndarray, test: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, log loss and ROC AUC on the test rows.

    Beside each, what the class shares of the training rows alone achieve.
    """
    from sklearn.metrics import roc_auc_score

    shares = np.maximum(np.bincount(train, minlength=probabilities.shape[1]) / len(train), 1e-9)
    scores = {
        "accuracy": float((probabilities.argmax(1) == test).mean()),
        "majority": float((test == shares.argmax()).mean()),
        "log_loss": float(-np.log(np.maximum(probabilities[np.arange(len(test)), test], 1e-12)).mean()),
        "log_loss_prior": float(-np.log(shares[test]).mean()),
    }
    there = [k for k in range(probabilities.shape[1]) if 0 < (test == k).sum() < len(test)]
    if there:
        scores["roc_auc"] = float(np.mean([roc_auc_score(test == k, probabilities[:, k]) for k in there]))
    return scores


def _draw(
    run: Run,
    encoder: Encoder,
    weights: np.ndarray,
    classes: list[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    if len(classes) == 2 and len(np.unique(labels)) == 2:
        run.picture("roc", _curves(labels, probabilities[:, 1]))
    run.picture("confusion", figures.confusion(labels, probabilities.argmax(1), classes))
    run.picture("weights", _largest(encoder.names(), weights, classes))


def _curves(truth: np.ndarray, probability: np.ndarray) -> "Figure":
    """ROC, and how often the class came true at each predicted probability."""
    from matplotlib.figure import Figure
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import roc_curve

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    false, true, _ = roc_curve(truth, probability)
    left.plot(false, true, color="#3b6ea5")
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    came, said = calibration_curve(truth, probability, n_bins=15, strategy="quantile")
    right.plot(said, came, "o-", color="#c4553b")
    right.set(xlabel="predicted probability", ylabel="share that came true", title="calibration")
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], ":", color="grey")
    return figure


def _largest(names: Sequence[str], weights: np.ndarray, classes: Sequence[str], most: int = 25) -> "Figure":
    """The features with the largest weights for the last class."""
    from matplotlib.figure import Figure

    values = weights[-1]
    order = np.argsort(-np.abs(values))[:most][::-1]
    figure = Figure(figsize=(7, 0.26 * len(order) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        [names[i] for i in order],
        values[order],
        color=["#c4553b" if values[i] > 0 else "#3b6ea5" for i in order],
    )
    axes.set_title(f"what speaks for (right) and against (left) {classes[-1]!r}", fontsize=10)
    axes.tick_params(axis="y", labelsize=8)
    return figure


def _save(
    run: Run, encoder: Encoder, weights: np.ndarray, bias: np.ndarray, classes: list[str], example: np.ndarray
) -> Artifact:
    import torch

    tensors = {"weights": torch.from_numpy(weights), "bias": torch.from_numpy(bias)}
    config = {"classes": classes, "encoder": asdict(encoder)}
    return run.save_model(
        "tasks.tabular.linear:predictor", tensors, config, DataSpec(classes=tuple(classes)), example
    )


def predictor(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities (n, classes) of rows (n, numeric + categorical columns, in the order of the config).

    Rows of text or mixed objects hold the values as the table had them (None or nan: missing); rows of
    numbers hold level indices.
    """
    config, tensors = load_model(folder)
    encoder = Encoder(**config["encoder"])
    weights = tensors["weights"].numpy()
    bias = tensors["bias"].numpy()

    def predict(rows: np.ndarray) -> np.ndarray:
        codes = rows.astype(np.float64) if rows.dtype.kind in "fiub" else encoder.codes(encoder.frame(rows))
        return _softmax(encoder.matrix(codes) @ weights.T + bias)

    return predict


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
