"""Whether the tables of a set keep the rules of their entry, and are like those that were read before.

The profile of the last set without an objection lies in `.overnight/profiles/NAME.json`.
"""

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overnight.config import Values
from overnight.data import rules
from overnight.data.content import Tables
from overnight.data.drift import drift
from overnight.data.entry import Entry
from overnight.data.profile import ColumnProfile, TableProfile, profiles
from overnight.errors import DataError, one_line
from overnight.files import UNREADABLE, atomic_write
from overnight.paths import state

STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;color-scheme:light dark}table{border-collapse:collapse}"
    "td,th{padding:.25em .8em;border-bottom:1px solid #8884;text-align:right}"
    "td:first-child,th:first-child,td.text{text-align:left}"
)


class Baseline(Values):
    tables: dict[str, TableProfile]


@dataclass(frozen=True)
class Audit:
    """changes: what differs from the last set without an objection; since: whether there is one."""

    name: str
    tables: dict[str, TableProfile]
    changes: list[str]
    since: bool

    def accept(self) -> None:
        """The next set is compared with this one. Raises OSError."""
        atomic_write(baseline_file(self.name), Baseline(tables=self.tables).model_dump_json())

    def page(self) -> str:
        """One self-contained HTML page."""
        words = self.changes or [
            "nothing differs" if self.since else "there is no earlier set to compare with"
        ]
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in words)
        tables = "".join(_table(name, profile) for name, profile in self.tables.items())
        title = f"Data set {html.escape(self.name)}"
        return (
            f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
            f"<h1>{title}</h1><h2>Compared with the last good one</h2><ul>{lines}</ul>{tables}"
        )


def baseline_file(name: str) -> Path:
    folder = state() / "profiles"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.json"


def audit(entry: Entry, content: Tables) -> Audit:
    """Raises DataError with every rule that is broken."""
    _require_rules(entry, content)
    with _errors_named(entry, content):
        now = profiles(content.frames, content.rows)
    before = _baseline(entry.name)
    return Audit(entry.name, now, drift(before.tables, now) if before else [], before is not None)


def audited(entry: Entry, content: Tables) -> Audit | None:
    """What a step does with a set that it has read; None where the entry asks for no comparison.

    Raises DataError for rules that are broken and, where the entry says `drift: stop`, for any change. The
    next set is compared with this one, unless it is refused.
    """
    if entry.drift == "off":
        _require_rules(entry, content)
        return None
    found = audit(entry, content)
    if found.changes and entry.drift == "stop":
        advice = f"mend the data, or accept them: `overnight data check {entry.name} --accept`"
        raise DataError([f"data set {entry.name!r} has changed: {line}; {advice}" for line in found.changes])
    found.accept()
    return found


def _require_rules(entry: Entry, content: Tables) -> None:
    if not entry.rules:
        return
    with _errors_named(entry, content):
        problems = rules.broken(entry.rules, content.frames)
    if problems:
        raise DataError([f"data set {entry.name!r}: {problem}" for problem in problems])


@contextmanager
def _errors_named(entry: Entry, content: Tables) -> Iterator[None]:
    import polars as pl

    try:
        yield
    except pl.exceptions.PolarsError as error:
        problem = content.misfit()
        raise problem or DataError(
            f"data set {entry.name!r}: {one_line(error)}; mend it, or its entry"
        ) from None


def _baseline(name: str) -> Baseline | None:
    try:
        return Baseline.model_validate_json(baseline_file(name).read_bytes())
    except UNREADABLE:
        return None


def _table(name: str, profile: TableProfile) -> str:
    head = "".join(
        f"<th>{key}</th>" for key in ("column", "type", "missing", "distinct", "range", "frequent")
    )
    rows = "".join(
        "<tr>"
        + "".join(f"<td{' class=text' * (i > 4)}>{cell}</td>" for i, cell in enumerate(_cells(key, column)))
        + "</tr>"
        for key, column in profile.columns.items()
    )
    return f"<h2>{html.escape(name)}: {profile.rows:,} rows</h2><table><tr>{head}</tr>{rows}</table>"


def _cells(name: str, column: ColumnProfile) -> Sequence[str]:
    span = "" if column.low is None or column.high is None else f"{column.low:.6g} to {column.high:.6g}"
    frequent = ", ".join(f"{value[:30]} {share:.1%}" for value, share in list(column.values.items())[:5])
    cells = (name, column.type, f"{column.nulls:.1%}", f"{column.distinct:,}", span, frequent)
    return [html.escape(cell) for cell in cells]
