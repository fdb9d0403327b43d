"""What is in a table: nulls, range and distinct values of every column, and what its page draws."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

Json = dict[str, Any]
EXACT_ROWS = 500_000  # up to here distinct values are counted, beyond they are estimated
DRAWN_ROWS, DRAWN_VALUES = 50_000, 20_000_000  # at most, of the rows that are drawn
BINS, LEVELS = 30, 8
BLOCK = 100  # columns asked in one query
SMALL = 10_000_000  # values up to which a table is read once and asked in memory
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
    names = list(schema)
    # Every n-th: stretches of a table in order would show some months.
    every = max(1, -(-rows // min(DRAWN_ROWS, max(1, DRAWN_VALUES // max(1, len(names))))))
    whole = pl.read_parquet(file) if rows * len(names) <= SMALL else None
    found, parts = dict[str, Any](known), list[pl.DataFrame]()
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        wanted = [e for name in block for e in _asked(name, schema[name], rows, known)]
        source = frame.select(block) if whole is None else whole.select(block).lazy()
        queries = [source.select(wanted), source.gather_every(every)]
        counted, part = pl.collect_all(queries, engine="streaming" if whole is None else "in-memory")
        found |= counted.row(0, named=True)
        parts.append(part)
    sample = pl.concat(parts, how="horizontal") if parts else pl.DataFrame()
    return [_column(name, schema[name], found, rows) for name in names], sample


def _asked(name: str, dtype: Any, rows: int, known: Mapping[str, Any]) -> Iterator[pl.Expr]:
    at = pl.col(name)
    if dtype.is_float():
        yield at.is_nan().sum().alias(f"{name}\0nan")
        yield at.is_infinite().sum().alias(f"{name}\0inf")
        at = pl.when(at.is_finite()).then(at)
    if not dtype.is_nested() and dtype != pl.Null:
        distinct = at.approx_n_unique() if rows > EXACT_ROWS else at.drop_nulls().n_unique()
        yield distinct.alias(f"{name}\0distinct")
    if dtype.is_numeric():
        yield at.mean().alias(f"{name}\0mean")
    if f"{name}\0min" not in known and not dtype.is_nested():
        yield at.min().alias(f"{name}\0min")
        yield at.max().alias(f"{name}\0max")
    if f"{name}\0nulls" not in known:
        yield pl.col(name).null_count().alias(f"{name}\0nulls")


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
            found |= _of_groups(name, schema[name], [group.column(index).statistics for group in groups])
    return found


def _of_groups(name: str, dtype: Any, groups: Sequence[Any]) -> Json:
    if any(one is None or not one.has_null_count for one in groups):
        return {}
    found: Json = {f"{name}\0nulls": sum(one.null_count for one in groups)}
    plain = dtype.is_integer() or dtype in (pl.Boolean, pl.Date, pl.String) or isinstance(dtype, pl.Datetime)
    if not plain or not all(one.has_min_max for one in groups):  # those of floats leave out nan
        return found
    low, high = min(one.min_raw for one in groups), max(one.max_raw for one in groups)
    if dtype == pl.String:  # as bytes they are in the order of their code points
        cut = max(len(low), len(high)) >= SHORT
        return found if cut else {**found, f"{name}\0min": low.decode(), f"{name}\0max": high.decode()}
    typed = pl.Series([low, high]).cast(dtype)
    return {**found, f"{name}\0min": typed[0], f"{name}\0max": typed[1]}


def _column(name: str, dtype: Any, found: Json, rows: int) -> Json:
    distinct: Any = found.get(f"{name}\0distinct")
    nulls = int(found[f"{name}\0nulls"])
    estimated = rows > EXACT_ROWS and distinct is not None
    odd = {key: int(found.get(f"{name}\0{key}") or 0) for key in ("nan", "inf")}
    if estimated:  # a null or what is not finite counts as one value more
        gone = nulls + sum(odd.values())
        distinct = min(max(int(gone < rows), distinct - int(gone > 0)), rows - gone)
    return {
        "column": name,
        "type": str(dtype),
        "nulls": nulls,
        "distinct": int(distinct or 0),
        **{key: _plain(found.get(f"{name}\0{key}")) for key in ("min", "max", "mean")},
        **{key: count for key, count in odd.items() if count},
        **({"estimated": True} if estimated else {}),
    }


def _plain(value: Any) -> Any:
    """JSON keeps whole numbers, truth values and text; the rest becomes rounded numbers or text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


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
    dtype = values.dtype
    if dtype.is_nested() or dtype in (pl.Null, pl.Object, pl.Binary):
        return {"counts": [], "labels": []}
    levels = values.drop_nulls().cast(pl.String, strict=False).value_counts(sort=True, name="\0count")
    head = levels.head(LEVELS)
    rest = sum(levels["\0count"].to_list()[LEVELS:])
    labels = [str(label)[:40] for label in head[head.columns[0]].to_list()]
    more = [f"{levels.height - LEVELS:,} others"] if rest else []
    return {"counts": [*head["\0count"].to_list(), *([rest] if rest else [])], "labels": labels + more}


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
    if dtype.is_temporal():
        physical = pl.Series([int(number)]).cast(pl.Int32 if dtype == pl.Date else pl.Int64)
        return str(physical.cast(dtype)[0])
    return f"{number:,.6g}"
