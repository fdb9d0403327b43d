"""A csv file cut into blocks of whole lines: where each block has fields, records, quotes and comments."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

BLOCK = 1 << 18  # bytes: what stays in the cache of a core
LONGEST_QUOTED = 1 << 26  # bytes that a quoted value may span
LF, CR, TAB, SPACE, PLUS, MINUS, POINT, ZERO = b"\n\r\t +-.0"
PADDING = np.full(4, LF, np.uint8)  # after the last value of a block, so that windows reach over it
MARKS = re.compile(rb"(^|\n)(?:%b)+" % codecs.BOM_UTF8)  # of byte order, at the start of lines
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Whole = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Dialect:
    separator: str
    quote: str = '"'  # empty: none
    comment: str = ""  # how a line that is no row begins; empty: none
    skip: int = 0  # lines before the header
    header: bool = True
    trim: bool = True

    def blocks(self, path: Path) -> Iterator[bytes]:
        """Whole lines after those that are skipped; a quoted value stays in one block."""
        with path.open("rb") as stream:
            if stream.read(3) != codecs.BOM_UTF8:
                stream.seek(0)
            for _ in range(self.skip):
                stream.readline()
            while block := stream.read(BLOCK):
                block += stream.readline()
                yield block + self._rest_of_value(block, stream)

    def _rest_of_value(self, block: bytes, stream: IO[bytes]) -> bytes:
        quote, rest = self.quote.encode(), list[bytes]()
        odd, size = quote != b"" and quote in block and block.count(quote) % 2, 0
        while odd and size < LONGEST_QUOTED and (more := stream.readline()):
            rest.append(more)
            size += len(more)
            odd = (odd + more.count(quote)) % 2
        return b"".join(rest)


@dataclass(frozen=True)
class Part:
    """One block, blanks around values removed; its last byte ends a line."""

    text: bytes
    line: int  # of the first byte
    dialect: Dialect
    trimmed: int = 0
    marks: int = 0  # of byte order that were removed

    @classmethod
    def of(cls, block: bytes, line: int, dialect: Dialect) -> Self:
        text, marks = without_marks(block)
        part = cls(text, line, dialect, marks=marks)
        if not dialect.trim or (b" " not in block and b"\t" not in block):
            return part
        return part.without_blanks()

    @cached_property
    def data(self) -> Bytes:
        return np.frombuffer(self.text, np.uint8)

    @cached_property
    def quotes(self) -> Whole:
        quote = self.dialect.quote.encode()
        if not quote or quote not in self.text:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.data == quote[0])

    @cached_property
    def lines(self) -> int:
        return self.text.count(b"\n") if self.quotes.size else len(self.stops)

    @cached_property
    def outside(self) -> Mask | None:
        """Bytes outside quotes; None: all."""
        if not self.quotes.size:
            return None
        marks = self.data == ord(self.dialect.quote)
        inside = np.add.accumulate(marks, dtype=np.uint8) & 1
        outside: Mask = inside == 0
        return outside

    @cached_property
    def separators(self) -> Mask:
        found: Mask = self.data == ord(self.dialect.separator)
        return found if self.outside is None else found & self.outside

    @cached_property
    def ends(self) -> Mask:
        found: Mask = self.data == LF
        return found if self.outside is None else found & self.outside

    @cached_property
    def edges(self) -> Mask:
        return self.separators | self.ends

    @cached_property
    def stops(self) -> Whole:
        """Where each record's line end is."""
        return np.flatnonzero(self.ends)

    @cached_property
    def starts(self) -> Whole:
        return np.concatenate([[0], self.stops[:-1] + 1])

    @cached_property
    def fields(self) -> Whole:
        """How many each record has."""
        return np.add.reduceat(self.separators, self.starts, dtype=np.int64) + 1

    @cached_property
    def empty(self) -> Mask:
        """Records without a byte beside separators, blanks and line ends."""
        empty = self.edges | (self.data == CR) | (self.data == SPACE) | (self.data == TAB)
        return ~np.logical_or.reduceat(~empty, self.starts)

    @cached_property
    def comments(self) -> Mask:
        mark = self.dialect.comment.encode()
        found = np.zeros(len(self.starts), bool)
        if mark:
            for i in np.flatnonzero(self.data[self.starts] == mark[0]):
                start = self.starts[i]
                found[i] = self.data[start : start + len(mark)].tobytes() == mark
        return found

    def equal_to(self, record: bytes) -> Mask:
        """Records of these bytes, which have no line end."""
        found = np.zeros(len(self.starts), bool)
        at = self.text.find(record)
        while at >= 0:
            stop = at + len(record)
            i = int(np.searchsorted(self.starts, at))
            whole = i < len(found) and self.starts[i] == at
            found[min(i, len(found) - 1)] |= whole and self.text[stop : stop + 2].startswith((b"\n", b"\r\n"))
            at = self.text.find(record, stop)
        return found

    def line_at(self, position: int) -> int:
        return self.line + int(np.count_nonzero(self.data[:position] == LF))

    def without_blanks(self) -> Self:
        """Outside quotes, blanks beside a separator or a line end are removed."""
        kinds = [blank for blank in (SPACE, TAB) if blank != ord(self.dialect.separator)]
        blank = np.logical_or.reduce([self.data == kind for kind in kinds])
        if self.outside is not None:
            blank &= self.outside
        edge = self.edges | (self.data == CR)
        touched = (blank[1:] & edge[:-1]).any() or (blank[:-1] & edge[1:]).any() or blank[0]
        if not touched:
            return self
        change = np.diff(blank.view(np.int8), prepend=0, append=0)
        first, after = np.flatnonzero(change == 1), np.flatnonzero(change == -1)  # of each run of blanks
        touching = (first == 0) | edge[first - 1] | edge[np.minimum(after, len(edge) - 1)]
        step = np.zeros(len(blank) + 1, np.int8)
        step[first[touching]] = 1
        step[after[touching]] = -1
        keep = np.add.accumulate(step[:-1], dtype=np.int8) == 0
        return replace(self, text=self.data[keep].tobytes(), trimmed=int(touching.sum()))


