"""A fitted model of rows: columns by name, in any order and of any type that holds their values."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overnight import predictor as contract
from overnight.artifact import Artifact
from overnight.errors import FAILURES, BadInput, DataError
from overnight.predictor import ItemLosses
from tasks.shared.predictors import load_arrays, saved_params
from tasks.tabular.boosted import BoostedModel
from tasks.tabular.columns import Type, cast
from tasks.tabular.interface import NUMBER
from tasks.tabular.linear import LinearModel
from tasks.tabular.params import FitParams, Task
from tasks.tabular.parts import cut
from tasks.tabular.target import labelled
from tasks.tabular.training import Model, decoded

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

SPREADS = 3  # standard deviations: an error of as many is as bad as any larger one


def predictor(folder: Path) -> "RowPredictor":
    """The model in that folder."""
    return RowPredictor(folder)


class RowPredictor:
    """Rows of a table to classes and their probabilities, or to a number."""

    def __init__(self, folder: Path) -> None:
        config, arrays = load_arrays(folder)
        self.interface = contract.interface(folder)
        self.classes: list[str] = config["classes"]
        self.kinds: dict[str, Type] = config["kinds"]
        self.params = saved_params(FitParams, config["params"])
        self.seed: int = config["seed"]
        self.task: Task | None = config.get("task")  # of an earlier version: none
        kind = BoostedModel if config.get("model") == "boosted" else LinearModel
        self.model: Model = kind.load(config, arrays, self.kinds)
        self.numeric: list[str] = config["numeric"] if self.task else config["encoder"]["numeric"]

    def predict(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The class, or the number, of each row.

        A missing value and a level that training did not see have their answers; other columns are ignored.
        Raises BadInput for a column that is missing, and for text in a column of numbers.
        """
        import pandas as pd
        import polars as pl

        contract.check_columns(frame, list(self.kinds))
        table = pl.DataFrame([_to_polars(name, frame[name]) for name in self.kinds])
        table = table.with_columns(list(_numbers(table, {name: self.kinds[name] for name in self.numeric})))
        found = self._answers(table)
        if self.classes:
            return contract.class_table(self.classes, found)
        return pd.DataFrame({NUMBER: found})

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """Of each test row of a "table" artifact, by the split that training made.

        Classes: 0 or 1. Numbers: the squared error as a share of (SPREADS standard deviations) squared, at
        most 1; the deviation is that of the rows outside test, the same for all models of a table. Rows
        that are equal by the order column (those of an hour, say), by the groups, or else by their features
        share a cluster. Raises DataError for a model that an earlier version cut in another way.
        """
        (table,) = artifacts
        if self.task is None:
            raise DataError(
                "this model was trained by an earlier version, which cut other test rows; train its config "
                "again, or promote by hand"
            )
        rows = labelled(self.params, table.expect("table"))
        parts = cut(self.params, rows, self.seed)
        found = self._answers(rows.frame[parts.test])
        truth, items = rows.values[parts.test], parts.test.astype(str)
        alike = parts.cluster[parts.test].tolist()
        if self.classes:
            names = [rows.classes[label] for label in truth]
            return contract.class_losses(self.classes, names, found, items.tolist(), alike)
        known = rows.values[np.concatenate([parts.train, parts.val])]
        loss = np.minimum(1.0, ((found - truth) / (SPREADS * known.std())) ** 2)
        return ItemLosses(loss, items, contract.clusters(alike), _quarters(known, truth))

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:  # noqa: ARG002
        """Nothing: the answers are a table."""
        return []

    def _answers(self, table: "pl.DataFrame") -> np.ndarray:
        task = "classify" if self.classes else "regress"
        return decoded(self.params, task, self.model.raw(self.model.codes(table)))


def _quarters(known: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Text (n,): in which quarter of the known numbers each true one is."""
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    shown = [f"{edge:g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(shown)]
    return np.array([f"up to {shown[0]}", *between, f"above {shown[-1]}"])[np.searchsorted(edges, truth)]


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
