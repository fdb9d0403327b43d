"""The values of the ETL: which tables, how they join, what is made of them, and which rows stay."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from overnight.config import Params, Values, runtime_option
from overnight.data.entry import Entry
from overnight.errors import did_you_mean
from tasks.tabular import columns, rapids

Part = Literal["year", "quarter", "month", "week", "day", "weekday", "day_of_year", "hour", "minute", "date"]
RESULT = "result"  # what SQL of the outputs calls the joined table


class Nearest(Values):
    """The row whose value is the last one before ours, the first one after, or the nearest."""

    column: str = Field(description="column so far, a time or a number")
    of: str | None = Field(None, description="column of the table; the same name when left out")
    direction: Literal["backward", "forward", "nearest"] = "backward"
    within: Annotated[str, Field(pattern=r"^(\d+(ns|us|ms|s|m|h|d|w))+$")] | float | None = Field(
        None, description="how far it may be: a number, or for times such as 90s, 5m, 2h, 1d"
    )


class Between(Values):
    """The row whose interval holds our value; an end that is missing is open."""

    column: str = Field(description="column so far, a time or a number")
    start: str = Field(description="column of the table")
    end: str = Field(description="column of the table")
    closed: Literal["both", "left", "right", "none"] = Field("both", description="which ends belong to it")


class Join(Values):
    """A table whose columns are laid beside the rows that share its key."""

    table: str
    by: dict[str, str] = Field(
        {}, description="key, {column so far: column of the table}, or a list of names that both have"
    )
    asof: Nearest | None = Field(None, description="among the rows of the key, the one nearest by this")
    between: Between | None = Field(None, description="among the rows of the key, those that hold this")
    take: list[str] | None = Field(None, description="columns of the table, all when left out")
    prefix: str = Field("", description="put before the names of the columns taken")
    how: Literal["left", "inner"] = Field(
        "left", description="inner drops, and counts, the rows without a partner"
    )
    duplicates: Literal["first", "error", "multiply"] = Field(
        "first", description="what a key that the table holds more than once does"
    )
    min_match: float = Field(
        0.5, ge=0, le=1, description="share of the rows with a key that must find a partner"
    )

    @field_validator("by", mode="before")
    @classmethod
    def _same_name(cls, value: Any) -> Any:
        return {name: name for name in value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if not (self.by or self.asof or self.between):
            raise ValueError("give `by`, the columns that both have, or asof or between")
        if self.asof and self.between:
            raise ValueError("give either asof or between, or two joins")
        if self.asof and self.duplicates == "multiply":
            raise ValueError("asof finds one row: duplicates may be first or error")
        return self

    def keys(self) -> dict[str, str]:
        """Columns so far that must have a value for a match, each with its partner in the table."""
        return {**self.by, **dict(self.near() if self.asof else [])}

    def near(self) -> list[tuple[str, str]]:
        """(column so far, column of the table) of asof, or of both ends of between."""
        if self.asof:
            return [(self.asof.column, self.asof.of or self.asof.column)]
        ends = [self.between.start, self.between.end] if self.between else []
        return [(self.between.column, end) for end in ends] if self.between else []

    def theirs(self) -> list[str]:
        """The columns of the table that make the match."""
        return [*self.by.values(), *(other for _, other in self.near())]


class Dates(Values):
    """Parts of a time, each a column: hour of `local` becomes local_hour."""

    of: str | None = Field(None, description="the column; its name is the key when left out")
    zone: str | None = Field(
        None, description="of the clock that is read, such as Europe/Berlin; UTC when left out"
    )
    parts: list[Part] = Field(min_length=1, description="weekday: 1 is Monday")


class Output(Values):
    """A further table, made of the result and written beside it."""

    sql: str = Field("SELECT * FROM result", description=f"a query; `{RESULT}` is the joined table")
    form: Literal["parquet", "csv", "duckdb"] = "parquet"
    by: list[str] = Field([], description="columns whose values name the folders of a partitioned Parquet")

    @model_validator(mode="after")
    def _folders_of_parquet(self) -> Self:
        if self.by and self.form != "parquet":
            raise ValueError(f"by cuts Parquet into folders; the form is {self.form}")
        return self


class TableParams(Params):
    """Which tables, how they join, and which rows stay."""

    fact: str = Field(description="the table whose rows are kept, in their order")
    types: dict[str, dict[str, columns.Stated]] = Field(
        {}, description="{table: {column: type}}; a value that is not of its type is an error"
    )
    sql: dict[str, str] = Field({}, description="{new table: query over the tables, and those above it}")
    dates: dict[str, Dates] = Field({}, description="{prefix: parts of a time, by the clock of a zone}")
    joins: list[Join] = []
    derive: dict[str, str] = Field({}, description="{new column: SQL expression over the columns so far}")
    require: list[str] = Field([], description="rows without a value in one of these are dropped")
    where: dict[str, str] = Field(
        {}, description="{reason: SQL condition}; a row that does not meet it is dropped for that reason"
    )
    frequencies: list[str] = Field(
        [], description="columns that get another, NAME_frequency: the share of the rows with the same value"
    )
    keep: list[str] = Field([], description="the columns of the result, all when left out")
    outputs: dict[str, Output] = Field({}, description="further tables, {name: query and form}")
    engine: rapids.Engine = runtime_option("auto", "of Polars; gpu fails where there is none, auto does not")
    asked: dict[str, str] = runtime_option(
        {}, "{who asks: SQL expression} that steps below ask of the result: looked at before the join runs"
    )

    def unknown_tables(self, there: Iterable[str]) -> list[str]:
        """What names a table that is not among these, nor made by `sql`."""
        known = [*there, *self.sql]
        named = {"fact": self.fact, **{f"joins.{i}.table": join.table for i, join in enumerate(self.joins)}}
        named |= {f"types.{table}": table for table in self.types}
        clash = [f"sql.{name}: the data set has a table of that name" for name in self.sql if name in there]
        return clash + [
            f"{key} names the table {table!r}; there are {', '.join(sorted(known))}"
            f"{did_you_mean(table, known)}"
            for key, table in named.items()
            if table not in known
        ]

    def used(self) -> list[str]:
        """The fact table and those that it is joined with."""
        return list(dict.fromkeys([self.fact, *(join.table for join in self.joins)]))

    def labels(self) -> list[str]:
        """A name for each join: its table, numbered where it is joined again."""
        names = [join.table for join in self.joins]
        return [
            f"{name}-{names[: i + 1].count(name)}" if names.count(name) > 1 else name
            for i, name in enumerate(names)
        ]


def described_tables(data: Entry) -> list[str]:
    """The tables that a set's entry names; empty when only its files tell."""
    options: Mapping[str, Any] = data.options
    inner = options.get("options")
    found = options.get("tables") or (inner.get("tables") if isinstance(inner, dict) else None)
    return list(found) if isinstance(found, dict) else []


def asked_columns(names: Iterable[str], who: str) -> dict[str, str]:
    """Columns by name as what `asked` takes."""
    return {f"{who}.{name}": '"' + name.replace('"', '""') + '"' for name in names}
