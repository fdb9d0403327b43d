"""Tables as csv files, plain or inside a zip or gz, scanned lazily."""

import codecs
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from overnight.config import Values
from overnight.data.archives import plain, recoded
from overnight.data.content import CleaningCounts, Tables
from overnight.data.readers._common import Delimiter, expect, present, require

if TYPE_CHECKING:
    import polars as pl


Type = Annotated[str, Field(pattern=r"^(int|float|text|bool|(date|datetime|time)( \S.*)?)$")]


class Table(Values):
    """What is left out is taken from the options of the set."""

    file: str
    # int, float, text, bool, date, datetime, or `datetime %d.%m.%Y %H:%M`; by column
    types: dict[str, Type] = {}
    nulls: list[str] | None = None
    delimiter: Delimiter | None = None


class Options(Values):
    tables: dict[str, str | Table] = Field(min_length=1)
    nulls: list[str] = ["", "NA", "null"]  # what stands for a missing value
    delimiter: Delimiter = ","
    encoding: str = "utf-8"
    types: dict[str, Type] = {}  # by column, for every table that has it; the others' are inferred

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
    """Times with a zone are in UTC.

    A column without a type gets that of its first 10,000 rows, and must keep it.
    """
    from overnight.data.readers import _csv

    cleaned = CleaningCounts()
    frames: dict[str, pl.LazyFrame] = {}
    for name, given in options.tables.items():
        table = Table(file=given) if isinstance(given, str) else given
        file = present(folder, table.file)
        path = recoded(expect(plain(file), "csv", file), options.encoding)
        separator = table.delimiter or options.delimiter
        nulls = options.nulls if table.nulls is None else table.nulls
        frames[name] = _csv.scan(path, file, separator, nulls, {**options.types, **table.types}, cleaned)
        require(file, table.types, frames[name].collect_schema().names())
    return Tables(frames, cleaned)
