"""What a table holds: rows, and of each column what is missing, its range, quantiles and frequent values."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from overnight.config import Values

if TYPE_CHECKING:
    import polars as pl

SAMPLED = 200_000  # rows at most, evenly spread, for quantiles and frequent values
QUANTILES = 101
MOST_VALUES = 50


class ColumnProfile(Values):
    """Shares are of the sampled rows that have a value.

    type: of Polars; low, high: range of numbers, and of times in seconds since 1970; quantiles: of numbers,
    of times the minute of their day, of texts their length; values: {text: share} of the most frequent.
    """

    model_config = ConfigDict(
        extra="ignore", allow_inf_nan=True
    )  # an older checkout reads what a newer wrote

    type: str
    nulls: float  # share of all rows
    distinct: int  # about
    sampled: int
    low: float | None = None
    high: float | None = None
    quantiles: list[float] = []
    values: dict[str, float] = {}


class TableProfile(Values):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    rows: int
    columns: dict[str, ColumnProfile]


def profiles(frames: "Mapping[str, pl.LazyFrame]") -> dict[str, TableProfile]:
    """Of every table, by name: two passes over each."""
    return {name: profile(frame) for name, frame in frames.items()}


def profile(frame: "pl.LazyFrame") -> TableProfile:
    import polars as pl

    schema = frame.collect_schema()
    facts = [pl.len().alias("\0rows")]
    for name, dtype in schema.items():
        column = pl.col(name)
        facts += [
            column.null_count().alias(f"{name}\0nulls"),
            _distinct(column, dtype).alias(f"{name}\0distinct"),
        ]
        number = _as_number(column, dtype)
        if number is not None:
            finite = pl.when(number.is_finite()).then(number)
            facts += [finite.min().alias(f"{name}\0low"), finite.max().alias(f"{name}\0high")]
    found = frame.select(facts).collect(engine="streaming").row(0, named=True)
    rows = int(found["\0rows"])
    sample = frame.gather_every(max(1, -(-rows // SAMPLED))).collect(engine="streaming")
    return TableProfile(
        rows=rows, columns={name: _column(name, sample[name], found, rows) for name in schema}
    )


def _distinct(column: "pl.Expr", dtype: "pl.DataType") -> "pl.Expr":
    import polars as pl

    nested = dtype.is_nested() or dtype == pl.Object
    return pl.lit(0) if nested else column.approx_n_unique()


def _as_number(column: "pl.Expr", dtype: "pl.DataType") -> "pl.Expr | None":
    """Float64; None where the type has no order that a number shows."""
    import polars as pl

    if dtype.is_numeric() or dtype == pl.Boolean:
        return column.cast(pl.Float64)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return column.dt.epoch("s").cast(pl.Float64)
    return None


def _column(name: str, sample: "pl.Series", found: Mapping[str, Any], rows: int) -> ColumnProfile:
    there = sample.drop_nulls()
    return ColumnProfile(
        type=str(sample.dtype),
        nulls=found[f"{name}\0nulls"] / max(rows, 1),
        distinct=int(found[f"{name}\0distinct"]),
        sampled=len(there),
        low=found.get(f"{name}\0low"),
        high=found.get(f"{name}\0high"),
        quantiles=_quantiles(there),
        values=_frequent(there),
    )


def _quantiles(there: "pl.Series") -> list[float]:
    import numpy as np
    import polars as pl

    dtype = there.dtype
    if dtype.is_numeric():
        numbers = there.cast(pl.Float64)
    elif isinstance(dtype, pl.Datetime):
        numbers = (there.dt.hour() * 60.0 + there.dt.minute()).cast(pl.Float64)
    elif dtype == pl.String:
        numbers = there.str.len_chars().cast(pl.Float64)
    else:
        return []
    values = numbers.filter(numbers.is_finite()).to_numpy()
    if not len(values):
        return []
    return [float(value) for value in np.quantile(values, np.linspace(0, 1, QUANTILES))]


def _frequent(there: "pl.Series") -> dict[str, float]:
    """Shares of values that occur more than once."""
    import polars as pl

    if not len(there) or there.dtype.is_nested() or there.dtype == pl.Object:
        return {}
    counts = there.alias("value").value_counts(sort=True).head(MOST_VALUES)
    counts = counts.with_columns(pl.col("value").cast(pl.String)).sort(
        "count", "value", descending=[True, False]
    )
    return {str(value): n / len(there) for value, n in counts.iter_rows() if n > 1 or len(there) == 1}
