"""Join tables into one, typed and profiled: the extract-transform-load step, driven by values alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from overnight.artifact import Artifact, DataSpec
from overnight.config import Params, Values, runtime_option
from overnight.data.content import Tables
from overnight.data.dataset import Dataset
from overnight.data.entry import Entry
from overnight.errors import DataError
from overnight.gpu.card import Card
from overnight.memory.formulas import Formula
from overnight.run import Run
from overnight.step import step
from tasks.tabular import columns, memory, profile, rapids

if TYPE_CHECKING:
    import polars as pl

Frames = Mapping[str, "pl.LazyFrame"]
REASON, MATCH = "\0reason", "\0match"
ROW_GROUP = 131_072  # fixed, so that the bytes do not depend on the number of threads


class Join(Values):
    """A table whose columns are laid beside the rows that share its key."""

    table: str
    by: dict[str, str] = Field(
        description="key, {column so far: column of the table}, or a list of names that both have",
        min_length=1,
    )
    take: list[str] | None = Field(None, description="columns of the table, all when left out")
    prefix: str = Field("", description="put before the names of the columns taken")
    how: Literal["left", "inner"] = Field(
        "left", description="inner drops, and counts, the rows without a partner"
    )
    duplicates: Literal["first", "error", "multiply"] = Field(
        "first", description="what a key that the table holds more than once does"
    )

    @field_validator("by", mode="before")
    @classmethod
    def _same_name(cls, value: Any) -> Any:
        return {name: name for name in value} if isinstance(value, list) else value


class TableParams(Params):
    """Which tables, how they join, and which rows stay."""

    fact: str = Field(description="the table whose rows are kept, in their order")
    types: dict[str, dict[str, columns.Type]] = Field(
        {}, description="{table: {column: type}}; a value that is not of its type is an error"
    )
    joins: list[Join] = []
    derive: dict[str, str] = Field({}, description="{new column: SQL expression over the columns so far}")
    require: list[str] = Field([], description="rows without a value in one of these are dropped")
    where: dict[str, str] = Field(
        {}, description="{reason: SQL condition}; a row that does not meet it is dropped for that reason"
    )
    keep: list[str] = Field([], description="the columns of the result, all when left out")
    engine: rapids.Engine = runtime_option("auto", "of Polars; gpu fails where there is none, auto does not")


def tables_spec(params: TableParams, data: Entry) -> DataSpec | None:
    """As many rows as the fact table has, if its entry says; what is dropped is not known before."""
    rows = data.expected.counts.get(params.fact)
    return DataSpec(rows=rows) if rows else None


def tables_peak(params: TableParams, data: Entry) -> Formula:
    """What the join takes of the card, by the bytes of its tables."""
    if params.engine in ("streaming", "in-memory"):
        return Formula(why=f"engine: {params.engine} runs on the processor")
    return memory.joined(data, list(dict.fromkeys([params.fact, *(join.table for join in params.joins)])))


def tables_probe(card: Card | None, params: TableParams, _data: Entry) -> dict[str, str]:
    """The engine that will run the queries: engines may round sums differently."""
    return {"engine": rapids.engine_choice(card, params.engine)}


@step(gpu=True, vram_mib=2048, spec=tables_spec, peak=tables_peak, probe=tables_probe)
def join_tables(run: Run, params: TableParams, data: Dataset) -> Artifact:
    """Join named tables to one typed Parquet file with the fact table's rows in their order.

    Its profile is in meta()["profile"].
    Logs rows/in, rows/out, rows/dropped and each join's matches; publishes the profile as a page and a
    picture. Raises DataError for a missing table or column, a value of the wrong type, an expression that
    fails, or when no row is left.
    """
    content = data.load_as(Tables)
    run.cleaned(content.cleaned)
    for table, rows in content.bad_rows.items():
        bad = run.folder / f"bad-rows-{table}.csv"
        rows.write_csv(bad)
        run.publish(bad)
    profile.compare(run, data, content)
    file = run.folder / "joined.parquet"
    with _polars_errors(data.name, content):
        used = dict.fromkeys([params.fact, *(join.table for join in params.joins)])
        typed = _typed(content.frames, params, data.name)
        frames = rapids.typed_files({name: typed[name] for name in used}, params.engine, run)
        repeated = [_repeated(frames[join.table], join, data.name) for join in params.joins]
        counts = _write(run, params, frames[params.fact], _joined(frames, params), file)
        found = _profile(params, counts, repeated, file)
    for path in run.folder.glob("typed-*.parquet"):
        path.unlink()
    saved = _hand_on(run, found, file)
    run.data(data.name, saved.digest, f"datasets/{data.name}.yaml", saved.spec)
    return saved


@contextmanager
def _polars_errors(name: str, content: Tables) -> Iterator[None]:
    """The value that is not of its type, else what Polars says about the data, without its plan."""
    import polars as pl

    try:
        yield
    except pl.exceptions.PolarsError as error:
        problem = content.misfit()
        if problem:
            raise problem from None
        raise DataError(
            f"data set {name!r}: {str(error).strip().splitlines()[0][:300]}; mend the file, its entry or "
            "the config"
        ) from None


# ------------------------------------------------------------------------------------------------ checking


def _typed(frames: Frames, params: TableParams, name: str) -> dict[str, "pl.LazyFrame"]:
    """The tables with their columns cast.

    Raises DataError with everything that is missing or not of its type.
    """
    schemas = {table: dict(frame.collect_schema()) for table, frame in frames.items()}
    problems = list(_missing(params, schemas))
    if problems:
        raise DataError([f"data set {name!r}: {problem}" for problem in problems])
    typed = {}
    for table, frame in frames.items():
        kinds = params.types.get(table, {})
        wanted = {
            column: columns.cast(column, schemas[table][column], kind) for column, kind in kinds.items()
        }
        casts = {column: expression for column, expression in wanted.items() if expression is not None}
        for column, (count, row, value) in columns.misfits(frame, casts).items():
            problems.append(
                f"{table}.{column}: {count} values are not {kinds[column]}; the first is {value!r} in data "
                f"row {row}"
            )
        typed[table] = frame.with_columns(**casts)
    if problems:
        raise DataError([f"data set {name!r}: {problem}" for problem in problems])
    return typed


def _missing(params: TableParams, schemas: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Tables and columns that the values name and the data set does not have."""
    wanted = [("types", table, list(columns)) for table, columns in params.types.items()]
    wanted += [("joins", join.table, [*join.by.values(), *(join.take or [])]) for join in params.joins]
    for where, table, names in [("fact", params.fact, []), *wanted]:
        if table not in schemas:
            yield f"{where} names the table {table!r}; there are {', '.join(sorted(schemas))}"
            continue
        for column in names:
            if column not in schemas[table]:
                yield f"{where} names the column {column!r} of {table!r}; it has {', '.join(schemas[table])}"


