"""Tables of DuckDB databases, copied to Parquet once and scanned lazily. Needs the package duckdb."""

from pathlib import Path

from pydantic import Field

from overnight.config import Values
from overnight.data.content import CleaningCounts, Tables
from overnight.data.readers._common import present


class Options(Values):
    file: str  # the database
    # {name: table or view of the database}, or their names
    tables: dict[str, str] | list[str] = Field(min_length=1)


def read(folder: Path, options: Options, _kind: str) -> Tables:
    """Whole numbers as int64, or text beyond 64 bits; decimals as float64 or text; zoned times in UTC."""
    from overnight.data.readers import _typed

    cleaned, file = CleaningCounts(), present(folder, options.file)
    named = options.tables if isinstance(options.tables, dict) else {name: name for name in options.tables}
    found = {name: _typed.database(file, table, cleaned) for name, table in named.items()}
    return Tables(
        {name: table.lazy for name, table in found.items()},
        cleaned,
        rows={name: table.rows for name, table in found.items()},
    )
