"""Tables as csv files, plain or packed, scanned lazily."""

import codecs
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from overnight.config import Values
from overnight.data.content import CleaningCounts, Tables
from overnight.data.readers._common import Delimiter, Files, all_matching, require
from overnight.data.readers.parquet import as_table
from overnight.errors import DataError, did_you_mean, file_error, one_line

if TYPE_CHECKING:
    import polars as pl

    from overnight.data.readers._csv import Layout
    from overnight.data.readers._tables import Table as Read
    from overnight.data.readers._typed import Typed

DATABASES = (".duckdb", ".db")
TYPED = (".parquet", ".pq", *DATABASES)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone; Europe/Berlin and America/New_York are some") from None
    return name


def _quote(quote: str) -> str:
    if len(quote.encode()) > 1 or quote in ("\r", "\n"):
        raise ValueError("must be one ASCII character, or '' where quotes are part of the text")
    return quote


def _of_all(given: Any) -> Any:
    return {"": given} if isinstance(given, str) else given


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
    # of times without one, by column ("": of every other); they become UTC
    timezone: Annotated[dict[str, Zone], BeforeValidator(_of_all)] = {}
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
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names a column twice; give each a name of its own")
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}; give one of them")
        if self.strict and self.bad_rows == "quarantine":
            raise ValueError(
                "strict refuses bad rows, and bad_rows: quarantine sets them aside; give one of them"
            )
        return self


class Table(Format):
    """What is left out is taken from the options of the set."""

    file: Files = Field(min_length=1)  # one, several, or a name with *; also .parquet, .duckdb
    table: str = ""  # of a database; the name here when left out

    @property
    def ending(self) -> str:
        return PurePath(self.file[0]).suffix.lower()

    @model_validator(mode="after")
    def _of_its_format(self) -> "Table":
        if len({PurePath(name).suffix.lower() in TYPED for name in self.file}) > 1:
            raise ValueError("files of one table must be of one format; give each format a table of its own")
        other = self.model_fields_set - {"file", "table", "union"}
        if self.ending in TYPED and other:
            raise ValueError(f"{', '.join(sorted(other))}: for csv alone; {self.file[0]} holds its own types")
        if self.table and self.ending not in DATABASES:
            raise ValueError(f"table names a table of a database, but {self.file[0]} is none")
        return self


class Options(Format):
    tables: dict[str, Annotated[Table, BeforeValidator(as_table)]] = Field(min_length=1)


def read(folder: Path, options: Options, _kind: str) -> Tables:
    """Times with a zone are in UTC. Values of given types are checked when they are read."""
    cleaned = CleaningCounts()
    tables = {name: table(folder, options, name, cleaned) for name in options.tables}
    _require_columns(options, [name for found in tables.values() for name in found.names])

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


def _require_columns(options: Options, there: Collection[str]) -> None:
    """Raises DataError for a column that the set's options name and no table has."""
    for key, given in (("types", options.types), ("timezone", options.timezone)):
        unknown = [name for name in given if name and name not in there]
        if unknown:
            hint = did_you_mean(unknown[0], there)
            raise DataError(f"the entry's {key} names the column {unknown[0]!r}, which no table has{hint}")


def types(folder: Path, options: Options) -> dict[str, dict[str, str]]:
    """{table: {column: type}} of every column, given or inferred, as an entry would state them."""
    cleaned = CleaningCounts()
    return {name: table(folder, options, name, cleaned).types() for name in options.tables}


def schemas(folder: Path, options: Options) -> "dict[str, tuple[pl.Schema, bool]]":
    """{table: (its columns by its first rows, whether all types are given)}; empty with a database."""
    if any(own.ending in DATABASES for own in options.tables.values()):
        return {}
    return {name: _schema(folder, options, own) for name, own in options.tables.items()}


def _schema(folder: Path, options: Options, own: Table) -> "tuple[pl.Schema, bool]":
    import polars as pl

    from overnight.data.readers import _typed
    from overnight.data.readers._csv import first_rows
    from overnight.data.readers._inference import Inference
    from overnight.data.readers._lines import Facts

    files = all_matching(folder, own.file)
    if own.ending in TYPED:
        return _typed.parquet(files, own.union, CleaningCounts()).lazy.collect_schema(), True
    layout, union = _layout(options, own)
    frame = first_rows(files[0], layout)
    facts = Facts(frame.height, signs=True, exponents=True, far_exponents=True, many_digits=True, points=True)
    found = Inference(frame.lazy(), facts).columns([layout.column(name) for name in frame.columns])
    certain = union == "same" and all(column.given for column in found)
    return pl.Schema({column.name: column.dtype for column in found}), certain


def table(folder: Path, options: Options, name: str, cleaned: CleaningCounts) -> "Read | Typed":
    """One table of the set, its columns settled."""
    from overnight.data.readers import _typed

    own = options.tables[name]
    files = all_matching(folder, own.file)
    if own.ending in DATABASES:
        return _typed.database(files[0], own.table or name, cleaned)
    if own.ending in TYPED:
        return _typed.parquet(files, own.union, cleaned)
    return _of_csv(files, options, own, cleaned)


def _of_csv(files: Sequence[Path], options: Options, own: Table, cleaned: CleaningCounts) -> "Read":
    import polars as pl

    from overnight.data.readers._csv import opened
    from overnight.data.readers._tables import Table as Read
    from overnight.data.readers._tables import matched

    layout, union = _layout(options, own)
    sources = matched([opened(file, layout, cleaned) for file in files], union)
    read = Read(sources, layout, cleaned)
    zones = own.timezone if "timezone" in own.model_fields_set else {}
    require(files[0], [*own.types, *filter(None, zones)], read.names)
    try:
        read.settle()
    except pl.exceptions.PolarsError as error:
        problem = read.misfit()
        if problem:
            raise problem from None
        raise file_error(
            files[0], f"cannot be read as csv: {one_line(error)}; mend it, or its entry"
        ) from None
    return read


def _layout(options: Options, own: Table) -> "tuple[Layout, str]":
    from overnight.data.readers._csv import Layout

    stated = {key: value for given in (options, own) for key, value in _stated(given).items()}
    values = Format.model_validate(stated | {"types": {**options.types, **own.types}}).model_dump()
    union = values.pop("union")
    quarantine = values.pop("bad_rows") == "quarantine"
    zones = values.pop("timezone")
    if values["trim"]:
        values["nulls"] = [null.strip() for null in values["nulls"]]
    return Layout(**values, quarantine=quarantine, zones=zones, stated=frozenset(stated)), union


def _stated(given: Format) -> dict[str, Any]:
    return {key: getattr(given, key) for key in Format.model_fields if key in given.model_fields_set}