def _repeated(frame: "pl.LazyFrame", join: Join, name: str) -> int:
    """Rows of a joined table beyond the first with their key.

    Rows without a key never match and are not counted.
    """
    import polars as pl

    keys = list(join.by.values())
    counts = (
        frame.drop_nulls(keys)
        .group_by(keys)
        .len()
        .filter(pl.col("len") > 1)
        .sort("len", *keys, descending=True)
        .collect(engine="streaming")
    )
    extra = int(counts["len"].sum()) - counts.height
    if extra and join.duplicates == "error":
        key = ", ".join(f"{k}={v!r}" for k, v in zip(keys, counts.row(0), strict=False))
        raise DataError(
            f"data set {name!r}: {join.table} holds {counts.height} keys more than once (first {key}); set "
            "duplicates: first or multiply"
        )
    return extra


# ------------------------------------------------------------------------------------------------ joining


def _joined(frames: Frames, params: TableParams) -> "pl.LazyFrame":
    """All rows, with a flag for each join's match.

    The column REASON holds the number of the first rule that drops the row.
    """
    import polars as pl

    frame = frames[params.fact]
    for index, join in enumerate(params.joins):
        frame = _join(frame, frames[join.table], join, f"{MATCH}{index}")
    for name, expression in params.derive.items():
        frame = frame.with_columns(_sql(expression, f"derive.{name}").alias(name))
    have = frame.collect_schema().names()
    unknown = [c for c in dict.fromkeys([*params.require, *params.keep]) if c not in have]
    if unknown:
        named = ", ".join(c for c in have if not c.startswith(MATCH))
        raise DataError(
            f"require or keep names {', '.join(map(repr, unknown))}; after the joins there are {named}"
        )
    rules = [when for _, when in _rules(params)]
    reasons = [pl.when(rule).then(pl.lit(number, pl.UInt16)) for number, rule in enumerate(rules)]
    return frame.with_columns((pl.coalesce(reasons) if reasons else pl.lit(None, pl.UInt16)).alias(REASON))


