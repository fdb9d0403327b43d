"""Tables as csv files, plain or packed, scanned lazily."""

import codecs
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator, model_validator

from overnight.config import Values
from overnight.data.content import CleaningCounts, Tables
from overnight.data.readers._common import Delimiter, Files, matching, require
from overnight.errors import DataError

if TYPE_CHECKING:
    from overnight.data.readers._csv import Layout
    from overnight.data.readers._tables import Table as Read


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone; Europe/Berlin and America/New_York are some") from None
    return name


def _quote(quote: str) -> str:
    if len(quote.encode()) > 1 or quote in "\r\n":
        raise ValueError("must be one ASCII character, or '' where quotes are part of the text")
    return quote


Type = Annotated[str, Field(pattern=r"^(int|float|text|bool|(date|datetime|time)( \S.*)?)$")]
Zone = Annotated[str, AfterValidator(_zone)]


class Format(Values):
    """How a table is written."""

    # by column: int, float, text, bool, date, datetime, or `datetime %d.%m.%Y %H:%M`; others are inferred
    types: dict[str, Type] = {}
    nulls: list[str] = ["", "NA", "null"]  # what stands for a missing value
    delimiter: Delimiter = ","
    encoding: str = "utf-8"
    quote: Annotated[str, AfterValidator(_quote)] = Field('"', max_length=1)
    comment: str = Field("", pattern=r"^[!-~]*$")  # how a line begins that is no row
    skip_rows: int = Field(0, ge=0)  # lines before the header
    header: bool | None = None  # None: there is one, unless it holds numbers alone, which is an error
    columns: list[str] = []  # names where there is no header
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ",", ".", " ", "'"] = ""
    timezone: Zone | dict[str, Zone] = {}  # of times without one, by column or of all; they become UTC
    trim: bool = True  # remove blanks around names and values outside quotes
    bad_rows: Literal["error", "quarantine"] = "error"
    strict: bool = False  # refuse what would be mended
    union: Literal["same", "fill"] = "same"  # whether several files must have the same columns

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

    @model_validator(mode="after")
    def _fit(self) -> "Format":
        if self.columns and self.header is not False:
            raise ValueError("columns names the columns of files without a header; set header: false")
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}; give one of them")
        if self.strict and self.bad_rows == "quarantine":
            raise ValueError(
                "strict refuses bad rows, and bad_rows: quarantine sets them aside; give one of them"
            )
        return self


class Table(Format):
    """What is left out is taken from the options of the set."""

    file: Files = Field(min_length=1)  # one, several, or a name with *


class Options(Format):
    tables: dict[str, str | Table] = Field(min_length=1)


def read(folder: Path, options: Options, _kind: str) -> Tables:
    """Times with a zone are in UTC. Values of given types are checked when they are read."""
    cleaned = CleaningCounts()
    tables = {name: table(folder, options, name, cleaned) for name in options.tables}

    def misfit() -> DataError | None:
        problems = (found.misfit() for found in tables.values())
        return next(filter(None, problems), None)

    return Tables(
        {name: found.frame() for name, found in tables.items()},
        cleaned,
        rows={name: found.rows for name, found in tables.items()},
        bad_rows={name: found.bad_rows for name, found in tables.items() if found.bad_rows.height},
        misfit=misfit,
    )


def types(folder: Path, options: Options) -> dict[str, dict[str, str]]:
    """{table: {column: type}} of every column, given or inferred, as an entry would state them."""
    cleaned = CleaningCounts()
    return {
        name: {c.name: f"{c.kind} {c.form}".rstrip() for c in table(folder, options, name, cleaned).columns}
        for name in options.tables
    }


def table(folder: Path, options: Options, name: str, cleaned: CleaningCounts) -> "Read":
    """One table of the set, its columns settled."""
    from overnight.data.readers._csv import opened
    from overnight.data.readers._tables import Table as Read
    from overnight.data.readers._tables import matched

    given = options.tables[name]
    own = Table(file=[given]) if isinstance(given, str) else given
    layout, union = _layout(options, own)
    files = [file for pattern in own.file for file in matching(folder, pattern)]
    sources = matched([opened(file, layout, cleaned) for file in files], union)
    read = Read(sources, layout, cleaned)
    require(files[0], [*own.types, *(layout.zones if isinstance(layout.zones, dict) else {})], read.names)
    read.settle()
    return read


def _layout(options: Options, own: Table) -> "tuple[Layout, str]":
    from overnight.data.readers._csv import Layout

    stated = {key: value for given in (options, own) for key, value in _stated(given).items()}
    values = Format.model_validate(stated | {"types": {**options.types, **own.types}}).model_dump()
    union = values.pop("union")
    quarantine = values.pop("bad_rows") == "quarantine"
    zones = values.pop("timezone")
    return Layout(**values, quarantine=quarantine, zones=zones, stated=frozenset(stated)), union


def _stated(given: Format) -> dict[str, Any]:
    return {key: getattr(given, key) for key in Format.model_fields if key in given.model_fields_set}
