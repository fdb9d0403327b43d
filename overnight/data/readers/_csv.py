"""One csv file: whether it is what its entry says, its header, and the scan over its rows."""

import codecs
import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import polars as pl

from overnight.data.archives import made_once, plain, recoded
from overnight.data.content import CleaningCounts
from overnight.data.readers._blocks import LONGEST_QUOTED, Dialect, without_marks
from overnight.data.readers._columns import Column
from overnight.data.readers._common import expect
from overnight.data.readers._lines import Facts, Lines
from overnight.errors import DataError, file_error

HEAD = 200  # rows that show how a file is laid out
START = 1 << 16  # bytes that show what a file is
COMMENTS = ("#", "%", "//", "--")
GUESSES = ",;\t|"
REST = "\0rest"  # the column after a separator at the end of every row
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?$")
JSON = re.compile(rb"\s*(\{\s*[\"}]|\[\s*[\[{\"\d\]])")
SHORT = "row with too few fields: the rest counts as missing"
Head = list[tuple[int, int, list[str]]]  # first line, last line, fields of each record


@dataclass(frozen=True)
class Layout:
    """How a table's files are written, as the entry says.

    stated: the options it gives; zones: by column, "" of every other.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    quote: str = '"'
    comment: str = ""
    skip_rows: int = 0
    header: bool | None = None
    columns: Sequence[str] = ()
    nulls: Sequence[str] = ()
    decimal: str = "."
    thousands: str = ""
    trim: bool = True
    quarantine: bool = False
    strict: bool = False
    types: Mapping[str, str] = field(default_factory=dict)
    zones: Mapping[str, str] = field(default_factory=dict)
    stated: frozenset[str] = frozenset()

    @property
    def dialect(self) -> Dialect:
        trim = self.trim and self.delimiter != " "
        return Dialect(
            self.delimiter, self.quote, self.comment, self.skip_rows, self.header is not False, trim
        )

    @property
    def words(self) -> tuple[bytes, ...]:
        """What stands for a missing value although the entry does not say so."""
        return () if "nulls" in self.stated else tuple(null.encode() for null in self.nulls if null)

    def point(self, names: Sequence[str]) -> str:
        """Of decimal numbers; empty where no column of these may hold any."""
        has_some = any(self.types.get(name, "float") == "float" for name in names)
        return self.decimal if has_some else ""

    def column(self, name: str) -> Column:
        """Its kind is empty where the entry gives no type."""
        kind, _, form = self.types.get(name, "").partition(" ")
        zone = self.zones.get(name, self.zones.get("", ""))
        return Column(name, kind, form, bool(kind), zone, self.decimal, self.thousands)


@dataclass(frozen=True)
class Source:
    """lines: of the file as it is; clean: what is scanned, without the lines `before`."""

    file: Path
    names: tuple[str, ...]
    lines: Lines
    layout: Layout
    clean: Path
    before: int
    has_header: bool  # of what is scanned: its fields are the columns, whatever the first row has
    has_rest: bool
    even: bool  # whether `clean` lacks the rows of another number of fields

    @property
    def facts(self) -> Facts:
        return self.lines.facts

    def scan(self, types: Mapping[str, Any]) -> pl.LazyFrame:
        """The columns that `types` has no type for are text."""
        layout = self.layout
        width = [*self.names, REST] if self.has_rest else self.names
        at_end = self.clean == self.lines.path and self.facts.blank > 0
        frame = pl.scan_csv(
            self.clean,
            has_header=self.has_header,
            skip_lines=self.before,
            separator=layout.delimiter,
            quote_char=layout.quote or None,
            null_values=list(dict.fromkeys(["", *layout.nulls])),
            schema={name: types.get(name, pl.String) for name in width},
            n_rows=self.facts.rows if at_end else None,
        )
        return frame.drop(REST) if self.has_rest else frame

    def error(self, row: int, problem: str) -> DataError:
        """row: from 0, of those that are scanned."""
        line = self.lines.line_of([row], self.even)[0]
        return file_error(self.file, f"line {line}: {problem}")


def opened(file: Path, layout: Layout, cleaned: CleaningCounts) -> Source:
    """Raises DataError for a file that is not what its entry says, and counts what is mended."""
    counts = CleaningCounts()
    path = _text(file, layout, counts)
    head = list(_head(path, file, layout.dialect))
    if not head:
        raise file_error(file, "holds no row: blank lines and comments alone; get the right file")
    _require_delimiter(path, file, layout, head, counts)
    names, columns, may_end = _names(file, layout, head, counts)
    thorough = may_end or layout.strict or layout.quarantine
    lines = Lines(path, file, layout.dialect, columns, thorough, layout.words, layout.point(names))
    facts = lines.counted()
    has_rest = may_end and facts.full == 0
    if has_rest:
        names = names[: columns - 1]
        counts["column without name and values left out"] += 1
    even = layout.quarantine and facts.short + facts.long > 0
    _require_rows(file, lines, layout, len(names))
    _count(facts, counts, even)
    if layout.strict and +counts:
        raise _strict(file, facts, counts)
    cleaned.update(counts)
    clean, before, has_header = _clean(lines, head, even)
    if even:
        facts.rows -= facts.short + facts.long
    return Source(file, tuple(names), lines, layout, clean, before, has_header, has_rest, even)


def first_rows(file: Path, layout: Layout) -> pl.DataFrame:
    """The head of the file as text, missing values null. Raises DataError."""
    path = _text(file, layout, CleaningCounts())
    head = list(_head(path, file, layout.dialect))
    if not head:
        raise file_error(file, "holds no row: blank lines and comments alone; get the right file")
    names, _, may_end = _names(file, layout, head, CleaningCounts())
    names = names[:-1] if may_end and not names[-1] else names
    nulls = {"", *layout.nulls}
    rows = [fields for _, _, fields in head[1 if layout.dialect.header else 0 :]]
    columns = {
        name: [fields[i] if i < len(fields) else "" for fields in rows] for i, name in enumerate(names)
    }
    return pl.DataFrame(
        {name: [None if text in nulls else text for text in texts] for name, texts in columns.items()},
        schema=dict.fromkeys(names, pl.String),
    )


# ------------------------------------------------------------------------------------------------ bytes


def _text(file: Path, layout: Layout, counts: CleaningCounts) -> Path:
    """The file unpacked, in utf-8, with LF or CRLF. Raises DataError when it is of another format."""
    path = expect(plain(file), "csv", file)
    with path.open("rb") as stream:
        start = stream.read(START)
    if layout.encoding == "utf-8" and start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise file_error(file, "starts like text in utf-16; set the entry's encoding: utf-16")
    if start.startswith(codecs.BOM_UTF8) and not layout.encoding.startswith("utf"):
        raise file_error(
            file, f"starts like text in utf-8, not {layout.encoding}; set the entry's encoding: utf-8"
        )
    if JSON.match(start) or start.lstrip().startswith(b"<?xml"):
        found = "XML" if start.lstrip().startswith(b"<") else "JSON"
        raise file_error(file, f"expected csv, found {found} text; get the right file, or convert it")
    path = recoded(path, layout.encoding)
    with path.open("rb") as stream:
        start = stream.read(START)
    if b"\r" in start and b"\n" not in start:
        counts["file with CR alone at the end of lines read line by line"] += 1
        return made_once(path, f"{path.name}-lines", lambda sink: _replaced(path, sink, b"\r", b"\n"))
    if b"\n\r" in start and b"\r\n" not in start:
        counts["file with LF CR at the end of lines read line by line"] += 1
        return made_once(path, f"{path.name}-lines", lambda sink: _replaced(path, sink, b"\r", b""))
    return path


def _replaced(path: Path, sink: IO[bytes], old: bytes, new: bytes) -> None:
    with path.open("rb") as source:
        while piece := source.read(1 << 20):
            sink.write(piece.replace(old, new))


def _head(path: Path, file: Path, dialect: Dialect) -> Iterator[tuple[int, int, list[str]]]:
    """First records, without blank lines and comments."""
    block, _ = without_marks(next(dialect.blocks(path), b""))
    line = dialect.skip + 1
    reader = csv.reader(
        io.StringIO(block.decode(errors="replace"), newline=""),
        delimiter=dialect.separator,
        quotechar=dialect.quote or None,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
        skipinitialspace=dialect.trim,
    )
    ended, count = line - 1, 0
    csv.field_size_limit(LONGEST_QUOTED)
    try:
        for fields in reader:
            first, ended = ended + 1, line - 1 + reader.line_num
            comment = bool(dialect.comment) and fields[:1] != [] and fields[0].startswith(dialect.comment)
            if comment or not any(text.strip() for text in fields):
                continue
            yield first, ended, [text.strip() if dialect.trim else text for text in fields]
            count += 1
            if count == HEAD:
                return
    except csv.Error as error:
        raise file_error(
            file, f"line {ended + 1}: {error}; mend it, or the entry's quote or delimiter"
        ) from None


# ------------------------------------------------------------------------------------------------ header


def _require_delimiter(path: Path, file: Path, layout: Layout, head: Head, counts: CleaningCounts) -> None:
    """Raises DataError when another delimiter gives more columns; counts it where ours is stated."""
    own, stated = len(head[0][2]), "delimiter" in layout.stated
    if stated and own > 1:
        return
    for guess in GUESSES.replace(layout.delimiter, ""):
        dialect = Dialect(guess, layout.quote, layout.comment, layout.skip_rows, trim=guess != " ")
        widths = [len(fields) for _, _, fields in _head(path, file, dialect)]
        more = bool(widths) and min(widths) == max(widths) > own
        if more and stated:
            counts[f"file of one column, where the delimiter {guess!r} would give {widths[0]}"] += 1
        elif more:
            raise file_error(
                file,
                f"delimiter {layout.delimiter!r} gives {own} columns, but {guess!r} {widths[0]}; "
                f"set the entry's delimiter: {guess!r}, or state {layout.delimiter!r} there",
            )
    words = [fields[0].split() for _, _, fields in head]
    numbers = all(any(NUMBER.match(word) for word in row) for row in words[1:])
    if (
        own == 1
        and not stated
        and len(words) > 1
        and numbers
        and {1} < {1, *map(len, words)} == {1, len(words[0])}
    ):
        raise file_error(
            file,
            f"has one column, but {len(words[0])} words in each row; if blanks part its columns, set the "
            "entry's delimiter: ' ' (one blank between two columns, else make it one), or state "
            f"{layout.delimiter!r}",
        )


def _names(file: Path, layout: Layout, head: Head, counts: CleaningCounts) -> tuple[list[str], int, bool]:
    """Names, fields of a row, and whether the last field may be what follows a separator at the end."""
    rows = [fields for _, _, fields in head[1 if layout.dialect.header else 0 :]]
    first = head[0][2]
    widths = Counter(map(len, rows))
    usual = widths.most_common(1)[0][0] if widths else len(first)
    may_end = usual > 1 and all(row[-1] == "" for row in rows if len(row) >= usual)
    if not layout.dialect.header:
        names = list(layout.columns) or [f"column_{i}" for i in range(1, usual + 1 - may_end)]
        if len(names) not in (usual, usual - may_end):
            raise file_error(
                file, f"its rows have {usual} fields, but columns names {len(names)}; name them all"
            )
        return names, usual, may_end and len(names) == usual - 1
    _require_header(file, layout, head, usual, may_end)
    if first[-1] == "" and len(first) == usual + 1:  # the header alone ends with a separator
        return _unique(first[:-1], counts), usual, False
    may_end = may_end and len(first) == (usual if first[-1] == "" else usual - 1)
    return _unique(first, counts), usual if may_end else len(first), may_end


def _unique(names: Sequence[str], counts: CleaningCounts) -> list[str]:
    """Names that are taken get `_duplicated_0` and so on."""
    found, taken, seen = list[str](), set[str](), Counter[str]()
    for name in names:
        new = name
        while new in taken:
            new = f"{name}_duplicated_{seen[name]}"
            seen[name] += 1
        found.append(new)
        taken.add(new)
        counts["column of a name that is taken renamed"] += new != name
    return found


def _require_header(file: Path, layout: Layout, head: Head, usual: int, may_end: bool) -> None:
    """Raises DataError when the first record is no header."""
    line, _, first = head[0]
    if first[0].lower().startswith("sep="):
        raise file_error(file, f"line {line} names the delimiter: set the entry's skip_rows: {line}, and it")
    if 2 * first.count("") > len(first):
        raise file_error(
            file,
            f"line {line} names {len(first) - first.count('')} of {len(first)} columns; if it is a title, "
            f"set the entry's skip_rows: {line}, else name the columns",
        )
    if usual > len(first) and not (may_end and usual == len(first) + 1):
        at, wide = next((start, fields) for start, _, fields in head if len(fields) == usual)
        wider = f"line {at} has {usual} fields, but line {line} has {len(first)}"
        if first[0].startswith(COMMENTS):
            raise file_error(file, f"{wider}; if that is a comment, set the entry's comment: {first[0][0]!r}")
        if not any(NUMBER.match(name) for name in wide):
            raise file_error(
                file, f"{wider}; if the lines before it are a title, set the entry's skip_rows: {at - 1}"
            )
        raise file_error(
            file,
            f"{wider}: more fields than names; name all with the entry's columns: [...], header: false and "
            f"skip_rows: {at - 1}",
        )
    if layout.header is None and all(NUMBER.match(name) for name in first if name) and any(first):
        raise file_error(
            file,
            f"line {line} should name the columns, but holds numbers ({first[0]!r}); set the entry's "
            "header: false, or header: true if these are names",
        )


# ------------------------------------------------------------------------------------------------ rows


def _require_rows(file: Path, lines: Lines, layout: Layout, columns: int) -> None:
    facts = lines.facts
    if facts.rows == 0:
        raise file_error(file, "has a header, but no row; get the whole file")
    if not facts.ended and 0 < facts.last[1] < columns:
        raise file_error(
            file, f"breaks off in its last line ({facts.last[1]} of {columns} fields); get the whole file"
        )
    if facts.first_long and not layout.quarantine:
        line, fields = facts.first_long
        raise too_long(file, line, fields, columns, layout)


def too_long(file: Path, line: int, fields: int, columns: int, layout: Layout) -> DataError:
    return file_error(
        file,
        f"line {line} has {fields} fields, more fields than the {columns} columns; quote values with "
        f"a {layout.delimiter!r} in them, correct the entry's delimiter or quote, or set the entry's "
        "bad_rows: quarantine",
    )


def _count(facts: Facts, counts: CleaningCounts, even: bool) -> None:
    counts["blank row dropped"] += facts.blank
    counts["comment line left out"] += facts.comments
    counts["header that stands again among the rows left out"] += facts.headers
    counts["byte order mark at the start of a line removed"] += facts.marks
    counts["value with blanks around it trimmed"] += facts.trimmed
    if even:
        counts["row with another number of fields set aside"] += facts.short + facts.long
    else:
        counts[SHORT] += facts.short


def _strict(file: Path, facts: Facts, counts: CleaningCounts) -> DataError:
    found = "; ".join(f"{rule}: {times}" for rule, times in (+counts).items())
    where = f" (the first in line {facts.first_short[0]})" if facts.first_short else ""
    return file_error(
        file, f"strict is set, so nothing is mended, but there is: {found}{where}; mend the file"
    )


def _clean(lines: Lines, head: Head, even: bool) -> tuple[Path, int, bool]:
    """What is scanned, how many lines come before, and whether the next one holds names."""
    facts, header = lines.facts, lines.dialect.header
    first, last, names = head[0]
    odd = facts.blank_inside or facts.comments or facts.headers or facts.marks or facts.trimmed
    if not (odd or even):
        if not facts.short:
            return lines.path, last if header else first - 1, False
        if header and len(names) == lines.columns:
            return lines.path, first - 1, True
    how = hashlib.sha256(repr((lines.dialect, lines.columns, even)).encode()).hexdigest()[:12]
    path = made_once(lines.path, f"{lines.path.name}-{how}", lambda sink: lines.cleaned(sink, even))
    return path, 0, True
