"""The lazy plan of a table: typed, joined, derived, with the reason for which each row is dropped."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from overnight.data.dataset import Dataset
from overnight.errors import DataError, OvernightError
from tasks.tabular import columns
from tasks.tabular.expressions import THERE_ARE, Expressions, asking, columns_there
from tasks.tabular.partners import Partner, join_with
from tasks.tabular.tables import RESULT, Dates, Output, TableParams

REASON, MATCH = "\0reason", "\0match"
Frames = Mapping[str, pl.LazyFrame]


@dataclass(frozen=True)
class Plan:
    """rows: all of them, with flags and REASON, the number of the first rule that drops the row.

    expressions: {where it stands: (text, the rows it is computed on, itself)}
    """

    fact: pl.LazyFrame
    rows: pl.LazyFrame
    partners: list[Partner]
    reasons: list[str]
    expressions: dict[str, tuple[str, pl.LazyFrame, pl.Expr]]
    kept: pl.LazyFrame


@dataclass
class Planner:
    """Makes the plan of these values.

    dry: on tables without rows, each part at once, so that an error names it
    """

    params: TableParams
    parse: Expressions = field(default_factory=Expressions)
    dry: bool = False

    def typed(self, frames: Frames) -> dict[str, pl.LazyFrame]:
        """The tables with their columns cast, and those made by `sql`. Raises DataError with all mistakes."""
        problems = self.params.unknown_tables(frames)
        stated = [(f"types.{table}", table, list(kinds)) for table, kinds in self.params.types.items()]
        joined = [
            (f"the join with {join.table}", join.table, [*join.theirs(), *(join.take or [])])
            for join in self.params.joins
        ]
        for who, table, names in [*stated, *joined]:
            have = frames[table].collect_schema() if table in frames else {}
            unknown = [name for name in dict.fromkeys(names) if name not in have] if have else []
            problems += [f"{who} names {columns_there([name], have)}" for name in unknown]
        problems += self._not_as_written(frames)
        if problems:
            raise DataError(problems)
        found = {name: self._cast(name, frame) for name, frame in frames.items()}
        for name, query in self.params.sql.items():
            found[name] = self.query(query, f"sql.{name}", found)
        found[self.params.fact] = self._dates(found[self.params.fact])
        return found

    def _not_as_written(self, frames: Frames) -> list[str]:
        """Columns stated as text that are none any more: 1.50 has become 1.5, TRUE true, a date its day."""
        problems = list[str]()
        for table, kinds in self.params.types.items():
            have = frames[table].collect_schema() if table in frames else {}
            for name, kind in kinds.items():
                dtype = have.get(name)
                if kind == "text" and dtype is not None and dtype != pl.String and not dtype.is_integer():
                    problems.append(
                        f"types.{table}: {name!r} was read as {dtype}, so how it was written is lost; state "
                        f"`types: {{{name}: text}}` in the set's entry, or CAST it under derive"
                    )
        return problems

    def casts(self, table: str, frame: pl.LazyFrame) -> dict[str, pl.Expr]:
        """{column: what makes it of the type that the values state}."""
        have = frame.collect_schema()
        stated = self.params.types.get(table, {})
        found = {name: columns.cast(name, have[name], kind) for name, kind in stated.items()}
        return {name: made for name, made in found.items() if made is not None}

    def notations(self, table: str, frame: pl.LazyFrame) -> dict[str, pl.Expr]:
        """{column: whether a value is written in another way than the number that the values state}."""
        have = frame.collect_schema()
        stated = self.params.types.get(table, {})
        found = {name: columns.notation(name, have[name], kind) for name, kind in stated.items()}
        return {name: asked for name, asked in found.items() if asked is not None}

    def _cast(self, table: str, frame: pl.LazyFrame) -> pl.LazyFrame:
        casts = self.casts(table, frame)
        return self._settled(frame.with_columns(**casts), f"types.{table}") if casts else frame

    def _dates(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """With the parts of those times that the table has; others come after the joins."""
        have = frame.collect_schema()
        for prefix, dates in self.params.dates.items():
            name = dates.of or prefix
            if name in have:
                made = {f"{prefix}_{part}": part for part in dates.parts}
                at = _clock(name, have[name], dates, f"dates.{prefix}")
                parts = [_part(at, part).alias(column) for column, part in made.items()]
                taken = [column for column in made if column in have]
                if taken:
                    raise DataError(f"dates.{prefix} makes {', '.join(taken)}, which is already there")
                frame = self._settled(frame.with_columns(parts), f"dates.{prefix}")
        return frame

    def query(self, text: str, where: str, frames: Frames) -> pl.LazyFrame:
        """Raises DataError for what is no query over these tables."""
        with asking(where, text):
            found = self.parse.query(text, frames)
            found.collect_schema()
        return self._settled(found, where)

    def _settled(self, frame: pl.LazyFrame, where: str) -> pl.LazyFrame:
        if not self.dry:
            return frame
        with asking(where, where):
            return frame.collect().lazy()

    def plan(self, tables: Frames) -> Plan:
        """Raises DataError for what the values name and the tables do not have."""
        frame, partners = tables[self.params.fact], list[Partner]()
        early = {prefix for prefix, dates in self.params.dates.items() if _made(prefix, dates, frame)}
        for index, (join, label) in enumerate(zip(self.params.joins, self.params.labels(), strict=True)):
            with asking(f"joins.{index}", label):
                partner = join_with(frame, tables[join.table], join, label, f"{MATCH}{index}")
                partners.append(partner)
                frame = self._settled(partner.after, f"joins.{index}")
        late = {prefix: dates for prefix, dates in self.params.dates.items() if prefix not in early}
        frame = self._late_dates(frame, late)
        expressions = dict[str, tuple[str, pl.LazyFrame, pl.Expr]]()
        for name, text in self.params.derive.items():
            where = f"derive.{name}"
            made = self.parse.parse(text, where, frame.collect_schema())
            expressions[where] = (text, frame, made)
            frame = self._settled(frame.with_columns(made.alias(name)), where)
        rules = list(self._rules(frame))
        texts = self.params.where
        named = [(reason, rule) for reason, rule in rules if reason in texts]
        conditions = {f"where.{reason}": (texts[reason], frame, rule) for reason, rule in named}
        rows = frame.with_columns(_reason([rule for _, rule in rules]))
        return Plan(
            tables[self.params.fact], self._settled(rows, "where"), partners, [name for name, _ in rules],
            {**expressions, **conditions}, self._kept(rows),
        )  # fmt: skip

    def _late_dates(self, frame: pl.LazyFrame, late: Mapping[str, Dates]) -> pl.LazyFrame:
        have = frame.collect_schema()
        for prefix, dates in late.items():
            if (dates.of or prefix) not in have:
                raise DataError(f"dates.{prefix} names {columns_there([dates.of or prefix], have)}")
        planner = Planner(self.params.model_copy(update={"dates": dict(late)}), self.parse, self.dry)
        return planner._dates(frame)

    def _rules(self, frame: pl.LazyFrame) -> Iterator[tuple[str, pl.Expr]]:
        """(reason, condition that drops a row) in the order in which they apply; nan counts as missing."""
        have = frame.collect_schema()
        for name in ("require", "keep", "frequencies"):
            made = {f"{column}_frequency" for column in self.params.frequencies} if name == "keep" else set()
            unknown = [
                c for c in dict.fromkeys(getattr(self.params, name)) if c not in have and c not in made
            ]
            if unknown:
                there = columns_there(unknown, have).replace("there", "after the joins there", 1)
                raise DataError(f"{name} names {there}")
        for index, join in enumerate(self.params.joins):
            if join.how == "inner":
                yield f"no partner in {self.params.labels()[index]}", pl.col(f"{MATCH}{index}").is_null()
        for name in self.params.require:
            at = pl.col(name).fill_nan(None) if have[name].is_float() else pl.col(name)
            yield f"no value in {name}", at.is_null()
        for reason, text in self.params.where.items():
            condition = self.parse.parse(text, f"where.{reason}", have, nan_is_missing=True)
            dtype = frame.select(condition.alias("\0rule")).collect_schema()["\0rule"]
            if dtype not in (pl.Boolean, pl.Null):
                raise DataError(f"where.{reason}: {text!r} is {dtype}, not true or false; write a comparison")
            yield reason, condition.fill_null(value=False).not_()

    def _kept(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """The rows that stay, with the columns that are wanted."""
        inside = [c for c in rows.collect_schema().names() if not c.startswith("\0")]
        kept = rows.filter(pl.col(REASON).is_null())
        shares = {f"{name}_frequency": _frequency(name) for name in self.params.frequencies}
        clash = [name for name in shares if name in inside]
        if clash:
            raise DataError(f"frequencies make {', '.join(clash)}, which is already there")
        kept = kept.with_columns(**shares) if shares else kept
        return self._settled(kept.select(self.params.keep or [*inside, *shares]), "keep")

    def outputs(self, result: pl.LazyFrame, tables: Frames) -> dict[str, pl.LazyFrame]:
        """Each further table as a query over the result and the tables. Raises DataError."""
        if RESULT in tables and self.params.outputs:
            raise DataError(
                f"outputs: a table is called {RESULT!r}, as the joined one; rename it in the entry"
            )
        return {
            name: self._output(name, output, {**tables, RESULT: result})
            for name, output in self.params.outputs.items()
        }

    def _output(self, name: str, output: Output, tables: Frames) -> pl.LazyFrame:
        found = self.query(output.sql, f"outputs.{name}", tables)
        unknown = [column for column in output.by if column not in found.collect_schema()]
        if unknown:
            raise DataError(f"outputs.{name}: by names {columns_there(unknown, found.collect_schema())}")
        return found

    def check(self, frames: Frames) -> None:
        """Raises DataError for anything that the values name or compute and these tables do not allow."""
        if not self.dry:
            raise ValueError("a check takes tables without rows")
        tables = self.typed(frames)
        result = self.plan(tables).kept
        self.outputs(result, tables)
        for who, text in self.params.asked.items():
            self.parse.parse(text, who, result.collect_schema())


def checked(params: TableParams, frames: Frames) -> None:
    """Raises DataError for what does not fit the schemas of the tables; reads no row."""
    empty = {name: pl.DataFrame(schema=frame.collect_schema()).lazy() for name, frame in frames.items()}
    Planner(params, dry=True).check(empty)


def foreseen(params: TableParams, data: Dataset) -> list[str]:
    """What does not fit the columns of the set's files, as far as these are known before they are read.

    Where types are not certain, only columns that are not there.
    """
    try:
        known = data.schemas()
    except (OvernightError, OSError, ValueError):  # the step that reads it says so
        return []
    if not known:
        return []
    empty = {name: pl.DataFrame(schema=schema).lazy() for name, (schema, _) in known.items()}
    try:
        Planner(params, dry=True).check(empty)
    except DataError as error:
        certain = all(certain for _, certain in known.values())
        return [problem for problem in error.problems if certain or THERE_ARE in problem]
    except pl.exceptions.PolarsError:
        return []
    return []


def _made(prefix: str, dates: Dates, frame: pl.LazyFrame) -> bool:
    return f"{prefix}_{dates.parts[0]}" in frame.collect_schema()


def _reason(rules: list[pl.Expr]) -> pl.Expr:
    reasons = [pl.when(rule).then(pl.lit(number, pl.UInt16)) for number, rule in enumerate(rules)]
    return (pl.coalesce(reasons) if reasons else pl.lit(None, pl.UInt16)).alias(REASON)


def _frequency(name: str) -> pl.Expr:
    return pl.when(pl.col(name).is_not_null()).then(pl.len().over(name) / pl.len())


def _clock(name: str, dtype: Any, dates: Dates, where: str) -> pl.Expr:
    """The time as the clock of the zone shows it. Raises DataError."""
    if not dtype.is_temporal() or dtype in (pl.Duration, pl.Time):
        raise DataError(f"{where}: {name!r} is {dtype}, not a time; give it the type datetime under types")
    if dates.zone is None or dtype == pl.Date:
        return pl.col(name)
    if getattr(dtype, "time_zone", None) is None:
        raise DataError(
            f"{where}: {name!r} has no zone, so {dates.zone} cannot be told from it; state the zone that it "
            f"is in under types, such as `{name}: datetime {dates.zone}`, or leave zone out"
        )
    return pl.col(name).dt.convert_time_zone(dates.zone)


def _part(at: pl.Expr, part: str) -> pl.Expr:
    if part == "day_of_year":
        return at.dt.ordinal_day()
    found: pl.Expr = getattr(at.dt, part)()
    return found
