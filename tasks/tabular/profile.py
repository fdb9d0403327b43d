"""What is in a table: nulls, range and distinct values of every column, and what its page draws."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from overnight.data.profile import EXACT_ROWS, Facts, commonest, facts, seconds

Json = dict[str, Any]
DRAWN_ROWS = 50_000  # at most
BINS, LEVELS = 30, 8
BLOCK = 100  # columns made numbers at once
FIRST, LAST = -62_135_500_000, 253_402_200_000  # seconds since 1970 of the years 1 and 9999, less a day
SHORT = 64  # longer text may be cut in the statistics of a Parquet file


def columns(file: Path) -> tuple[list[Json], pl.DataFrame]:
    """One entry per column of a Parquet file, and every n-th of its rows, to be drawn; in one pass.

    name, type, nulls, distinct, min, max and, for numbers, the mean (6 digits); nan and inf, where there are
    some, are left out of min, max and mean. In more than EXACT_ROWS rows distinct is
    an estimate to a few percent: "estimated" says so.
    """
    frame = pl.scan_parquet(file)
    schema = frame.collect_schema()
    rows = int(frame.select(pl.len()).collect().item())
    known = _statistics(file, schema) if rows > EXACT_ROWS else {}
    found, sample = facts(frame, rows, DRAWN_ROWS, known)
    return [_column(name, schema[name], one) for name, one in found.items()], sample


def _statistics(file: Path, schema: pl.Schema) -> Json:
    """Nulls, least and greatest values, of the columns of which the file's own statistics are exact."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError):  # of a type that pyarrow does not have
        return {}
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    found = Json()
    for index in range(metadata.num_columns):
        name = metadata.schema.column(index).path
        if name in schema and not schema[name].is_nested():
            found[name] = _of_groups(schema[name], [group.column(index).statistics for group in groups])
    return found


def _of_groups(dtype: Any, groups: Sequence[Any]) -> Json:
    if any(one is None or not one.has_null_count for one in groups):
        return {}
    found: Json = {"nulls": sum(one.null_count for one in groups)}
    plain = dtype.is_integer() or dtype in (pl.Boolean, pl.Date, pl.String) or isinstance(dtype, pl.Datetime)
    if not plain or not all(one.has_min_max for one in groups):  # those of floats leave out nan
        return found
    low, high = min(one.min_raw for one in groups), max(one.max_raw for one in groups)
    if dtype == pl.String:  # as bytes they are in the order of their code points
        cut = max(len(low), len(high)) >= SHORT
        return found if cut else {**found, "low": low.decode(), "high": high.decode()}
    return {**found, "low": low, "high": high}


def _column(name: str, dtype: Any, found: Facts) -> Json:
    odd = {"nan": found.nan, "inf": found.inf}
    return {
        "column": name,
        "type": str(dtype),
        "nulls": found.nulls,
        "distinct": found.distinct,
        "min": _plain(found.low, dtype),
        "max": _plain(found.high, dtype),
        "mean": _plain(found.mean, pl.Float64()),
        **{key: count for key, count in odd.items() if count},
        **({"estimated": True} if found.estimated else {}),
    }


def _plain(value: Any, dtype: Any) -> Any:
    """JSON keeps whole numbers, truth values and text; the rest becomes rounded numbers or text."""
    if value is None or isinstance(value, bool | str):
        return value
    if dtype.is_temporal():
        return _time(value, dtype)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, int) else str(value)


def _time(physical: int, dtype: Any) -> str:
    """A time as Python writes it; one that Python has no time for in seconds."""
    if dtype in (pl.Date, pl.Datetime) and not FIRST <= seconds(physical, dtype) < LAST:
        return f"{seconds(physical, dtype):.6g} s since 1970"
    return str(pl.Series([physical], dtype=pl.Int64).cast(dtype)[0])


# ------------------------------------------------------------------------------------------------ to be drawn


def drawn(frame: pl.DataFrame, asked: Mapping[str, str]) -> list[Json]:
    """What the page draws of each column: counts of intervals or levels; what steps below ask for first.

    Each {"column", "counts", "labels", "first": whether a step below asks for it, "text": its expression}.
    """
    targets = {who: text for who, text in asked.items() if who.endswith(".target")}
    found = []
    for who, text in targets.items():
        try:
            values = frame.select(pl.sql_expr(text).alias(who))[who]
        except pl.exceptions.PolarsError:  # the step that asks says so
            continue
        found.append({"column": who, "first": True, "text": text, **_counted(values.to_frame())[who]})
    drawn = _counted(frame)
    return found + [{"column": name, "first": False, **drawn[name]} for name in frame.columns]


def _counted(frame: pl.DataFrame) -> dict[str, Json]:
    """What is drawn of each column; many numbers at once."""
    schema = frame.schema
    lined = [name for name, dtype in schema.items() if dtype.is_numeric() or dtype.is_temporal()]
    found = {name: _levels(frame[name]) for name in set(schema) - set(lined)}
    for start in range(0, len(lined), BLOCK):
        names = lined[start : start + BLOCK]
        physical = [pl.col(name).to_physical().cast(pl.Float64, strict=False) for name in names]
        numbers = frame.select(physical).to_numpy()
        for index, name in enumerate(names):
            column = numbers[:, index]
            found[name] = _histogram(column[np.isfinite(column)], schema[name])
    return found


def _levels(values: pl.Series) -> Json:
    """Counts of the commonest levels; none of nested values."""
    there = values.drop_nulls()
    head, number = commonest(there, LEVELS)
    rest = len(there) - sum(head.values()) if head else 0
    more = {f"{number - LEVELS:,} others": rest} if rest else {}
    return {"counts": [*head.values(), *more.values()], "labels": [*(text[:40] for text in head), *more]}


def _histogram(numbers: np.ndarray, dtype: Any) -> Json:
    """Counts of intervals of finite numbers; dtype: of the values that they stand for."""
    if not len(numbers):
        return {"counts": [], "labels": []}
    low, high = float(numbers.min()), float(numbers.max())
    span = high / 2 - low / 2  # halves: the largest floats are as far apart as none can tell
    whole = dtype.is_integer() or dtype == pl.Date
    bins = min(BINS, int(2 * span) + 1) if whole else BINS
    place = (numbers / 2 - low / 2) / span * bins if span else np.zeros(len(numbers))
    counts = np.bincount(np.minimum(place.astype(np.int64), bins - 1), minlength=bins if span else 1)
    return {"counts": counts.tolist(), "labels": [], "range": [_label(low, dtype), _label(high, dtype)]}


def _label(number: float, dtype: Any) -> str:
    return _time(int(number), dtype) if dtype.is_temporal() else f"{number:,.6g}"
