"""What an entry says the rows of its tables must be like, and which of them are not."""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from overnight.config import Values
from overnight.errors import did_you_mean

if TYPE_CHECKING:
    import polars as pl

Bound = float | date


class ColumnRules(Values):
    """nulls: the share that may be missing; values: all that may occur; pattern: of each whole text."""

    nulls: float = Field(1.0, ge=0, le=1)
    min: Bound | None = None
    max: Bound | None = None
    values: list[str | int | float | bool] = []
    unique: bool = False
    pattern: str = ""


class TableRules(Values):
    """rows: the least and the most; key: columns whose values together occur once."""

    rows: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    key: list[str] = []
    columns: dict[str, ColumnRules] = {}

    @model_validator(mode="after")
    def _in_order(self) -> "TableRules":
        if self.rows and self.rows[0] > self.rows[1]:
            raise ValueError(f"rows: {self.rows}: the least comes first")
        return self


def broken(rules: Mapping[str, TableRules], frames: "Mapping[str, pl.LazyFrame]") -> list[str]:
    """A sentence for each rule that the tables break: one pass over each, and one for each key."""
    found = [
        f"rules: no table {name!r}{did_you_mean(name, list(frames))}; there are {', '.join(frames)}"
        for name in rules
        if name not in frames
    ]
    for name, table in rules.items():
        if name in frames:
            found += [f"table {name!r}: {line}" for line in _of_table(table, frames[name])]
    return found


def _of_table(rules: TableRules, frame: "pl.LazyFrame") -> Iterator[str]:
    schema = frame.collect_schema()
    missing = [name for name in dict.fromkeys([*rules.key, *rules.columns]) if name not in schema]
    if missing:
        hint = did_you_mean(missing[0], schema.names())
        yield f"no column {', '.join(map(repr, missing))}{hint}; it has {', '.join(schema.names())}"
        return
    yield from _of_rows(rules, frame, schema)
    keys = [rules.key] if rules.key else []
    for key in [*keys, *([name] for name, column in rules.columns.items() if column.unique)]:
        yield from _repeated(frame, key)


def _of_rows(rules: TableRules, frame: "pl.LazyFrame", schema: "pl.Schema") -> Iterator[str]:
    import polars as pl

    checks = [one for name, column in rules.columns.items() for one in _of_column(name, column, schema[name])]
    counts = frame.select(pl.len(), *(wrong.sum().alias(f"\0{i}") for i, (_, _, wrong) in enumerate(checks)))
    rows, *found = counts.collect(engine="streaming").row(0)
    if rules.rows and not rules.rows[0] <= rows <= rules.rows[1]:
        yield f"{rows:,} rows; expected {rules.rows[0]:,} to {rules.rows[1]:,}"
    for (sentence, share, _), count in zip(checks, found, strict=True):
        if (count or 0) > share * rows:
            most = f"; at most {share:.2%} may be" if share else ""
            yield f"{sentence}: {count:,} of {rows:,}{most}"


def _of_column(name: str, rules: ColumnRules, dtype: "pl.DataType") -> "Iterator[tuple[str, float, pl.Expr]]":
    """(what is wrong, which share of the rows may be so, where it is)."""
    import polars as pl

    column = pl.col(name)
    gone = column.is_null() | column.is_nan() if dtype.is_float() else column.is_null()
    yield f"column {name!r}: values that are missing", rules.nulls, gone
    if rules.min is not None:
        yield f"column {name!r}: values below {rules.min}", 0, ~gone & (column < rules.min)
    if rules.max is not None:
        yield f"column {name!r}: values above {rules.max}", 0, ~gone & (column > rules.max)
    text = column.cast(pl.String)
    if rules.values:
        allowed = [_as_text(value) for value in rules.values]
        yield f"column {name!r}: values other than {', '.join(allowed)}", 0, ~gone & ~text.is_in(allowed)
    if rules.pattern:
        like = text.str.contains(f"^(?:{rules.pattern})$")
        yield f"column {name!r}: values unlike {rules.pattern}", 0, ~gone & ~like


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _repeated(frame: "pl.LazyFrame", key: list[str]) -> Iterator[str]:
    import polars as pl

    counts = frame.drop_nulls(key).group_by(key).len().filter(pl.col("len") > 1)
    found = counts.sort("len", *key, descending=True).collect(engine="streaming")
    if found.height:
        first = ", ".join(f"{name} {value}" for name, value in zip(key, found.row(0), strict=False))
        named = " and ".join(key)
        yield f"{found.height:,} values of {named} occur more than once (first: {first})"
