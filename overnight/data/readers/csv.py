"""Tables as csv files, plain or inside a zip or gz.

Scanned lazily, after every value was checked against its type once.
"""

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from overnight.config import Values
from overnight.data.archives import plain, recoded
from overnight.data.content import CleaningCounts, Tables
from overnight.data.readers import _csv
from overnight.data.readers._common import Delimiter, expect, present, require
from overnight.errors import DataError, one_line
from overnight.paths import shown

if TYPE_CHECKING:
    import polars as pl


ROWS = "\0 rows"  # no column of a file is called so
Type = Annotated[str, Field(pattern=_csv.TYPE)]


class Table(Values):
    """One file; what is left out is taken from the options of the set."""

    file: str
    types: dict[str, Type] = Field(
        {}, description="int, float, text, bool, date, datetime, or `datetime %d.%m.%Y %H:%M`; by column"
    )
    nulls: list[str] | None = None
    delimiter: Delimiter | None = None


class Options(Values):
    """Files by the name of their table, and how to read them."""

    tables: dict[str, str | Table] = Field(min_length=1)
    nulls: list[str] = Field(["", "NA", "null"], description="what stands for a missing value")
    delimiter: Delimiter = ","
    encoding: str = "utf-8"
    types: dict[str, Type] = Field(
        {}, description="by column, for every table that has it; the others' are inferred"
    )

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            "".encode(name)  # refuses codecs that are not of text, such as base64
            return codecs.lookup(name).name
        except LookupError:
            raise ValueError(
                "is no encoding that Python knows; utf-8, latin-1, cp1252 and utf-16 are common"
            ) from None


def read(folder: Path, options: Options, _kind: str) -> Tables:
    """Lazy frames. Times with a zone are in UTC.

    A column without a type gets that of its first 10,000 rows, and must keep it.
    """
    cleaned = CleaningCounts()
    frames: dict[str, pl.LazyFrame] = {}
    for name, given in options.tables.items():
        table = Table(file=given) if isinstance(given, str) else given
        frames[name] = _scan(present(folder, table.file), table, options, cleaned)
    return Tables(frames, cleaned)


def _scan(file: Path, table: Table, options: Options, cleaned: CleaningCounts) -> "pl.LazyFrame":
    import polars as pl

    path = recoded(expect(plain(file), "csv", file), options.encoding)
    nulls = options.nulls if table.nulls is None else table.nulls
    how: dict[str, Any] = {"separator": table.delimiter or options.delimiter, "null_values": nulls}
    try:
        text = pl.scan_csv(path, infer_schema=False, **how)
        names = text.collect_schema().names()
        if len(names) > 1:
            short = _csv.short_rows(path, file, how["separator"], len(names))
            cleaned["row with too few fields: the rest counts as missing"] += short
        require(file, table.types, names)
        types = {**options.types, **table.types}
        columns = _columns(text, [_csv.Column.of(text, n, types.get(n), file) for n in names], nulls, cleaned)
        native = {c.name: c.dtype for c in columns if c.is_native}
        typed = pl.scan_csv(path, infer_schema=False, schema_overrides=native, **how)
        frame = typed.with_columns(c.value() for c in columns if not c.is_native)
        return _csv.without_blank_rows(frame, text, columns, cleaned)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{shown(file)}: expected a csv file: {one_line(error)}; mend it, or the entry's delimiter or "
            "encoding"
        ) from None


def _columns(
    text: "pl.LazyFrame", columns: list[_csv.Column], nulls: Sequence[str], cleaned: CleaningCounts
) -> list[_csv.Column]:
    """One pass over every value; only columns in which something is wrong are looked at again."""
    import polars as pl

    wrong = text.select(pl.len().alias(ROWS), *(c.wrong() for c in columns))
    found = wrong.collect(engine="streaming").row(0, named=True)
    cleaned["column of a name that is taken renamed"] += sum("_duplicated_" in c.name for c in columns)
    cleaned["table without rows kept"] += not found[ROWS]
    return [c.repaired(text, nulls, cleaned) if found[c.name] else c for c in columns]