def _join(left: "pl.LazyFrame", right: "pl.LazyFrame", join: Join, flag: str) -> "pl.LazyFrame":
    """Lay the columns taken beside the rows; `flag` is true where the key was found."""
    import polars as pl

    have, theirs = left.collect_schema(), right.collect_schema()
    casts = [
        _like(have, theirs, join, mine, other).alias(f"\0key{i}")
        for i, (mine, other) in enumerate(join.by.items())
    ]
    taken = {
        c: join.prefix + c
        for c in (join.take if join.take is not None else [c for c in theirs if c not in join.by.values()])
    }
    clash = [name for name in taken.values() if name in have]
    if clash:
        raise DataError(
            f"the join with {join.table} brings {', '.join(clash)}, which is already there; give the join a "
            "prefix or take less"
        )
    keys = [f"\0key{i}" for i in range(len(casts))]
    right = right.select(
        *casts, *(pl.col(c).alias(n) for c, n in taken.items()), pl.lit(value=True).alias(flag)
    ).drop_nulls(keys)
    if join.duplicates == "first":
        right = right.unique(subset=keys, keep="first", maintain_order=True)
    order: Literal["left", "left_right"] = "left_right" if join.duplicates == "multiply" else "left"
    return left.join(right, left_on=list(join.by), right_on=keys, how="left", maintain_order=order)


def _like(have: "pl.Schema", theirs: "pl.Schema", join: Join, mine: str, other: str) -> "pl.Expr":
    """The joined table's key in the type of ours; numbers adapt, anything else must agree."""
    import polars as pl

    if mine not in have:
        raise DataError(
            f"the join with {join.table} is on {mine!r}, which is not there yet; there are {', '.join(have)}"
        )
    if have[mine] == theirs[other]:
        return pl.col(other)
    if have[mine].is_numeric() and theirs[other].is_numeric():
        exact = columns.cast(other, theirs[other], "int") if have[mine].is_integer() else None
        return (pl.col(other) if exact is None else exact).cast(have[mine], strict=False)
    raise DataError(
        f"the join with {join.table}: {mine} is {have[mine]}, {join.table}.{other} is {theirs[other]}; give "
        "both the same type under types"
    )


def _rules(params: TableParams) -> "Iterator[tuple[str, pl.Expr]]":
    """(reason, condition that drops a row) in the order in which they apply."""
    import polars as pl

    for index, join in enumerate(params.joins):
        if join.how == "inner":
            yield f"no partner in {join.table}", pl.col(f"{MATCH}{index}").is_null()
    for column in params.require:
        yield f"no value in {column}", pl.col(column).is_null()
    for reason, condition in params.where.items():
        yield reason, _sql(condition, f"where.{reason}").fill_null(value=False).not_()


