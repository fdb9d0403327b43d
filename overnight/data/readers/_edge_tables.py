"""Tables of a graph: csv in any dialect, every value text until it is checked."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from overnight.config import Values
from overnight.data.archives import plain, recoded
from overnight.data.readers._common import expect, one_byte, present, require
from overnight.errors import file_error, one_line

if TYPE_CHECKING:
    import polars as pl

NO_IDS = ("NaN", "nan", "<NA>", "null", "NULL")  # how programs write that there is none
NO_NUMBERS = (*NO_IDS, "NA", "N/A", "None")
FORMATS = {"%%matrixmarket": "MatrixMarket", "*vertices": "Pajek", "graph [": "GML", "<?xml": "XML"}
OTHERS = {"\t": r"\t", ";": ";", ",": ",", "|": "|", " ": "whitespace"}  # delimiters, as an entry says them


def _text(column: object) -> object:
    return str(column) if isinstance(column, int) and not isinstance(column, bool) else column


def _blanks(delimiter: str) -> str:
    return delimiter if delimiter == "whitespace" else one_byte(delimiter)


Column = Annotated[str, BeforeValidator(_text)]  # its name; its number, counted from 1, without a header


class Csv(Values):
    """header: whether the first line names the columns, which are called 1, 2, 3 ... without one."""

    COLUMNS: ClassVar[tuple[str, ...]]
    file: str
    delimiter: Annotated[str, AfterValidator(_blanks)] = (
        ","  # or whitespace: blanks and tabs, any number of them
    )
    header: bool = True
    comment: str = Field("", max_length=2)  # what a line starts with that is none, such as # or %
    encoding: str = "utf-8"

    @property
    def keys(self) -> list[str]:
        return [getattr(self, name) for name in self.COLUMNS]

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"{' and '.join(self.COLUMNS)} must be two columns")
        odd = [name for name in self.keys if not self.header and not name.isdecimal()]
        if odd:
            raise ValueError(f"{odd[0]!r}: without a header columns are called by their number, from 1")
        return self


def table_of(folder: Path, options: Csv, columns: Sequence[str] = ()) -> "pl.DataFrame":
    """Those columns, or all, as text without blanks around; an empty field, and an id like nan, is null.

    Raises DataError with the line of a ragged row.
    """
    import polars as pl

    path = present(folder, options.file)
    data = _data(path, options)
    try:
        frame = pl.read_csv(
            data,
            infer_schema=False,
            separator="\t" if options.delimiter == "whitespace" else options.delimiter,
            comment_prefix=options.comment or None,
            has_header=options.header,
            encoding="utf8",
        )
    except pl.exceptions.PolarsError as error:
        raise file_error(path, _why(data, options, one_line(error))) from None
    if not options.header:
        frame.columns = [str(i) for i in range(1, frame.width + 1)]
    _check_dialect(path, options, frame)
    require(path, columns or options.keys, frame.columns)
    twice = [name for name in columns or options.keys if f"{name}_duplicated_0" in frame.columns]
    if twice:
        raise file_error(path, f"two columns are called {twice[0]!r}; rename one")
    stripped = frame.select(pl.col(c).str.strip_chars() for c in columns or frame.columns)
    ids = _ids(options)
    found = stripped.with_columns(pl.when(pl.all() != "").then(pl.all()))
    return found.with_columns(pl.when(~pl.col(ids).is_in(NO_IDS)).then(pl.col(ids)))


def numbers(table: "pl.DataFrame", columns: Sequence[str], path: Path) -> "pl.DataFrame":
    """Float64; a missing one is null, as is nan. Raises DataError for text, with its row."""
    import polars as pl

    given = table.select(pl.when(~pl.col(columns).is_in(NO_NUMBERS)).then(pl.col(columns)))
    found = given.select(pl.all().cast(pl.Float64, strict=False))
    for name in columns:
        odd = given[name].is_not_null() & found[name].is_null()
        if odd.any():
            row = odd.arg_max() or 0
            raise file_error(
                path, f"row {row + 1}: {given[name][row]!r} in column {name!r} is no number; mend it"
            )
    return found.fill_nan(None)


def _data(path: Path, options: Csv) -> bytes:
    """In utf-8; runs of blanks as one tab where they part the columns."""
    try:
        data = recoded(expect(plain(path), "csv", path), options.encoding).read_bytes()
    except LookupError:
        raise file_error(path, f"there is no encoding {options.encoding!r}; correct it") from None
    if b"\0" in data:
        raise file_error(path, "it holds NUL bytes: it is damaged, or in another encoding; set its encoding")
    start = data[:100].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    other = next((form for mark, form in FORMATS.items() if start.startswith(mark.encode())), None)
    if other is not None:
        raise file_error(path, f"it is a graph in the format {other}; write its edges as csv")
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")  # the line ends of old Macs
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        line = data[: wrong.start].count(b"\n") + 1
        raise file_error(path, f"line {line} is not in utf-8; set its encoding (such as latin-1)") from None
    if options.delimiter == "whitespace":
        data = re.sub(rb"[ \t]+", b"\t", re.sub(rb"(?m)^[ \t]+|[ \t]+$", b"", data.replace(b"\r\n", b"\n")))
    return data


def _why(data: bytes, options: Csv, error: str) -> str:
    """What is wrong with the file, with the line where it is seen."""
    lines = data.decode("utf-8-sig").splitlines()
    rows = [
        (number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not (options.comment and line.startswith(options.comment))
    ]
    delimiter = "\t" if options.delimiter == "whitespace" else options.delimiter
    widths = [(n, len(next(csv.reader(io.StringIO(line), delimiter=delimiter)))) for n, line in rows]
    wrong_rows = [(number, width) for number, width in widths if width != widths[0][1]]
    if wrong_rows:
        number, width = wrong_rows[0]
        comment = "; if it is a comment, set `comment`" if number > 1 and widths[0][1] == 1 else ""
        said = f"line {number} has {width} fields, line {widths[0][0]} has {widths[0][1]}; mend it"
        return f"{said}, or correct the delimiter{comment}"
    odd = next((number for number, line in rows if line.count('"') % 2), 0)
    return f"line {odd} has a quote that does not close" if odd else f"expected a csv file: {error}"


def _check_first(path: Path, options: Csv, frame: "pl.DataFrame") -> None:
    """Raises DataError when the ids of the first row are names, and all others numbers."""
    import polars as pl

    ids = [name for name in _ids(options) if name in frame.columns]
    given = frame.select(pl.col(ids).str.strip_chars().cast(pl.Float64, strict=False).is_not_null())
    if ids and frame.height > 2 and not any(given.row(0)) and all(column.all() for column in given[1:]):
        names = ", ".join(map(repr, frame.select(ids).row(0)))
        raise file_error(path, f"its first row names the columns ({names}); remove `header: false`")


def _ids(options: Csv) -> list[str]:
    return [name for name in options.keys if name != getattr(options, "label", None)]


def _check_dialect(path: Path, options: Csv, frame: "pl.DataFrame") -> None:
    """Raises DataError when another option reads the first line better."""
    row = list(frame.columns)
    if not options.header:
        row = list(frame.row(0)) if frame.height else [""]
        _check_first(path, options, frame)
    first = str(row[0])
    if not options.comment and first.startswith(("#", "%")):
        raise file_error(
            path, f"it starts with {first[:40]!r}; if that is a comment, set `comment: '{first[0]}'`"
        )
    if frame.width > 1:
        return
    other = next((said for mark, said in OTHERS.items() if mark in first and mark != options.delimiter), None)
    if other is not None:
        raise file_error(path, f'it has one column, {first[:40]!r}; set `delimiter: "{other}"`')
