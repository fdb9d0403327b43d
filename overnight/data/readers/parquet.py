"""Tables as Parquet files, scanned lazily."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from overnight.config import Values
from overnight.data.content import CleaningCounts, Tables
from overnight.data.readers._common import Files, all_matching

if TYPE_CHECKING:
    import polars as pl

    from overnight.data.readers._typed import Typed


def as_table(given: Any) -> Any:
    """A name of a file, or several, is all that a table needs."""
    return {"file": given} if isinstance(given, (str, list)) else given


class Table(Values):
    file: Files = Field(min_length=1)  # one, several, or a name with *
    union: Literal["same", "fill"] = "same"  # whether several files must have the same columns


class Options(Values):
    tables: dict[str, Annotated[Table, BeforeValidator(as_table)]] = Field(min_length=1)


def read(folder: Path, options: Options, _kind: str) -> Tables:
    """Whole numbers as int64, decimals as float64 or text, times with a zone in UTC."""
    cleaned = CleaningCounts()
    found = _tables(folder, options, cleaned)
    return Tables(
        {name: table.lazy for name, table in found.items()},
        cleaned,
        rows={name: table.rows for name, table in found.items()},
    )


def schemas(folder: Path, options: Options) -> "dict[str, tuple[pl.Schema, bool]]":
    """{table: (its columns, True)}."""
    found = _tables(folder, options, CleaningCounts())
    return {name: (table.lazy.collect_schema(), True) for name, table in found.items()}


def _tables(folder: Path, options: Options, cleaned: CleaningCounts) -> "dict[str, Typed]":
    from overnight.data.readers import _typed

    return {
        name: _typed.parquet(all_matching(folder, table.file), table.union, cleaned)
        for name, table in options.tables.items()
    }