def _sql(expression: str, where: str) -> "pl.Expr":
    import polars as pl

    try:
        return pl.sql_expr(expression)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{where}: {expression!r} is not an SQL expression: {str(error).splitlines()[0]}"
        ) from None


# ------------------------------------------------------------------------------------------------ handing on


def _write(
    run: Run, params: TableParams, fact: "pl.LazyFrame", frame: "pl.LazyFrame", file: Path
) -> dict[str, int]:
    """Write the rows that stay, and count everything in the same pass."""
    import polars as pl

    flags = [pl.col(f"{MATCH}{i}").sum().alias(f"match{i}") for i in range(len(params.joins))]
    drops = [(pl.col(REASON) == i).sum().alias(f"drop{i}") for i, _ in enumerate(_rules(params))]
    inside = [c for c in frame.collect_schema().names() if not c.startswith("\0")]
    kept = frame.filter(pl.col(REASON).is_null()).select(params.keep or inside)
    sink = kept.sink_parquet(file, row_group_size=ROW_GROUP, lazy=True)
    queries = [
        sink,
        frame.select(pl.len().alias("joined"), *flags, *drops),
        fact.select(pl.len().alias("rows")),
    ]
    _, counts, total = rapids.collect(queries, params.engine, run)
    return {
        name: int(value or 0)
        for name, value in {**counts.row(0, named=True), **total.row(0, named=True)}.items()
    }


def _profile(
    params: TableParams, counts: Mapping[str, int], repeated: list[int], file: Path
) -> dict[str, Any]:
    import polars as pl

    frame = pl.scan_parquet(file)
    dropped = {reason: counts[f"drop{i}"] for i, (reason, _) in enumerate(_rules(params))}
    joins = [
        {
            "table": j.table,
            "matched": counts[f"match{i}"],
            "duplicate_keys": repeated[i],
            "rule": j.duplicates,
        }
        for i, j in enumerate(params.joins)
    ]
    rows = int(frame.select(pl.len()).collect().item())
    if rows == 0:
        why = ", ".join(f"{reason}: {n}" for reason, n in dropped.items() if n) or "the fact table is empty"
        raise DataError(
            f"the table {params.fact!r} has no row left of {counts['rows']} ({why}); loosen require, where "
            "or the inner joins"
        )
    added = counts["joined"] - counts["rows"]
    return {
        "rows_in": counts["rows"],
        "rows_added": added,
        "rows_out": rows,
        "dropped": dropped,
        "joins": joins,
        "columns": profile.columns(frame),
    }


def _hand_on(run: Run, found: dict[str, Any], file: Path) -> Artifact:
    """Log the profile, publish it to look at, and save the table."""
    dropped = sum(found["dropped"].values())
    run.metrics(
        {
            "rows/in": found["rows_in"],
            "rows/out": found["rows_out"],
            "rows/dropped": dropped,
            "rows/added": found["rows_added"],
        }
    )
    for reason, count in found["dropped"].items():
        run.log(f"dropped, {reason}: {count} of {found['rows_in']} rows")
    for join in found["joins"]:
        run.metrics(
            {
                f"join/{join['table']}_matched": join["matched"],
                f"join/{join['table']}_repeated": join["duplicate_keys"],
            }
        )
    page = run.folder / "profile.html"
    page.write_text(profile.page(found), encoding="utf-8")
    run.publish(page)
    run.picture("profile", profile.picture(found, file))
    partners = ", ".join(
        f"{100 * j['matched'] / max(1, found['rows_in']):.1f} % in {j['table']}" for j in found["joins"]
    )
    run.note(
        f"{found['rows_in']:,} rows in, {found['rows_out']:,} out, {len(found['columns'])} columns"
        + (f"; partners: {partners}" if partners else "")
    )
    return run.save(
        "table",
        DataSpec(rows=found["rows_out"]),
        meta={"profile": found},
        files={"table.parquet": file.replace},
    )
