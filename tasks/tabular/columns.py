"""Columns of a stated type: how a value becomes one, and which values do not."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import polars as pl

Type = Literal["int", "float", "text", "bool", "date", "datetime"]
TRUTH = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}


def cast(column: str, dtype: "pl.DataType", kind: Type) -> "pl.Expr | None":
    """The column as that type, null where it cannot be; None when it is of that type.

    Times without a zone are UTC.
    """
    import polars as pl

    text = dtype == pl.String
    at = pl.col(column).str.strip_chars() if text else pl.col(column)
    if kind == "int":
        return None if dtype.is_integer() else _whole(at, text)
    if kind == "bool" and text:
        return at.str.to_lowercase().replace_strict(TRUTH, default=None, return_dtype=pl.Boolean)
    if kind in ("date", "datetime") and text:
        return (
            at.str.to_date(strict=False)
            if kind == "date"
            else at.str.to_datetime(strict=False, time_zone="UTC")
        )
    if kind == "datetime":
        return _utc(pl.col(column), dtype)
    wanted = {"float": pl.Float64, "text": pl.String, "bool": pl.Boolean, "date": pl.Date}[kind]
    return None if dtype == wanted else pl.col(column).cast(wanted, strict=False)


def _utc(at: "pl.Expr", dtype: "pl.DataType") -> "pl.Expr | None":
    """Microseconds in UTC, so that all times compare and join."""
    import polars as pl

    if dtype == pl.Datetime("us", "UTC"):
        return None
    zoned = getattr(dtype, "time_zone", None) is not None
    plain = at if zoned else at.cast(pl.Datetime("us"), strict=False).dt.replace_time_zone("UTC")
    return plain.dt.convert_time_zone("UTC").dt.cast_time_unit("us")


def _whole(at: "pl.Expr", text: bool) -> "pl.Expr":
    """Whole numbers; 2.0 is one, 2.5 is not."""
    import polars as pl

    number = at.cast(pl.Float64, strict=False)
    whole = pl.when(number == number.floor()).then(number).cast(pl.Int64, strict=False)
    return pl.coalesce(at.cast(pl.Int64, strict=False), whole) if text else whole


def misfits(frame: "pl.LazyFrame", casts: "Mapping[str, pl.Expr]") -> dict[str, tuple[int, int, object]]:
    """Values that are there but do not fit their cast, by column.

    How many, and row (from 1) and value of the first.
    """
    import polars as pl

    if not casts:
        return {}
    bad = {column: pl.col(column).is_not_null() & to.is_null() for column, to in casts.items()}
    counts = (
        frame.select(flag.sum().alias(column) for column, flag in bad.items())
        .collect(engine="streaming")
        .row(0, named=True)
    )
    found = {}
    for column, flag in bad.items():
        if counts[column]:
            row, value = (
                frame.select(column)
                .with_row_index("\0row", 1)
                .filter(flag)
                .head(1)
                .collect(engine="streaming")
                .row(0)
            )
            found[column] = (int(counts[column]), int(row), value)
    return found
