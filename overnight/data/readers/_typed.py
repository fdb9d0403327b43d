"""Tables whose files hold types: Parquet, and tables of a DuckDB database."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import polars as pl

from overnight.data.archives import made_once
from overnight.data.content import CleaningCounts
from overnight.data.readers._common import expect
from overnight.errors import DataError, did_you_mean, file_error, one_line

if TYPE_CHECKING:
    import duckdb

EXACT_DIGITS = 15  # of a decimal number that a float gives back
KINDS = {
    pl.Int64: "int",
    pl.Float64: "float",
    pl.String: "text",
    pl.Boolean: "bool",
    pl.Date: "date",
    pl.Time: "time",
}
HUGE = ("HUGEINT", "UHUGEINT", "UBIGINT")


@dataclass(frozen=True)
class Typed:
    """A table of known types. Unlike a csv file it has no values that could be of another."""

    lazy: pl.LazyFrame
    rows: int
    names: Sequence[str]
    bad_rows: pl.DataFrame = field(default_factory=pl.DataFrame)

    def frame(self) -> pl.LazyFrame:
        return self.lazy

    def misfit(self) -> DataError | None:
        return None

    def types(self) -> dict[str, str]:
        schema = self.lazy.collect_schema()
        return {name: KINDS.get(dtype.base_type(), "datetime") for name, dtype in schema.items()}


def parquet(files: Sequence[Path], union: str, cleaned: CleaningCounts) -> Typed:
    """Files are matched by the names of their columns. Raises DataError."""
    frames = _with_types([_scanned(file, expect(file, "parquet")) for file in files], files, cleaned)
    every = dict(frames[0].collect_schema())
    for file, frame in zip(files[1:], frames[1:], strict=True):
        schema = dict(frame.collect_schema())
        _require_same(file, files[0], schema, every, union)
        every |= schema
    aligned = [_filled(frame, every) for frame in frames]
    whole = aligned[0] if len(aligned) == 1 else pl.concat(aligned, how="vertical")
    return _counted(files[0], whole)


def _with_types(
    scans: Sequence[pl.LazyFrame], files: Sequence[Path], cleaned: CleaningCounts
) -> list[pl.LazyFrame]:
    """Settled; a column without a value in one file, and so without a type, has that of the others."""
    schemas = [scan.collect_schema() for scan in scans]
    typed = {name: dtype for have in schemas for name, dtype in have.items() if dtype != pl.Null}
    frames = list[pl.LazyFrame]()
    for file, scan, have in zip(files, scans, schemas, strict=True):
        empty = [name for name, dtype in have.items() if dtype == pl.Null and name in typed]
        for name in empty:
            cleaned.at(f"column {name!r} without a value in one file of its table kept", file.name)
        frames.append(_settled(scan.with_columns(pl.lit(None, typed[n]).alias(n) for n in empty), cleaned))
    return frames


def database(file: Path, table: str, cleaned: CleaningCounts) -> Typed:
    """A table or view, copied to Parquet once. Raises DataError."""
    expect(file, "DuckDB")
    copy = made_once(file, f"{file.name}-{table}.parquet", lambda sink: _exported(file, table, sink))
    return _counted(file, _settled(_scanned(file, copy), cleaned))


def _counted(file: Path, frame: pl.LazyFrame) -> Typed:
    if not frame.collect_schema():
        raise file_error(file, "has no column of a type that tables have (numbers, text, times)")
    try:
        rows = int(frame.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise file_error(file, f"is damaged, or no Parquet file: {one_line(error)}; get it anew") from None
    if rows == 0:
        raise file_error(file, "has columns, but no row; get the whole file")
    return Typed(frame, rows, frame.collect_schema().names())


def _scanned(file: Path, path: Path) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path)
        frame.collect_schema()
    except pl.exceptions.PanicException as error:
        raise file_error(
            file, f"has a column of a type that Polars does not read: {one_line(error)}; leave it out"
        ) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise file_error(file, f"is damaged, or no Parquet file: {one_line(error)}; get it anew") from None
    return frame


def _settled(frame: pl.LazyFrame, cleaned: CleaningCounts) -> pl.LazyFrame:
    """The few types that tables have; what has no place among them is left out and counted."""
    kept = list[pl.Expr]()
    for name, dtype in frame.collect_schema().items():
        value = None if name.startswith("__index_level_") else _plain(pl.col(name), dtype)
        if value is None:
            cleaned[f"column {name!r} of type {dtype} left out"] += 1
            continue
        if dtype.is_decimal() and not _fits_float(dtype):
            cleaned[f"column {name!r} stays text: a number cannot hold {dtype} exactly"] += 1
        kept.append(value)
    return frame.select(kept)


def _fits_float(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.Decimal) and dtype.precision <= EXACT_DIGITS


def _plain(value: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    """None where tables have no such type. A whole number beyond 64 bits fails the query."""
    if dtype.is_integer():
        return value.cast(pl.Int64)
    if dtype.is_float():
        return value.cast(pl.Float64)
    if dtype.is_decimal():
        return value.cast(pl.Float64 if _fits_float(dtype) else pl.String)
    if dtype in (pl.Categorical, pl.Enum):
        return value.cast(pl.String)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return value.dt.convert_time_zone("UTC")
    known = dtype in (pl.String, pl.Boolean, pl.Date, pl.Time) or isinstance(dtype, pl.Datetime)
    return value if known else None


def _require_same(
    file: Path, first: Path, schema: Mapping[str, pl.DataType], every: Mapping[str, pl.DataType], union: str
) -> None:
    lacks = [name for name in every if name not in schema]
    more = [name for name in schema if name not in every]
    if union == "same" and (lacks or more):
        said = [f"lacks {', '.join(lacks)}"] if lacks else []
        said += [f"has {', '.join(more)} besides"] if more else []
        raise file_error(file, f"{' and '.join(said)}, unlike {first.name}; set the table's union: fill")
    for name in schema:
        if name in every and schema[name] != every[name]:
            raise file_error(
                file,
                f"column {name!r} is {schema[name]}, but {every[name]} in {first.name}; write them alike",
            )


def _filled(frame: pl.LazyFrame, every: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    there = frame.collect_schema().names()
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in every.items() if name not in there]
    return frame.with_columns(missing).select(list(every))


@contextmanager
def _opened(file: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """Raises DataError for what DuckDB cannot do with it."""
    expect(file, "DuckDB")
    try:
        import duckdb
    except ImportError:
        raise file_error(file, "reading it needs the package duckdb; `pip install duckdb`") from None
    try:
        with duckdb.connect(str(file), read_only=True) as open_:
            yield open_
    except duckdb.Error as error:
        raise file_error(
            file, f"cannot be read by DuckDB: {one_line(error)}; close what writes it, or get it anew"
        ) from None


def _exported(file: Path, table: str, sink: IO[bytes]) -> None:
    """Write the table as Parquet; whole numbers of over 64 bits as text, since Parquet has none."""
    with _opened(file) as open_, tempfile.TemporaryDirectory() as place:
        found = _found(open_, file, table)
        columns = _columns(open_, file, found)
        copy = Path(place) / "table.parquet"
        source = open_.sql(f"SELECT {columns} FROM {found}")  # noqa: S608 - the names are quoted
        source.write_parquet(str(copy))
        with copy.open("rb") as made:
            shutil.copyfileobj(made, sink)


def tables_of(file: Path) -> list[str]:
    """The names of a database's tables and views, of another schema than main as SCHEMA.TABLE."""
    with _opened(file) as open_:
        return sorted(_there(open_))