def without_marks(block: bytes) -> tuple[bytes, int]:
    """Whole lines without marks of byte order before them, which files that were put together have."""
    return (block, 0) if block.isascii() else MARKS.subn(rb"\1", block)


def has_signs(part: Part) -> bool:
    """Whether a value starts with a plus, or with a zero (after a minus or not) and another digit."""
    data, before = part.data, part.edges  # of the byte before a value
    if part.quotes.size:
        before = before.copy()
        before[part.quotes[::2]] = True
    if re.match(rb"\+|-?0\d", part.text) or (b"+" in part.text and (before[:-1] & (data[1:] == PLUS)).any()):
        return True
    zeros = data[1:-1] == ZERO
    zeros &= (data[2:] - np.uint8(ZERO)) < 10
    if (zeros & before[:-2]).any():
        return True
    zeros[1:] &= data[1:-2] == MINUS
    return bool((zeros[1:] & before[:-3]).any())


def has_zeros(part: Part, point: bytes) -> bool:
    """Whether a number ends with a zero behind another decimal: 1.10, 1.00."""
    if point not in part.text:
        return False
    data, after = part.data, part.edges
    if part.quotes.size or b"\r" in part.text:
        after = after | (data == CR)
        after[part.quotes[1::2]] = True
    at, step = np.flatnonzero((data[:-1] == ZERO) & after[1:]), 1
    while at.size:
        before = data[np.maximum(at - step, 0)]
        if step > 1 and (before == point[0]).any():
            return True
        at, step = at[((before - np.uint8(ZERO)) < 10) & (at > step)], step + 1
    return False


def has_long_run(data: Bytes, digit: Mask) -> bool:
    """Whether 16 digits stand together that are no decimals."""
    run = digit
    for width in (1, 2, 4, 8):
        run = run[width:] & run[:-width]
    if not run.any():
        return False
    first = np.flatnonzero(run[1:] & ~run[:-1]) + 1
    return bool(run[0] or (data[first - 1] != POINT).any())
