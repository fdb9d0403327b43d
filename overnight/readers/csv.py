"""Tables as csv files, plain or in a zip or gz; scanned lazily, with the types of the entry checked over every row."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from overnight.config import Values
from overnight.content import Tables
from overnight.errors import DataError
from overnight.fetch import plain
from overnight.paths import shown
from overnight.readers._common import present

if TYPE_CHECKING:
    import polars as pl

    from overnight.dataset import Entry

Type = Literal["int", "float", "text", "bool", "date", "datetime", "time"]


class Table(Values):
    """One file; what is left out is taken from the options of the set."""

    file: str
    types: dict[str, Type] = {}
    nulls: list[str] | None = None
    delimiter: str | None = None


class Options(Values):
    """Files by the name of their table, and how to read them."""

    tables: dict[str, str | Table] = Field(min_length=1)
    nulls: list[str] = Field(["", "NA", "null"], description="what stands for a missing value")
    delimiter: str = ","
    types: dict[str, Type] = Field({}, description="by column, for every table that has it; others are inferred from the first 10,000 rows")


def read(folder: Path, options: Options, _entry: "Entry") -> Tables:
    """Lazy frames whose every value has been checked against its type."""
    frames = {}
    for name, given in options.tables.items():
        table = Table(file=given) if isinstance(given, str) else given
        frames[name] = _scan(plain(present(folder, table.file)), folder / table.file, table, options)
    return Tables(frames)


def _scan(path: Path, shown_as: Path, table: Table, options: Options) -> "pl.LazyFrame":
    import polars as pl

    how: dict[str, Any] = {
        "separator": table.delimiter or options.delimiter,
        "null_values": options.nulls if table.nulls is None else table.nulls,
        "missing_utf8_is_empty_string": False,
    }
    try:
        text = pl.scan_csv(path, infer_schema=False, **how)
        there = text.collect_schema().names()
        missing = [c for c in table.types if c not in there]
        if missing:
            raise DataError(f"{shown(shown_as)}: no column {', '.join(map(repr, missing))}; the file has: {', '.join(there)}")
        inferred = pl.read_csv(path, n_rows=10_000, infer_schema_length=None, try_parse_dates=True, **how).schema
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{shown(shown_as)}: expected a csv file: {' '.join(str(error).split())[:200]}") from None
    given = {**{c: t for c, t in options.types.items() if c in there}, **table.types}
    types = {c: _dtype(given[c]) if c in given else inferred[c] for c in there}
    for column, dtype in types.items():
        if dtype == pl.Datetime and _zoned(text, column):
            types[column] = pl.Datetime("us", "UTC")
    return text.with_columns(_cast(c, t, strict=True) for c, t in types.items())


def _zoned(text: "pl.LazyFrame", column: str) -> bool:
    """Whether the first value of a time carries a zone."""
    import polars as pl

    first = text.select(pl.col(column).drop_nulls().first()).collect().item()
    return bool(first and re.search(r"(Z|[+-]\d\d:?\d\d)$", first))


def _dtype(name: Type) -> Any:
    import polars as pl

    return {
        "int": pl.Int64, "float": pl.Float64, "text": pl.String, "bool": pl.Boolean,
        "date": pl.Date, "datetime": pl.Datetime("us"), "time": pl.Time,
    }[name]  # fmt: skip


def _cast(column: str, dtype: Any, *, strict: bool) -> "pl.Expr":
    import polars as pl

    value = pl.col(column)
    if dtype == pl.Boolean:
        return (
            pl.when(value.str.to_lowercase().is_in(["true", "1", "yes"]))
            .then(statement=True)
            .when(value.is_not_null())
            .then(statement=False)
        )
    if dtype.is_temporal():
        return value.str.strptime(dtype, strict=strict)
    return value.cast(dtype, strict=strict)
