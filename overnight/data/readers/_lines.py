"""The lines of a csv file: one pass over its bytes counts what is odd, another writes a clean copy."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np

from overnight.data.archives import made_once
from overnight.data.readers import _blocks
from overnight.data.readers._blocks import (
    CR,
    LF,
    MINUS,
    PADDING,
    PLUS,
    POINT,
    ZERO,
    Bytes,
    Dialect,
    Mask,
    Part,
    Whole,
    has_long_run,
    has_signs,
    has_zeros,
)  # fmt: skip
from overnight.errors import DataError, file_error

REMEMBERED = 1 << 24  # bytes from which on the facts of a file are kept


@dataclass
class Facts:
    """What the pass saw. Lines count from 1, over the whole file."""

    rows: int = 0  # without the header
    blank: int = 0
    blank_inside: int = 0  # of these, what is followed by a row
    comments: int = 0
    headers: int = 0  # rows that are the header again
    marks: int = 0  # of byte order, at the start of a later line
    short: int = 0
    first_short: Sequence[int] | None = None  # line, fields
    long: int = 0
    first_long: Sequence[int] | None = None
    full: int = 0  # rows whose last field is not empty
    trimmed: int = 0  # values
    quoted: bool = False
    last: Sequence[int] = (0, 0)  # line and fields of the last row
    ended: bool = True  # the last line has a line end
    # what a number may be written with, somewhere in the file
    signs: bool = False  # 007, +7, -0
    exponents: bool = False  # 1e5
    far_exponents: bool = False  # of three digits
    many_digits: bool = False  # 16 or more, not after a point
    points: bool = False
    zeros: bool = False  # 1.10, 1.00: behind the point another digit, then a zero
    null_words: int = 0


@dataclass
class Lines:
    """The rows of a file of so many columns. path: the bytes; file: for messages."""

    path: Path
    file: Path
    dialect: Dialect
    columns: int
    thorough: bool = False  # look at every row, also where the sum of all fields is right
    nulls: tuple[bytes, ...] = ()  # words to count
    decimal: str = "."  # the point of decimal numbers; empty where no column may hold any
    facts: Facts = field(default_factory=Facts)
    header: bytes = b""

    def counted(self) -> Facts:
        """Of a large file remembered until it changes.

        Raises DataError for bytes that are no text, and quotes and line ends that do not fit.
        """
        if self.path.stat().st_size < REMEMBERED:
            return self._counted()
        how = (self.dialect, self.columns, self.thorough, self.nulls, self.decimal, _code())
        name = f"{self.path.name}-{hashlib.sha256(repr(how).encode()).hexdigest()[:12]}.json"
        file = made_once(
            self.path, name, lambda sink: sink.write(json.dumps(asdict(self._counted())).encode())
        )
        self.facts = Facts(**json.loads(file.read_bytes()))
        return self.facts

    def _counted(self) -> Facts:
        head, line = self.dialect.header, self.dialect.skip + 1
        for block in self.dialect.blocks(self.path):
            self.facts.ended = block.endswith(b"\n")
            whole = block if self.facts.ended else block + b"\n"
            self._require_text(whole, line)
            part = Part.of(whole, line, self.dialect)
            self._require_quotes(part)
            self._count(part, head and self.facts.rows == 0)
            self._numbers(part)
            if self.nulls:
                self._null_words(part.text)
            line += part.lines
        self.facts.rows -= head and self.facts.rows > 0
        return self.facts

    def cleaned(self, sink: IO[bytes], even: bool) -> None:
        """Write the rows below a line of numbers."""
        sink.write(self.dialect.separator.join(map(str, range(self.columns))).encode() + b"\n")
        for part, kept in self._kept(even):
            chosen = np.repeat(kept, np.diff(part.starts, append=len(part.data)))
            sink.write(part.text if kept.all() else part.data[chosen].tobytes())

    def uneven(self) -> Iterator[tuple[int, int, str]]:
        """(line, fields, text) of every row that has not as many fields as there are columns."""
        for part, kept in self._kept(even=False):
            for i in np.flatnonzero(kept & (part.fields != self.columns)):
                text = part.data[part.starts[i] : part.stops[i]].tobytes().decode(errors="replace")
                yield part.line_at(part.starts[i]), int(part.fields[i]), text.removesuffix("\r")

    def line_of(self, rows: list[int], even: bool) -> list[int]:
        """Lines of these rows, which count from 0 after the header and ascend."""
        wanted = np.array(rows, np.int64)
        found, before = list[int](), 0
        for part, kept in self._kept(even):
            starts = part.starts[kept]
            here = wanted[(wanted >= before) & (wanted < before + len(starts))] - before
            if here.size:
                ends = np.flatnonzero(part.data == LF)
                found += (part.line + np.searchsorted(ends, starts[here])).tolist()
            before += len(starts)
            if len(found) == len(rows):
                break
        return found

    def _kept(self, even: bool) -> Iterator[tuple[Part, Mask]]:
        """Blocks, and which of their records are rows; even: of as many fields as there are columns."""
        head, line = self.dialect.header, self.dialect.skip + 1
        for block in self.dialect.blocks(self.path):
            whole = block if block.endswith(b"\n") else block + b"\n"
            part = Part.of(whole, line, self.dialect)
            rows = ~(part.empty | part.comments | self._again(part, head))
            if head and rows.any():
                rows[np.flatnonzero(rows)[0]] = False
                head = False
            yield part, rows & (part.fields == self.columns) if even else rows
            line += part.lines

    def _require_text(self, block: bytes, line: int) -> None:
        if b"\0" in block:
            at = line + block.count(b"\n", 0, block.index(b"\0"))
            raise self._error(at, "a NUL byte, which no text has; get the file anew, or set encoding: utf-16")
        if not block.isascii():
            try:
                block.decode()
            except UnicodeDecodeError as error:
                at = line + block.count(b"\n", 0, error.start)
                raise self._error(
                    at,
                    f"the byte 0x{block[error.start]:02x} is not utf-8; set the entry's encoding "
                    "(cp1252 and latin-1 are common)",
                ) from None
        if b"\r" in block and b"\r" in block.replace(b"\r\n", b""):
            part = Part(block, line, self.dialect)
            lone = (part.data[:-1] == CR) & (part.data[1:] != LF)
            lone = lone if part.outside is None else lone & part.outside[:-1]
            if lone.any():
                at = part.line_at(int(np.flatnonzero(lone)[0]))
                raise self._error(at, "a carriage return inside a value; quote the value, or remove it")

    def _require_quotes(self, part: Part) -> None:
        """A quoted value opens after a separator and closes before one."""
        if not part.quotes.size:
            return
        self.facts.quoted = True
        quote = ord(self.dialect.quote)
        after = (ord(self.dialect.separator), LF, quote)
        opening, closing = part.quotes[::2], part.quotes[1::2]
        wrong = opening[(opening > 0) & ~np.isin(part.data[opening - 1], after)]
        inner = closing[~np.isin(part.data[closing + 1], (*after, CR))]
        faults = sorted([*wrong[:1].tolist(), *inner[:1].tolist()])
        if not faults and len(part.quotes) % 2:
            faults = [int(part.quotes[-1])]
        if faults:
            raise self._error(
                part.line_at(faults[0]),
                f"a {self.dialect.quote} inside a value that is not quoted as a whole, or never closed; "
                "double it inside quotes, or set the entry's quote: '' if quotes are part of the text",
            )

    def _count(self, part: Part, head: bool) -> None:
        """Rows, and those of another number of fields; head: the first record is the header."""
        self.facts.trimmed += part.trimmed
        self.facts.marks += part.marks
        again = self._again(part, head)
        if not head and not again.any() and self._is_even(part):
            self.facts.rows += len(part.stops)
            self.facts.blank_inside = self.facts.blank
            self.facts.last = (0, self.columns)
            return
        kept = ~(part.empty | part.comments | again)
        self.facts.headers += int(again.sum())
        self.facts.comments += int(part.comments.sum())
        rows = np.flatnonzero(kept)
        if rows.size:
            self.facts.blank_inside = self.facts.blank + int(part.empty[: rows[-1]].sum())
            self._count_fields(part, rows[1:] if head else rows)
        self.facts.blank += int(part.empty.sum())
        self.facts.rows += len(rows)

    def _again(self, part: Part, head: bool) -> Mask:
        """Records that are the header once more, as where files were put together."""
        first = np.flatnonzero(~(part.empty | part.comments)) if head else np.empty(0, np.int64)
        if first.size:
            self.header = (
                part.data[part.starts[first[0]] : part.stops[first[0]]].tobytes().removesuffix(b"\r")
            )
        if self.columns == 1 or not self.header:
            return np.zeros(len(part.starts), bool)
        found = part.equal_to(self.header)
        found[first[:1]] = False
        return found

    def _is_even(self, part: Part) -> bool:
        """Whether all records have as many fields as there are columns, seen from their sum alone.

        A longer row would hide a shorter one, but then the scan fails for the longer one.
        """
        if self.dialect.comment or self.thorough or part.trimmed or self.columns == 1:
            return False
        shortest = np.diff(part.stops, prepend=-1).min()  # a row of separators alone has `columns` bytes
        together = int(np.count_nonzero(part.separators))
        return bool(shortest > self.columns + 1) and together == (self.columns - 1) * len(part.stops)

    def _count_fields(self, part: Part, rows: Whole) -> None:
        fields = part.fields[rows]
        last = part.stops[rows] - 1
        last = np.where(part.data[last] == CR, last - 1, last)
        self.facts.full += int((part.data[last] != ord(self.dialect.separator)).sum())
        short, long = fields < self.columns, fields > self.columns
        self.facts.short += int(short.sum())
        self.facts.long += int(long.sum())
        self.facts.first_short = self.facts.first_short or self._first(part, rows[short])
        self.facts.first_long = self.facts.first_long or self._first(part, rows[long])
        if rows.size:
            self.facts.last = (part.line_at(part.starts[rows[-1]]), int(fields[-1]))

    def _first(self, part: Part, rows: Whole) -> tuple[int, int] | None:
        if not rows.size:
            return None
        return part.line_at(part.starts[rows[0]]), int(part.fields[rows[0]])

    def _numbers(self, part: Part) -> None:
        """Whether numbers may be written so that their text does not come back."""
        facts = self.facts
        facts.points = facts.points or b"." in part.text
        if not facts.signs:
            facts.signs = has_signs(part)
        if self.decimal and not facts.zeros:
            facts.zeros = has_zeros(part, self.decimal.encode())
        if self.decimal and not (facts.many_digits and facts.far_exponents):
            data = np.append(part.data, PADDING)
            digit = (data - np.uint8(ZERO)) < 10
            facts.many_digits = facts.many_digits or has_long_run(data, digit)
            self._exponents(data, digit)

    def _exponents(self, data: Bytes, digit: Mask) -> None:
        letter = (data[1:-4] | 32) == ord("e")
        letter &= digit[:-5] | (data[:-5] == POINT)
        sign = (data[2:-3] == PLUS) | (data[2:-3] == MINUS)
        self.facts.exponents |= bool((letter & (digit[2:-3] | sign)).any())
        if self.facts.exponents:
            far = digit[2:-3] & digit[3:-2] & digit[4:-1]
            far |= sign & digit[3:-2] & digit[4:-1] & digit[5:]
            self.facts.far_exponents |= bool((letter & far).any())

    def _null_words(self, text: bytes) -> None:
        if any(word in text for word in self.nulls):
            words, separator = (
                b"|".join(map(re.escape, self.nulls)),
                re.escape(self.dialect.separator.encode()),
            )
            quote = re.escape(self.dialect.quote.encode()) + b"?" if self.dialect.quote else b""
            alone = rb"(?<![^\n%b])%b(?:%b)%b(?=[\r\n%b])" % (separator, quote, words, quote, separator)
            self.facts.null_words += len(re.findall(alone, text))

    def _error(self, line: int, problem: str) -> DataError:
        return file_error(self.file, f"line {line}: {problem}")


@cache
def _code() -> str:
    """What the facts depend on besides the file."""
    files = (Path(__file__), Path(_blocks.__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
