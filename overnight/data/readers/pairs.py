"""Pairs of texts: two files of which the lines belong together, or columns of one file."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from pydantic import Field

from overnight.config import Values
from overnight.data.content import CleaningCounts, Pairs
from overnight.data.readers._common import BySplit, is_whole, present, text
from overnight.errors import DataError, file_error

Pair = tuple[str, str]
LONGEST_FIELD = 1 << 27  # characters


class TwoFiles(Values):
    source: str
    target: str


class Options(Values):
    splits: BySplit[TwoFiles | str] = Field(min_length=1)  # two files of lines; or a .tsv, .csv or .jsonl
    source: str | int = 0  # column of a file with columns: its name, or its number from 0 where it has none
    target: str | int = 1


def read(folder: Path, options: Options, _kind: str) -> Pairs:
    """Blank lines are dropped, and pairs with one side; both are counted."""
    cleaned, splits = CleaningCounts(), dict[str, list[Pair]]()
    for split, given in options.splits.items():
        if isinstance(given, TwoFiles):
            found, where = _lines(present(folder, given.source), present(folder, given.target)), given.source
        else:
            found, where = _columns(present(folder, given), options), given
        splits[split] = _clean(found, where, cleaned)
        if not splits[split]:
            raise file_error(folder / where, f"holds no pair for {split}; check the entry's options")
    return Pairs(splits, cleaned=cleaned)


def _lines(source: Path, target: Path) -> list[Pair]:
    """Raises DataError where their numbers of lines differ: then no line is known to belong to another."""
    one, other = (text(path).removesuffix("\n").split("\n") for path in (source, target))
    if len(one) != len(other):
        raise DataError(
            f"{source} has {len(one):,} lines, {target.name} {len(other):,}: line n of one belongs to line n "
            "of the other, so a line is missing somewhere; get both anew"
        )
    return list(zip(one, other, strict=True))


def _clean(found: list[Pair], where: str, cleaned: CleaningCounts) -> list[Pair]:
    kept = list[Pair]()
    for number, (source, target) in enumerate(found, 1):
        pair = (source.strip(), target.strip())
        if all(pair):
            kept.append(pair)
            if pair[0] == pair[1]:
                cleaned.at("pair of equal texts kept", f"{where}:{number}")
        else:
            rule = "pair with one side dropped" if any(pair) else "blank pair dropped"
            cleaned.at(rule, f"{where}:{number}")
    return kept


def _columns(path: Path, options: Options) -> list[Pair]:
    """Raises DataError that names the line or the column."""
    if path.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        return [_of_json(path, number, line, options) for number, line in _numbered(path)]
    tabs = path.name.removesuffix(".gz").endswith((".tsv", ".txt"))
    csv.field_size_limit(LONGEST_FIELD)
    content = io.StringIO(text(path))
    if tabs:
        rows = list(csv.reader(content, delimiter="\t", quoting=csv.QUOTE_NONE))
    else:
        rows = list(csv.reader(content))
    at = [_position(path, rows[0], column) for column in (options.source, options.target)]
    first = int(isinstance(options.source, str) or isinstance(options.target, str))  # a line of names
    short = next((n for n, row in enumerate(rows[first:], first + 1) if row and len(row) <= max(at)), None)
    if short is not None:
        raise file_error(path, f"line {short} has {len(rows[short - 1])} columns, expected {max(at) + 1}")
    return [(row[at[0]], row[at[1]]) if row else ("", "") for row in rows[first:]]


def _position(path: Path, names: list[str], column: str | int) -> int:
    if isinstance(column, int):
        return column
    if column not in names:
        raise file_error(path, f"has no column {column!r}; there are {', '.join(map(repr, names[:12]))}")
    return names.index(column)


def _numbered(path: Path) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text(path).split("\n"), 1) if line.strip()]


def _of_json(path: Path, number: int, line: str, options: Options) -> Pair:
    names = (options.source, options.target)
    try:
        row: Any = json.loads(line)
        found = [row[name] for name in names]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise file_error(
            path, f"line {number}: expected JSON with {names[0]!r} and {names[1]!r}, found {line[:60]!r}"
        ) from None
    if not all(isinstance(value, str) and is_whole(value) for value in found):
        raise file_error(path, f"line {number}: {names[0]!r} and {names[1]!r} must be text")
    return found[0], found[1]
