"""Rows of a table as numbers: scaled columns, flags for missing values, one column per level."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from tasks.tabular.columns import Type, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl
    import scipy.sparse as sp

MISSING, OTHER = "(missing)", "(other)"
WHOLE = 2**53  # floats below hold every whole number


@dataclass(frozen=True)
class Encoder:
    """How a row becomes numbers; learned from the training rows alone."""

    numeric: list[str]
    categorical: list[str]
    median: list[float]
    centre: list[float]
    scale: list[float]
    flagged: list[int]  # numeric columns that get a flag for a missing value
    levels: list[list[str]]

    @classmethod
    def fit(cls, frame: "pl.DataFrame", numeric: list[str], categorical: list[str], most: int) -> Self:
        """Medians, scales and the `most` frequent levels of these rows."""
        values = _numbers(frame, numeric)
        gone = np.isnan(values)
        safe = np.where(gone.all(0), 0.0, values)  # a column without any value carries nothing
        median = np.nanmedian(safe, 0) if values.size else np.zeros(len(numeric))
        filled = np.where(np.isnan(safe), median, safe)
        spread = filled.std(0)
        return cls(
            numeric,
            categorical,
            median.tolist(),
            filled.mean(0).tolist(),
            np.where(spread > 0, spread, 1.0).tolist(),
            np.flatnonzero(gone.any(0)).tolist(),
            [_levels(frame[name], most) for name in categorical],
        )

    def codes(self, frame: "pl.DataFrame") -> np.ndarray:
        """Float64 (n, numeric + categorical).

        Numbers as they are (nan: missing), then the index of each level.
        """
        import polars as pl

        coded = [_numbers(frame, self.numeric)]
        for name, levels in zip(self.categorical, self.levels, strict=True):
            index = {level: i for i, level in enumerate(levels)}
            column = _text(frame[name]).replace_strict(index, default=index[OTHER], return_dtype=pl.Float64)
            coded.append(column.to_numpy()[:, None])
        return np.hstack(coded)

    def matrix(self, codes: np.ndarray) -> "sp.csr_matrix":
        """Float32 (n, features) sparse: scaled numbers, flags, one column per level."""
        import scipy.sparse as sp

        numbers = codes[:, : len(self.numeric)]
        filled = np.where(np.isnan(numbers), self.median, numbers)
        dense = np.hstack([(filled - self.centre) / self.scale, np.isnan(numbers[:, self.flagged])])
        return sp.hstack(
            [sp.csr_matrix(dense.astype(np.float32)), self._one_hot(codes[:, len(self.numeric) :])],
            format="csr",
        )

    def _one_hot(self, codes: np.ndarray) -> "sp.csr_matrix":
        import scipy.sparse as sp

        sizes = np.array([len(levels) for levels in self.levels], dtype=np.int64)
        other = np.array([levels.index(OTHER) for levels in self.levels])
        known = np.where((codes >= 0) & (codes < sizes), codes, other).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else np.zeros(0, np.int64)
        rows, columns = codes.shape
        indptr = np.arange(rows + 1) * columns
        ones = np.ones(rows * columns, np.float32)
        return sp.csr_matrix(
            (ones, (known + starts).astype(np.int64).ravel(), indptr), shape=(rows, int(sizes.sum()))
        )

    def names(self) -> list[str]:
        """What each column of the matrix stands for."""
        flags = [f"{self.numeric[i]} missing" for i in self.flagged]
        return [
            *self.numeric,
            *flags,
            *(
                f"{c} {level}"
                for c, levels in zip(self.categorical, self.levels, strict=True)
                for level in levels
            ),
        ]


def _levels(column: "pl.Series", most: int) -> list[str]:
    """The most frequent levels, ties by name, then the two for what is missing or rare."""
    counts = _text(column).value_counts().sort("count", column.name, descending=[True, False])
    return [
        *(level for level in counts[column.name].head(most).to_list() if level not in (MISSING, OTHER)),
        MISSING,
        OTHER,
    ]


def _text(column: "pl.Series") -> "pl.Series":
    import polars as pl

    return column.cast(pl.String).fill_null(MISSING)


def _numbers(frame: "pl.DataFrame", names: list[str]) -> np.ndarray:
    """Float64 (n, len(names)); nan where there is no finite value."""
    import polars as pl

    if not names:
        return np.empty((frame.height, 0))
    values = frame.select(pl.col(name).cast(pl.Float64) for name in names).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def kind_of(dtype: "pl.DataType") -> Type:
    """What a column of this type is declared as."""
    import polars as pl

    if dtype in (pl.Boolean, pl.Date):
        return "bool" if dtype == pl.Boolean else "date"
    if dtype.is_integer():
        return "int"
    if dtype.is_numeric():
        return "float"
    return "datetime" if isinstance(dtype, pl.Datetime) else "text"


def as_levels(frame: "pl.DataFrame", kinds: "Mapping[str, Type]") -> "pl.DataFrame":
    """The columns that `kinds` names as text, the same for 3, 3.0 and "3" of a column of kind int.

    A value that is not of its kind becomes OTHER, a missing one stays null.
    """
    import polars as pl

    frame = frame.with_columns(
        _blanks_as_null(name, frame.schema[name], kind) for name, kind in kinds.items()
    )
    texts = []
    for name, kind in kinds.items():
        typed = _plain(name, frame.schema[name]) if kind == "text" else cast(name, frame.schema[name], kind)
        text = (pl.col(name) if typed is None else typed).cast(pl.String)
        unseen = pl.col(name).is_not_null() & text.is_null()
        texts.append(pl.when(unseen).then(pl.lit(OTHER)).otherwise(text).alias(name))
    return frame.with_columns(texts)


def _blanks_as_null(name: str, dtype: "pl.DataType", kind: Type) -> "pl.Expr":
    import polars as pl

    if dtype.is_float():
        return pl.col(name).fill_nan(None)
    if dtype == pl.String and kind != "text":
        return pl.when(pl.col(name).str.strip_chars() != "").then(pl.col(name))
    return pl.col(name)


def _plain(name: str, dtype: "pl.DataType") -> "pl.Expr":
    """Whole numbers that are floats without their point: pandas keeps numbers with gaps as floats."""
    import polars as pl

    at = pl.col(name)
    if not dtype.is_float():
        return at
    whole = (at == at.floor()) & (at.abs() < WHOLE)
    digits = at.cast(pl.Int64, strict=False).cast(pl.String)
    return pl.when(whole).then(digits).otherwise(at.cast(pl.String))


def is_number(dtype: "pl.DataType") -> bool:
    """Whether a column of this type can be scaled."""
    import polars as pl

    return dtype.is_numeric() or dtype == pl.Boolean
