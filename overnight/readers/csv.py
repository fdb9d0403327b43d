"""Tables as csv files, plain or inside a zip or gz: scanned lazily, after every value was checked against its type once."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from overnight.config import Values
from overnight.content import Handled, Tables
from overnight.errors import DataError
from overnight.paths import shown
from overnight.readers import _csv
from overnight.readers._common import expect, present
from overnight.unpack import plain

if TYPE_CHECKING:
    import polars as pl

    from overnight.dataset import Entry

Type = Annotated[str, Field(pattern=_csv.TYPE)]


class Table(Values):
    """One file; what is left out is taken from the options of the set."""

    file: str
    types: dict[str, Type] = Field({}, description="int, float, text, bool, date, datetime, or `datetime %d.%m.%Y %H:%M`; by column")
    nulls: list[str] | None = None
    delimiter: str | None = Field(None, min_length=1, max_length=1)


class Options(Values):
    """Files by the name of their table, and how to read them."""

    tables: dict[str, str | Table] = Field(min_length=1)
    nulls: list[str] = Field(["", "NA", "null"], description="what stands for a missing value")
    delimiter: str = Field(",", min_length=1, max_length=1)
    types: dict[str, Type] = Field({}, description="by column, for every table that has it; the others' are inferred")


def read(folder: Path, options: Options, _entry: "Entry") -> Tables:
    """Lazy frames. Times with a zone are in UTC. A column without a type gets that of its first 10,000 rows, and must keep it."""
    handled = Handled()
    frames: dict[str, pl.LazyFrame] = {}
    for name, given in options.tables.items():
        table = Table(file=given) if isinstance(given, str) else given
        frames[name] = _scan(present(folder, table.file), table, options, handled)
    return Tables(frames, handled)


def _scan(file: Path, table: Table, options: Options, handled: Handled) -> "pl.LazyFrame":
    import polars as pl

    path = plain(file)
    expect(path, "csv", file)
    nulls = options.nulls if table.nulls is None else table.nulls
    how: dict[str, Any] = {"separator": table.delimiter or options.delimiter, "null_values": nulls}
    _csv.check_end(path, file, how["separator"])
    try:
        text = pl.scan_csv(path, infer_schema=False, **how)
        types = _types(text, file, table, options)
        columns = [_csv.Column.of(text, name, types.get(name), file) for name in text.collect_schema().names()]
        counts = text.select(pl.len().alias(""), *(c.wrong() for c in columns)).collect(engine="streaming").row(0, named=True)
        columns = [c if not counts[c.name] else c.mended(text, nulls, handled) for c in columns]
        native = {c.name: c.dtype for c in columns if c.is_native}
        typed = pl.scan_csv(path, infer_schema=False, schema_overrides=native, **how)
        frame = typed.with_columns(c.value() for c in columns if not c.is_native)
        return _csv.without_blank_rows(frame, text, columns, handled) if counts[""] else _empty(frame, handled)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{shown(file)}: expected a csv file: {_csv.brief(error)}; mend the file, or the entry's delimiter") from None


def _types(text: "pl.LazyFrame", file: Path, table: Table, options: Options) -> Mapping[str, str]:
    """The types the entry gives; every column of the table's own must be there."""
    there = text.collect_schema().names()
    missing = [c for c in table.types if c not in there]
    if missing:
        raise DataError(f"{shown(file)}: no column {', '.join(map(repr, missing))}; the file has: {', '.join(there)}")
    return {**{c: t for c, t in options.types.items() if c in there}, **table.types}


def _empty(frame: "pl.LazyFrame", handled: Handled) -> "pl.LazyFrame":
    handled["table without rows kept"] += 1
    return frame
