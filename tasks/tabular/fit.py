"""Predict a class from a row of a table: logistic regression, the baseline to beat."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from overnight.artifact import Artifact, DataSpec
from overnight.config import Params, runtime_option
from overnight.errors import DataError
from overnight.gpu.card import Card
from overnight.gpu.rmm import limit_memory
from overnight.memory.formulas import Formula
from overnight.predictor import Column, Interface, class_columns
from overnight.predictor import Type as ColumnType
from overnight.run import Run
from overnight.step import step
from tasks.shared import figures
from tasks.tabular import memory, rapids
from tasks.tabular.columns import Type
from tasks.tabular.encoding import Encoder, as_levels, is_number, kind_of

if TYPE_CHECKING:
    import polars as pl
    import scipy.sparse as sp
    from matplotlib.figure import Figure

MOST_CLASSES = 50
EXAMPLE_ROWS = 3
TYPES: dict[Type, ColumnType] = {
    "int": "long",
    "float": "double",
    "bool": "boolean",
    "text": "string",
    "date": "string",
    "datetime": "string",
}


class FitParams(Params):
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


def fit_peak(params: FitParams, table: DataSpec) -> Formula:
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


def fit_probe(card: Card | None, params: FitParams, table: Artifact) -> dict[str, str]:
    """The library that will fit: their solvers end at slightly different weights."""
    large = table.spec.rows >= params.cuml_from_rows
    automatic = "cuml" if large and rapids.cuml_choice(card) else "sklearn"
    return {"backend": automatic if params.backend == "auto" else params.backend}


@step(gpu=True, vram_mib=1024, peak=fit_peak, probe=fit_probe)
def fit_table(run: Run, params: FitParams, table: Artifact) -> Artifact:
    """A table -> logistic regression over scaled numbers and one-hot levels.

    Logs test/accuracy beside test/majority, test/log_loss beside test/log_loss_prior, test/roc_auc (one
    against the rest, averaged); pictures: ROC and calibration, and the largest weights. Raises DataError for
    a column that is missing or of the wrong type.
    """
    import torch

    frame, labels, classes, rows = labelled(params, table.expect("table"))
    run.metrics({"rows/in": rows, "rows/without_class": rows - frame.height})
    train, test = split(params, frame, labels, run.seed)
    kinds = {name: kind_of(frame.schema[name]) for name in (*params.numeric, *params.categorical)}
    known = as_levels(frame, {name: kinds[name] for name in params.categorical})
    encoder = Encoder.fit(known[train], params.numeric, params.categorical, params.levels)
    matrix = encoder.matrix(encoder.codes(known))
    weights, bias = _fit(run, params, matrix[train], labels[train], len(classes))
    probabilities = softmax(matrix[test] @ weights.T + bias)
    scores = _scores(labels[train], labels[test], probabilities)
    run.metrics(
        {
            f"test/{name}": value
            for name, value in sorted(scores.items(), key=lambda item: item[0] != "roc_auc")
        }
    )
    _draw(run, encoder, weights, classes, labels[test], probabilities)
    auc = f"ROC AUC {scores['roc_auc']:.3f}, " if "roc_auc" in scores else ""
    about = " or ".join(classes) if len(classes) < 5 else f"{len(classes)} classes"
    part = "later" if params.order else "held-out"
    run.note(
        f"{about}: {auc}{100 * scores['accuracy']:.1f} % of {len(test):,} {part} rows, "
        f"{100 * scores['majority']:.1f} % by always saying the commonest class"
    )
    config = {
        "classes": classes,
        "encoder": asdict(encoder),
        "kinds": kinds,
        "params": params.model_dump(mode="json"),
        "seed": run.seed,
    }
    interface = _interface(f"Logistic regression: {about}, by {params.target}", frame[test], kinds, classes)
    tensors = {"weights": torch.from_numpy(weights), "bias": torch.from_numpy(bias)}
    spec = DataSpec(classes=tuple(classes))
    return run.save_model("tasks.tabular.predictor:predictor", tensors, config, spec, interface)


def labelled(params: FitParams, table: Artifact) -> "tuple[pl.DataFrame, np.ndarray, list[str], int]":
    """The rows that have a class, their class numbers, the classes in order, and the number of all rows."""
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
    return known.drop("\0class"), labels, classes, rows.height


def split(
    params: FitParams, frame: "pl.DataFrame", labels: np.ndarray, seed: int
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
        late[stratified(labels.tolist(), params.test, seed)] = True
    train, test = np.flatnonzero(~late), np.flatnonzero(late)
    if not len(test) or len(np.unique(labels[train])) < 2:
        raise DataError(
            f"classifier: the split leaves {len(train)} rows to learn from with fewer than 2 classes, or no "
            f"test row ({len(test)})"
        )
    return train, test


def _fit(
    run: Run, params: FitParams, matrix: "sp.csr_matrix", labels: np.ndarray, classes: int
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


def _sklearn_model(params: FitParams) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=params.strength, max_iter=params.iterations)


def _cuml_model(run: Run, params: FitParams) -> Any:
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


def _interface(
    about: str, test: "pl.DataFrame", kinds: "Mapping[str, Type]", classes: Sequence[str]
) -> Interface:
    """Columns by name and type, and rows as an example: those without a gap where there are some."""
    rows = test.select(list(kinds))
    whole = rows.drop_nulls()
    types: dict[str, ColumnType] = {
        name: "double" if kind == "int" and rows[name].null_count() else TYPES[kind]
        for name, kind in kinds.items()
    }
    empty: dict[ColumnType, Any] = {"double": 0.0, "long": 0, "boolean": False}
    example = [
        {
            name: empty.get(types[name]) if value is None else _plain(value, types[name])
            for name, value in row.items()
        }
        for row in (whole if whole.height else rows).head(EXAMPLE_ROWS).to_dicts()
    ]
    return Interface(
        kind="rows",
        about=about,
        inputs=tuple(Column(name=name, type=kind) for name, kind in types.items()),
        outputs=class_columns(classes),
        example=tuple(example),
    )


def _plain(value: Any, kind: ColumnType) -> Any:
    """As JSON has it."""
    if kind == "double":
        return float(value) if math.isfinite(value) else 0.0
    return value if kind in ("long", "boolean") else str(value)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