def _there(open_: "duckdb.DuckDBPyConnection") -> dict[str, tuple[str, str]]:
    rows = open_.sql("SELECT table_schema, table_name FROM information_schema.tables").fetchall()
    return {name if schema == "main" else f"{schema}.{name}": (schema, name) for schema, name in rows}


def _found(open_: "duckdb.DuckDBPyConnection", file: Path, table: str) -> str:
    """The table or view as a query names it."""
    there = _there(open_)
    if table not in there:
        raise file_error(
            file,
            f"has no table {table!r}{did_you_mean(table, list(there))} (there are: "
            f"{', '.join(sorted(there))}); name it by `table`",
        )
    return ".".join(map(_quoted, there[table]))


def _columns(open_: "duckdb.DuckDBPyConnection", file: Path, found: str) -> str:
    """What to select. Raises DataError for days and times without an end."""
    rows = [(str(name), str(kind)) for name, kind, *_ in open_.sql(f"DESCRIBE {found}").fetchall()]
    for name, kind in rows:
        if kind == "DATE" or kind.startswith("TIMESTAMP"):
            query = f"SELECT COUNT(*) FROM {found} WHERE isinf({_quoted(name)})"  # noqa: S608 - quoted
            (many,) = open_.sql(query).fetchall()[0]
            if many:
                raise file_error(
                    file,
                    f"column {name!r} is infinite in {many} rows, which no table holds; write NULL there",
                )
    as_text = (*HUGE, "INTERVAL")
    return ", ".join(
        f"CAST({_quoted(name)} AS VARCHAR) AS {_quoted(name)}" if kind in as_text else _quoted(name)
        for name, kind in rows
    )


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
