"""Rows of a table as numbers: scaled columns, flags for missing values, one column per level."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl
    import scipy.sparse as sp

MISSING, OTHER = "(missing)", "(other)"


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

    def frame(self, rows: np.ndarray) -> "pl.DataFrame":
        """Rows of mixed values as the columns they stand for."""
        import polars as pl

        missing: Mapping[object, None] = dict.fromkeys(("", "nan", "None"))
        columns = {}
        for index, name in enumerate([*self.numeric, *self.categorical]):
            texts = [
                None if value is None or str(value) in missing else str(value) for value in rows[:, index]
            ]
            column = pl.Series(name, texts, dtype=pl.String)
            columns[name] = column.cast(pl.Float64, strict=False) if name in self.numeric else column
        return pl.DataFrame(columns)


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


def is_number(dtype: "pl.DataType") -> bool:
    """Whether a column of this type can be scaled."""
    import polars as pl

    return dtype.is_numeric() or dtype == pl.Boolean
