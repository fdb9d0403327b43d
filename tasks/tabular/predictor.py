"""A fitted classifier of rows: columns by name, in any order and of any type that holds their values."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overnight import predictor as contract
from overnight.artifact import Artifact
from overnight.errors import FAILURES, BadInput
from overnight.predictor import ItemLosses
from tasks.shared.predictors import load_model, saved_params
from tasks.tabular.columns import Type, cast
from tasks.tabular.encoding import Encoder, as_levels
from tasks.tabular.fit import FitParams, labelled, softmax, split

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


def predictor(folder: Path) -> "RowClassifier":
    """The classifier in that folder."""
    return RowClassifier(folder)


class RowClassifier:
    """Rows of a table to classes and their probabilities."""

    def __init__(self, folder: Path) -> None:
        config, tensors = load_model(folder)
        self.interface = contract.interface(folder)
        self.classes: list[str] = config["classes"]
        self.encoder = Encoder(**config["encoder"])
        self.kinds: dict[str, Type] = config["kinds"]
        self.params = saved_params(FitParams, config["params"])
        self.seed: int = config["seed"]
        self.weights = tensors["weights"].numpy()
        self.bias = tensors["bias"].numpy()

    def predict(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The class of each row.

        A missing value and a level that training did not see have their weights; other columns are ignored.
        Raises BadInput for a column that is missing, and for text in a column of numbers.
        """
        import polars as pl

        names = [*self.encoder.numeric, *self.encoder.categorical]
        contract.check_columns(frame, names)
        table = pl.DataFrame([_to_polars(name, frame[name]) for name in names])
        table = table.with_columns(
            list(_numbers(table, {name: self.kinds[name] for name in self.encoder.numeric}))
        )
        return contract.class_table(self.classes, self._probabilities(table))

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """0 or 1 for each test row of a "table" artifact, by the split that training made.

        Rows that are equal by the column that orders them (those of an hour, say) share a cluster; without
        such a column rows do whose features are equal.
        """
        (table,) = artifacts
        frame, labels, classes, _rows = labelled(self.params, table.expect("table"))
        _train, test = split(self.params, frame, labels, self.seed)
        rows = frame[test]
        alike = rows.select(self.params.order or [*self.encoder.numeric, *self.encoder.categorical]).rows()
        truth = [classes[label] for label in labels[test]]
        return contract.class_losses(self.classes, truth, self._probabilities(rows), test.tolist(), alike)

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:  # noqa: ARG002
        """Nothing: the answers are a table."""
        return []

    def _probabilities(self, table: "pl.DataFrame") -> np.ndarray:
        known = as_levels(table, {name: self.kinds[name] for name in self.encoder.categorical})
        return softmax(self.encoder.matrix(self.encoder.codes(known)) @ self.weights.T + self.bias)


def _to_polars(name: str, column: "pd.Series[Any]") -> "pl.Series":
    """Values of mixed types become text."""
    import polars as pl

    try:
        given: Any = pl.from_pandas(column)  # a Series of a Series
        found: pl.Series = given.rename(name)
    except FAILURES:  # of pyarrow: cells that are not of one type
        cells = zip(column, column.isna(), strict=True)
        texts = [None if gone else str(value) for value, gone in cells]
        found = pl.Series(name, texts, dtype=pl.String)
    return found.cast(pl.String) if found.dtype in (pl.Categorical, pl.Enum) else found


def _numbers(table: "pl.DataFrame", kinds: "Mapping[str, Type]") -> "Iterator[pl.Series]":
    """Float64 columns. Raises BadInput with the first value of each that is no number."""
    import polars as pl

    problems = []
    for name, kind in kinds.items():
        column = table[name]
        dtype = column.dtype
        if dtype == pl.String:
            column = column.str.strip_chars().replace("", None)
        ways = [cast(name, dtype, way) for way in (("bool", "float") if kind == "bool" else ("float",))]
        found = [(pl.col(name) if way is None else way).cast(pl.Float64, strict=False) for way in ways]
        number = column.to_frame().select(pl.coalesce(found).alias(name))[name]
        wrong = (column.is_not_null() & number.is_null()).arg_true()
        if len(wrong) or dtype.is_temporal():
            first = int(wrong[0]) if len(wrong) else 0
            problems.append(f"the column {name!r} takes numbers; row {first} has {column[first]!r}")
        yield number
    if problems:
        raise BadInput(problems)
