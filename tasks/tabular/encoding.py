"""Rows of a table as numbers: scaled columns, flags for missing values, one column per level."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from overnight.data.content import EXACT
from overnight.errors import DataError
from tasks.tabular.columns import Type, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl
    import scipy.sparse as sp

MISSING, OTHER = "(missing)", "(other)"
MOST_CATEGORIES = 254  # that trees take of a column


@dataclass(frozen=True)
class Rows:
    """Encoded rows: codes float64 (n, columns), values (n,), and their weights (n,) or None."""

    codes: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None

    def __getitem__(self, chosen: np.ndarray) -> "Rows":
        weights = None if self.weights is None else self.weights[chosen]
        return Rows(self.codes[chosen], self.values[chosen], weights)


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
        with np.errstate(over="ignore", invalid="ignore"):
            spread = filled.std(0)
        for name, deviation in zip(numeric, spread, strict=True):
            if not np.isfinite(deviation):
                raise DataError(f"predictor: numeric: {name!r} is too large to scale; give it another unit")
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


@dataclass(frozen=True)
class TreeEncoder:
    """How a row becomes codes for trees; learned from the training rows alone.

    Categories come first, each the index among its `levels` (nan: missing or never seen); then numbers as
    they are; then, for each column of more levels than trees take, the mean target of its level. A column
    without any value is left out.
    """

    categorical: list[str]
    levels: list[list[str]]
    numeric: list[str]
    many: list[str]
    means: list[list[dict[str, float]]]  # of each of `many` and each output, by level
    default: list[float]  # of each output, for a level never seen

    @classmethod
    def fit(
        cls,
        frame: "pl.DataFrame",
        numeric: list[str],
        categorical: list[str],
        most: int,
        values: np.ndarray,
        is_class: bool,
    ) -> tuple[Self, np.ndarray]:
        """An encoder and the codes of these rows, whose means are of other rows of the level.

        frame: its categorical columns are texts; values: class numbers or numbers (n,).
        """
        most = min(most, MOST_CATEGORIES)
        there = frame.select(categorical).null_count()
        categorical = [name for name in categorical if there[name][0] < frame.height]
        numeric = [name for name in numeric if np.isfinite(_numbers(frame, [name])).any()]
        few = [name for name in categorical if frame[name].n_unique() <= most]
        many = [name for name in categorical if name not in few]
        if not numeric + categorical:
            raise DataError("predictor: no column has a value in the rows to learn from")
        levels = [frame[name].drop_nulls().unique().sort().to_list() for name in few]
        means, default, cross = [], list[float](), list[np.ndarray]()
        for name in many:
            by_level, default, codes = _means(_text(frame[name]).to_numpy(), values, is_class)
            means.append(by_level)
            cross.append(codes)
        made = cls(few, levels, numeric, many, means, default)
        return made, np.hstack([made._plain(frame), *cross])

    def codes(self, frame: "pl.DataFrame") -> np.ndarray:
        """Float64 (n, len(owners()))."""
        import polars as pl

        found = [self._plain(frame)]
        for name, outputs in zip(self.many, self.means, strict=True):
            text = _text(frame[name])
            found += [
                text.replace_strict(by_level, default=default, return_dtype=pl.Float64).to_numpy()[:, None]
                for by_level, default in zip(outputs, self.default, strict=True)
            ]
        return np.hstack(found)

    def _plain(self, frame: "pl.DataFrame") -> np.ndarray:
        import polars as pl

        coded = []
        for name, levels in zip(self.categorical, self.levels, strict=True):
            index = {level: float(i) for i, level in enumerate(levels)}
            column = frame[name].replace_strict(index, default=None, return_dtype=pl.Float64)
            coded.append(column.fill_null(np.nan).to_numpy()[:, None])
        return np.hstack([*coded, _numbers(frame, self.numeric)])

    def texts(self) -> list[str]:
        """The columns of levels."""
        return [*self.categorical, *self.many]

    def owners(self) -> list[str]:
        """The column that each code comes from."""
        outputs = len(self.default)
        return [*self.categorical, *self.numeric, *(name for name in self.many for _ in range(outputs))]


def _means(
    texts: np.ndarray, values: np.ndarray, is_class: bool
) -> tuple[list[dict[str, float]], list[float], np.ndarray]:
    """Of each output the mean target by level, and of all rows; and (n, outputs) from the other rows."""
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import TargetEncoder

    kind = "continuous"
    if is_class:
        values = np.unique(values, return_inverse=True)[1]
        kind = "multiclass" if values.max() > 1 else "binary"
    encoder = TargetEncoder(target_type=kind, cv=KFold(min(5, len(texts))))
    cross = encoder.fit_transform(texts[:, None], values)
    levels = encoder.categories_[0].tolist()
    by_level = [dict(zip(levels, means.tolist(), strict=True)) for means in encoder.encodings_]
    return by_level, np.atleast_1d(encoder.target_mean_).tolist(), np.asarray(cross, np.float64)


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

    schema = frame.schema
    frame = frame.with_columns(_blanks_as_null(name, schema[name], kind) for name, kind in kinds.items())
    schema = frame.schema
    texts = []
    for name, kind in kinds.items():
        typed = _plain(name, schema[name]) if kind == "text" else cast(name, schema[name], kind)
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
    whole = (at == at.floor()) & (at.abs() < EXACT)
    digits = at.cast(pl.Int64, strict=False).cast(pl.String)
    return pl.when(whole).then(digits).otherwise(at.cast(pl.String))


def is_number(dtype: "pl.DataType") -> bool:
    """Whether a column of this type can be scaled."""
    import polars as pl

    return dtype.is_numeric() or dtype == pl.Boolean
