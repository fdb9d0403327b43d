"""The columns of a csv: which type each has, and whether every value has it."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from overnight.data.content import CleaningCounts
from overnight.errors import DataError, file_error, one_line

ROWS, BLANK = "\0 rows", "\0 blank"  # no column of a file is called so
SAMPLE = 10_000
TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
TIMES = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
FORMATS = {
    "date": ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%d.%m.%Y"),
    "datetime": (*(f"{t}%#z" for t in TIMES), *TIMES, "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%Y-%m-%d"),
    "time": ("%H:%M:%S%.f", "%H:%M"),
}


def scan(
    path: Path,
    file: Path,
    separator: str,
    nulls: Sequence[str],
    types: Mapping[str, str],
    cleaned: CleaningCounts,
) -> pl.LazyFrame:
    """The frame, after one pass over every value: each must be of its column's type.

    path: the file in plain utf-8; file: for messages.
    """
    how: dict[str, Any] = {"separator": separator, "null_values": nulls, "infer_schema": False}
    try:
        text = pl.scan_csv(path, **how)
        names = text.collect_schema().names()
        if len(names) > 1:
            short = _short_rows(path, file, separator, len(names))
            cleaned["row with too few fields: the rest counts as missing"] += short
        columns = [Column.of(text, name, types.get(name), file) for name in names]
        blank = pl.all_horizontal(pl.col(name).is_null() for name in names)
        counts = [pl.len().alias(ROWS), blank.sum().alias(BLANK), *(c.wrong() for c in columns)]
        found = text.select(counts).collect(engine="streaming").row(0, named=True)
        cleaned["column of a name that is taken renamed"] += sum("_duplicated_" in name for name in names)
        cleaned["table without rows kept"] += not found[ROWS]
        cleaned["blank row dropped"] += found[BLANK]
        columns = [c.repaired(text, nulls, cleaned) if found[c.name] else c for c in columns]
        native = {c.name: c.dtype for c in columns if c.is_native}
        frame = pl.scan_csv(path, schema_overrides=native, **how)
        frame = frame.with_columns(c.value() for c in columns if not c.is_native)
        return frame.filter(~blank) if found[BLANK] else frame
    except (pl.exceptions.PolarsError, OSError) as error:
        raise file_error(
            file, f"expected a csv file: {one_line(error)}; mend it, or the entry's delimiter or encoding"
        ) from None


@dataclass(frozen=True)
class Column:
    """How the text of one column becomes values. given: the entry states the type."""

    name: str
    type: str
    form: str
    given: bool
    file: Path
    trim: tuple[str, ...] | None = None

    @classmethod
    def of(cls, text: pl.LazyFrame, name: str, given: str | None, file: Path) -> "Column":
        """The type the entry gives, or that of the first rows; of times the first form that fits."""
        kind, _, form = (given or "").partition(" ")
        if given and (form or kind not in FORMATS):
            return cls(name, kind, form, given=True, file=file)
        sample = _sample(text, name)
        for type_, form in _candidates(kind, sample):
            column = cls(name, type_, form, bool(given), file)
            if sample.is_empty() or sample.to_frame().select(column.wrong()).item() == 0:
                return column
        raise file_error(
            file,
            f"column {name!r} should be a {kind}, but {sample[0]!r} has no form that is "
            f"known; state it in the entry: `{name}: {kind} %d.%m.%Y`",
        )

    @property
    def dtype(self) -> Any:
        zone = "UTC" if "%#z" in self.form or "%z" in self.form else None
        return {
            "int": pl.Int64, "float": pl.Float64, "text": pl.String, "bool": pl.Boolean,
            "date": pl.Date, "datetime": pl.Datetime("us", zone), "time": pl.Time,
        }[self.type]  # fmt: skip

    @property
    def is_native(self) -> bool:
        """Whether the scan itself can give the type (and the GPU engine read it)."""
        return self.type in ("int", "float", "text") and self.trim is None

    def value(self) -> pl.Expr:
        """Null where the text is not of the type."""
        text = pl.col(self.name)
        if self.trim is not None:
            text = text.str.strip_chars()
            text = pl.when(~text.is_in(["", *self.trim])).then(text)
        if self.type == "bool":
            known = dict.fromkeys(TRUE, True) | dict.fromkeys(FALSE, False)
            value = text.str.to_lowercase().replace_strict(known, default=None, return_dtype=self.dtype)
        elif self.type in FORMATS:
            value = text.str.strptime(self.dtype, self.form, strict=False)
        else:
            value = text.cast(self.dtype, strict=False)
        return value.alias(self.name)

    def wrong(self) -> pl.Expr:
        return self._is_wrong().sum().alias(self.name)

    def _is_wrong(self) -> pl.Expr:
        there = pl.col(self.name).is_not_null()
        if self.trim is not None:
            there &= ~pl.col(self.name).str.strip_chars().is_in(["", *self.trim])
        return there & self.value().is_null()

    def repaired(self, text: pl.LazyFrame, nulls: Sequence[str], cleaned: CleaningCounts) -> "Column":
        """Blanks trimmed, an inferred whole number read as a decimal.

        Else DataError with the first wrong value.
        """
        trimmed = replace(self, trim=tuple(nulls))
        rules = [("column with blanks around values trimmed", trimmed)]
        if self.type == "int" and not self.given:
            rules += [
                (f"column {self.name!r} read as decimals", replace(c, type="float")) for c in (self, trimmed)
            ]
        for rule, column in rules:
            if text.select(column.wrong()).collect(engine="streaming").item() == 0:
                cleaned[rule] += 1
                return column
        raise self._error(text)

    def _error(self, text: pl.LazyFrame) -> DataError:
        column = text.select(pl.col(self.name)).with_row_index("row", offset=1)
        row, value = column.filter(self._is_wrong()).head(1).collect().row(0)
        why = f"it is in the first {SAMPLE} rows; state a type in the entry, such as `{self.name}: text`"
        if self.given:
            why = "its entry says; correct the file or the type"
        article = "an" if self.type == "int" else "a"
        form = f" of the form {self.form}" if self.form else ""
        return file_error(
            self.file,
            f"column {self.name!r}, row {row} (after the header): "
            f"{value!r} is not {article} {self.type}{form}, as {why}",
        )


def _candidates(kind: str, sample: pl.Series) -> Iterator[tuple[str, str]]:
    """(type, form) that a column may have, the narrowest first; kind: the type that the entry gives."""
    if kind:
        yield from ((kind, form) for form in FORMATS[kind])
        return
    if not sample.is_empty():
        if not sample.str.contains(r"^[+-]?0\d").any():  # a number that starts with 0 is a code, so text
            yield from (("int", ""), ("float", ""))
        if sample.str.to_lowercase().is_in(["true", "false"]).all():
            yield "bool", ""
        yield from (
            (wide, form) for wide in ("date", "datetime") for form in FORMATS[wide] if form != "%Y%m%d"
        )
    yield "text", ""


def _sample(text: pl.LazyFrame, name: str) -> pl.Series:
    """Of the first rows; of the whole column when those are all missing."""
    column = text.select(pl.col(name))
    found = column.head(SAMPLE).collect().to_series().drop_nulls()
    return found if len(found) else column.drop_nulls().head(SAMPLE).collect().to_series()


def _short_rows(path: Path, file: Path, separator: str, expected: int) -> int:
    """How many rows have fewer fields than the header; blank lines are not rows.

    Raises DataError when the last of them is where the file breaks off.
    """
    lines = pl.scan_csv(
        path, has_header=False, separator="\x01", quote_char=None, infer_schema=False,
        schema={"line": pl.String},
    )  # fmt: skip
    line = pl.col("line")
    torn = line.str.count_matches('"', literal=True) % 2 == 1  # a quoted value goes on in the next line
    bare = line.str.replace_all(r'"[^"]*"', "").str.strip_chars("\r")
    fields = bare.str.count_matches(separator, literal=True) + 1
    short = (fields < expected) & (line.str.strip_chars() != "")
    last = pl.when(short.last()).then(fields.last()).otherwise(expected)
    found = lines.select(torn.any().alias("torn"), short.sum().alias("short"), last.alias("last"))
    row = found.collect(engine="streaming").row(0, named=True)
    if row["torn"]:
        with path.open(encoding="utf-8", errors="replace", newline="") as stream:
            rows = csv.reader(stream, delimiter=separator)
            return sum(0 < len(row) < expected and any(row) for row in rows)
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        ended = stream.read() == b"\n"
    if row["last"] < expected and not ended:
        raise file_error(
            file, f"breaks off in its last line ({row['last']} of {expected} fields); get the whole file"
        )
    return int(row["short"])
