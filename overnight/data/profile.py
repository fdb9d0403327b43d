"""What a table holds: rows, and of each column what is missing, its range, quantiles and frequent values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from overnight.config import Values

if TYPE_CHECKING:
    import polars as pl

EXACT_ROWS = 500_000  # up to here distinct values are counted, beyond they are estimated
SAMPLED = 200_000  # rows at most, evenly spread, for quantiles and frequent values
SAMPLED_VALUES = 20_000_000  # at most; a wide table of no more is read once and asked in memory
BLOCK = 100  # columns asked in one query
QUANTILES = 101
MOST_VALUES = 50
LATEST = 8 * 10**12  # seconds since 1970, either way; of later times Polars has no text and no hour
PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Facts:
    """Of one column; nan and inf stand in no other number, and nothing but nulls is asked of nested values.

    low, high: of times as whole numbers in their unit. distinct: where estimated, to a few percent.
    """

    nulls: int
    nan: int = 0
    inf: int = 0
    distinct: int = 0
    estimated: bool = False
    low: Any = None
    high: Any = None
    mean: float | None = None


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


def profiles(frames: "Mapping[str, pl.LazyFrame]", rows: Mapping[str, int]) -> dict[str, TableProfile]:
    """Of every table, by name; rows: of those whose number is known."""
    return {name: profile(frame, rows.get(name)) for name, frame in frames.items()}


def profile(frame: "pl.LazyFrame", rows: int | None = None) -> TableProfile:
    """In one pass, and another where the number of rows is not known."""
    import polars as pl

    if rows is None:
        rows = int(frame.select(pl.len()).collect(engine="streaming").item())
    found, sample = facts(frame, rows, SAMPLED, {})
    return TableProfile(
        rows=rows, columns={name: _column(sample[name], one, rows) for name, one in found.items()}
    )


def facts(
    frame: "pl.LazyFrame", rows: int, sampled: int, known: Mapping[str, Mapping[str, Any]]
) -> "tuple[dict[str, Facts], pl.DataFrame]":
    """Of every column, and every n-th row, `sampled` at most; in one pass over each BLOCK of columns.

    known: {column: {fact: value}} of what need not be asked.
    """
    import polars as pl

    schema = frame.collect_schema()
    names = list(schema)
    # Every n-th: stretches of a table in order would show some months.
    every = max(1, -(-rows // min(sampled, max(1, SAMPLED_VALUES // max(1, len(names))))))
    is_wide = len(names) > BLOCK and rows * len(names) <= SAMPLED_VALUES
    whole = frame.collect(engine="streaming") if is_wide else None
    found, parts = dict[str, Facts](), list[pl.DataFrame]()
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        source = frame.select(block) if whole is None else whole.select(block).lazy()
        asked = {name: _asked(name, schema[name], rows) for name in block}
        wanted = [
            expression.alias(f"{name}\0{fact}")
            for name, ask in asked.items()
            for fact, expression in ask
            if fact not in known.get(name, {})
        ]
        queries = [source.select(pl.len().alias("\0"), *wanted), source.gather_every(every)]
        counted, part = pl.collect_all(queries, engine="streaming" if whole is None else "in-memory")
        answers = {name: dict(known.get(name, {})) for name in block}
        for key, value in counted.drop("\0").row(0, named=True).items():
            name, _, fact = key.rpartition("\0")
            answers[name][fact] = value
        found |= {name: _facts(answer, rows) for name, answer in answers.items()}
        parts.append(part)
    return found, pl.concat(parts, how="horizontal") if parts else pl.DataFrame()


def _asked(name: str, dtype: "pl.DataType", rows: int) -> "Iterator[tuple[str, pl.Expr]]":
    import polars as pl

    at = pl.col(name)
    yield "nulls", at.null_count()
    if dtype.is_nested() or dtype in (pl.Null, pl.Object):
        return
    if dtype.is_float():
        yield "nan", at.is_nan().sum()
        yield "inf", at.is_infinite().sum()
        at = pl.when(at.is_finite()).then(at)
    yield "distinct", at.approx_n_unique() if rows > EXACT_ROWS else at.drop_nulls().n_unique()
    if dtype.is_numeric():
        yield "mean", at.mean()
    if dtype.is_temporal():  # Python has no days beyond the year 9999
        at = at.to_physical()
    yield "low", at.min()
    yield "high", at.max()


def _facts(answer: dict[str, Any], rows: int) -> Facts:
    estimated = rows > EXACT_ROWS and "distinct" in answer
    if estimated:  # a null or what is not finite counts as one value more
        gone = answer["nulls"] + answer.get("nan", 0) + answer.get("inf", 0)
        distinct = answer["distinct"] - int(gone > 0)
        answer["distinct"] = min(max(int(gone < rows), distinct), rows - gone)
    return Facts(**answer, estimated=estimated)


def seconds(physical: int, dtype: "pl.DataType") -> float:
    """Since 1970 of a date or a time with a date, which is held as this number."""
    return physical / PER_SECOND[dtype.time_unit] if hasattr(dtype, "time_unit") else physical * 86400.0


def commonest(there: "pl.Series", most: int) -> tuple[dict[str, int], int]:
    """{text: count} of the most frequent values, and how many there are; none of bytes and lists."""
    import polars as pl

    dtype = there.dtype
    if not len(there) or dtype.is_nested() or dtype in (pl.Null, pl.Object, pl.Binary):
        return {}, 0
    counts = (
        there.alias("value").value_counts(name="\0count").sort("\0count", "value", descending=[True, False])
    )
    head = counts.head(most)
    values = head["value"]
    texts = values.dt.to_string("polars") if dtype == pl.Duration else values.cast(pl.String)
    return dict(zip(texts.to_list(), head["\0count"].to_list(), strict=True)), counts.height


def _column(sample: "pl.Series", found: Facts, rows: int) -> ColumnProfile:
    there, dtype = _in_calendar(sample.drop_nulls()), sample.dtype
    counts, _ = commonest(there, MOST_VALUES)
    return ColumnProfile(
        type=str(dtype),
        nulls=found.nulls / max(rows, 1),
        distinct=found.distinct,
        sampled=len(there),
        low=_number(found.low, dtype),
        high=_number(found.high, dtype),
        quantiles=_quantiles(there),
        values={text: n / len(there) for text, n in counts.items() if n > 1 or len(there) == 1},
    )


def _in_calendar(there: "pl.Series") -> "pl.Series":
    """Without dates and times beyond LATEST."""
    import polars as pl

    if there.dtype not in (pl.Date, pl.Datetime):
        return there
    latest = int(LATEST / seconds(1, there.dtype))
    return there.filter(there.to_physical().cast(pl.Int128).is_between(-latest, latest))


def _number(value: Any, dtype: "pl.DataType") -> float | None:
    """None where the type has no order that a number shows."""
    import polars as pl

    if value is None or not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Date, pl.Datetime)):
        return None
    return seconds(value, dtype) if dtype.is_temporal() else float(value)


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
