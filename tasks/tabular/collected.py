"""A plan collected in one pass: written, counted, refused where the data does not fit, and handed on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from overnight.artifact import Artifact, DataSpec
from overnight.data.audit import audited
from overnight.data.content import CleaningCounts, Tables
from overnight.data.dataset import Dataset
from overnight.errors import DataError
from overnight.paths import shown
from overnight.run import Run
from tasks.tabular import outputs, page, profile, rapids
from tasks.tabular.expressions import OVERFLOW, Expressions, failed
from tasks.tabular.plan import MATCH, REASON, Frames, Plan, Planner, checked
from tasks.tabular.tables import TableParams

ROW_GROUP = 32768
WRITTEN = "\0written "
PACKED: Any = "snappy"  # read once or twice by the next steps: less time than lz4, far less than zstd
Json = dict[str, Any]


def table(run: Run, params: TableParams, data: Dataset, content: Tables) -> Artifact:
    """The artifact "table" of these tables. Raises DataError."""
    _compare(run, data, content)
    file, frames = run.folder / "joined.parquet", content.frames
    with _polars_errors(data.name, content):
        outputs.needs_duckdb(params.outputs)
        checked(params, frames)
        on_card = rapids.takes_card(params.engine, run)
        planner = Planner(params, Expressions(wide=not on_card))
        tables = planner.typed(frames)
        used = rapids.typed_files({name: tables[name] for name in params.used()}, params.engine, run)
        plan = planner.plan({**tables, **used})
        counts = _collected(run, planner, plan, frames, file, data)
        columns, sample = profile.columns(file)
        found = _profile(params, plan, counts, columns)
        written = outputs.written(run, planner, pl.scan_parquet(file), tables)
    for path in run.folder.glob("typed-*.parquet"):
        path.unlink()
    found |= {"outputs": written.rows}
    drawn = profile.drawn(sample, params.asked)
    saved = _hand_on(run, found, drawn, file, written)
    run.data(data.name, saved.digest, f"datasets/{data.name}.yaml", saved.spec)
    return saved


def _compare(run: Run, data: Dataset, content: Tables) -> None:
    """Hold the tables against the rules of their entry and, where it asks for that, the last good ones."""
    found = audited(data, content)
    if found is None:
        return
    run.metrics({"data/changes": len(found.changes)})
    for line in found.changes:
        run.log(f"data set {data.name!r} has changed: {line}")
    place = run.folder / "data.html"
    place.write_text(found.page(), encoding="utf-8")
    run.publish(place)


@contextmanager
def _polars_errors(name: str, content: Tables) -> Iterator[None]:
    """The value that is not of its type, else what Polars says about the data, without its plan.

    Ours get the set's name before each problem.
    """
    try:
        yield
    except DataError as error:
        raise DataError([f"data set {name!r}: {problem}" for problem in error.problems]) from None
    except pl.exceptions.PolarsError as error:
        problem = content.misfit()
        if problem:
            raise problem from None
        said = str(error).strip().splitlines()[0][:300]
        if OVERFLOW in said:
            raise DataError(
                f"a query under sql or outputs gives whole numbers that do not fit into 64 bits: {said}; "
                "compute with decimals: CAST(column AS DOUBLE)"
            ) from None
        raise DataError(f"data set {name!r}: {said}; mend the file, its entry or the config") from None


def _collected(
    run: Run, planner: Planner, plan: Plan, frames: Frames, file: Path, data: Dataset
) -> dict[str, int]:
    """Write the rows that stay, and count everything in the same pass. Raises DataError."""
    params = planner.params
    _refuse_repeated(plan)
    flags = [(f"{MATCH}{i}", pl.col(f"{MATCH}{i}").sum()) for i, _ in enumerate(plan.partners)]
    drops = [(f"drop{i}", (pl.col(REASON) == i).sum()) for i, _ in enumerate(plan.reasons)]
    sink = plan.kept.sink_parquet(file, row_group_size=ROW_GROUP, compression=PACKED, lazy=True)
    queries = {
        "": sink,
        "rows": plan.rows.select(pl.len().alias("joined"), *(e.alias(name) for name, e in [*flags, *drops])),
    }
    if any(join.duplicates == "multiply" for join in params.joins):
        queries["fact"] = plan.fact.select(pl.len().alias("fact"))
    for i, partner in enumerate(plan.partners):
        queries[f"repeated{i}"] = partner.repeated
        queries |= {f"inexact{i} {what}": query for what, query in partner.floats}
    try:
        misfits = _misfits(planner, frames)
        found = rapids.collect(list(queries.values()), params.engine, run, misfits.values())
    except pl.exceptions.PolarsError as error:
        raise failed(plan.expressions) or error from None
    counted = dict(zip(misfits, found[len(queries) :], strict=True))
    _refuse_misfits(planner, frames, counted)
    mended = _mended(planner, counted)
    data.refuse(mended)
    run.cleaned(mended)
    counts = dict[str, int]()
    for name, one in zip(queries, found, strict=False):
        row = one.row(0, named=True) if name else {}
        counts |= {
            name if key in ("repeated", "inexact") else key: int(value or 0) for key, value in row.items()
        }
    _refuse_matches(plan, counts)
    return {"fact": counts["joined"], **counts}


def _misfits(planner: Planner, frames: Frames) -> dict[str, pl.LazyFrame]:
    """For each table whose types are stated: how many values of each column are there but do not fit."""
    found = dict[str, pl.LazyFrame]()
    for table in planner.params.types:
        casts = planner.casts(table, frames[table])
        bad = [_unfit(name, to).sum().alias(name) for name, to in casts.items()]
        notations = planner.notations(table, frames[table])
        bad += [other.sum().alias(f"{WRITTEN}{name}") for name, other in notations.items()]
        found |= {table: frames[table].select(bad)} if bad else {}
    return found


def _unfit(name: str, to: pl.Expr) -> pl.Expr:
    return pl.col(name).is_not_null() & to.is_null()


def _refuse_misfits(planner: Planner, frames: Frames, counted: Mapping[str, pl.DataFrame]) -> None:
    problems = list[str]()
    for table, counts in counted.items():
        casts = planner.casts(table, frames[table])
        for name in casts:
            count = counts[name][0]
            if count:
                rows = frames[table].select(name).with_row_index(MATCH, 1).filter(_unfit(name, casts[name]))
                row, value = rows.head(1).collect(engine="streaming").row(0)
                stated = planner.params.types[table][name]
                problems.append(
                    f"{table}.{name}: {count} values are not {stated}; the first is {value!r} in data "
                    f"row {row}"
                )
    if problems:
        raise DataError(problems)


def _mended(planner: Planner, counted: Mapping[str, pl.DataFrame]) -> CleaningCounts:
    """Values that a type of the config reads although a computer writes such numbers in another way."""
    found = CleaningCounts()
    for table, counts in counted.items():
        for name, kind in planner.params.types[table].items():
            if f"{WRITTEN}{name}" in counts.columns:
                rule = f"text of {table}.{name} written in another way than the {kind} it is read as"
                found[rule] += counts[f"{WRITTEN}{name}"][0]
    return +found


def _refuse_repeated(plan: Plan) -> None:
    """Raises DataError for keys held more than once where the values call that an error; before the join."""
    problems = list[str]()
    for partner in plan.partners:
        if partner.join.duplicates != "error":
            continue
        keys = partner.keys
        counts = partner.right.group_by(keys).len().filter(pl.col("len") > 1)
        twice = counts.sort("len", *keys, descending=True).collect(engine="streaming")
        if twice.height:
            named = zip(partner.join.theirs(), twice.row(0), strict=False)
            first = ", ".join(f"{name}={value!r}" for name, value in named)
            problems.append(
                f"{partner.join.table} holds {twice.height} keys more than once (first {first}); set "
                "duplicates: first or multiply"
            )
    if problems:
        raise DataError(problems)


def _refuse_matches(plan: Plan, counts: Mapping[str, int]) -> None:
    """Raises DataError for joins that too few rows met, and for keys that a float cannot hold exactly."""
    problems = list[str]()
    for i, partner in enumerate(plan.partners):
        for what, _ in partner.floats:
            inexact = counts[f"inexact{i} {what}"]
            if inexact:
                problems.append(
                    f"the join with {partner.label}: {inexact} values of {what} are floats beyond 2^53, "
                    "which cannot tell an id from the next; read the column as text or whole "
                    "numbers (types of the "
                    "entry)"
                )
        refused = partner.refusal(counts["joined"], counts[f"{MATCH}{i}"])
        problems += [refused] if refused else []
    if problems:
        raise DataError(problems)


# ------------------------------------------------------------------------------------------------ handing on


def _profile(params: TableParams, plan: Plan, counts: Mapping[str, int], columns: list[Json]) -> Json:
    dropped = {reason: counts[f"drop{i}"] for i, reason in enumerate(plan.reasons)}
    joins = [
        {
            "table": partner.label,
            "matched": counts[f"{MATCH}{i}"],
            "share": round(counts[f"{MATCH}{i}"] / max(1, counts["joined"]), 6),
            "duplicate_keys": counts[f"repeated{i}"],
            "rule": partner.join.duplicates,
        }
        for i, partner in enumerate(plan.partners)
    ]
    rows = counts["joined"] - sum(dropped.values())
    if rows == 0:
        why = ", ".join(f"{reason}: {n}" for reason, n in dropped.items() if n) or "the fact table is empty"
        raise DataError(
            f"the table {params.fact!r} has no row left of {counts['fact']} ({why}); loosen require, where "
            "or the inner joins"
        )
    return {
        "rows_in": counts["fact"],
        "rows_joined": counts["joined"],
        "rows_added": counts["joined"] - counts["fact"],
        "rows_out": rows,
        "dropped": dropped,
        "joins": joins,
        "columns": columns,
    }


def _hand_on(run: Run, found: Json, drawn: list[Json], file: Path, written: outputs.Written) -> Artifact:
    """Log the profile, publish it to look at, and save the table."""
    run.metrics(
        {
            "rows/in": found["rows_in"],
            "rows/out": found["rows_out"],
            "rows/dropped": sum(found["dropped"].values()),
            "rows/added": found["rows_added"],
        }
    )
    for reason, count in found["dropped"].items():
        run.log(f"dropped, {reason}: {count} of {found['rows_joined']} rows")
    for join in found["joins"]:
        matched = {f"join/{join['table']}_matched": join["matched"]}
        run.metrics({**matched, f"join/{join['table']}_repeated": join["duplicate_keys"]})
    place = run.folder / "profile.html"
    place.write_text(page.page(found, drawn), encoding="utf-8")
    run.publish(place)
    run.note(_note(found))
    saved = run.save(
        "table",
        DataSpec(rows=found["rows_out"]),
        meta={"profile": found},
        files={"table.parquet": file.replace, **written.files},
    )
    for name, rows in written.rows.items():
        run.log(f"output {name}: {rows} rows in {shown(written.places[name])}")
    return saved


RULES = {"first": "the first was taken", "multiply": "each made a row", "error": "refused"}


def _note(found: Json) -> str:
    """What came out, what share of the rows found a partner, and what was repeated or not finite."""
    parts = [f"{found['rows_in']:,} rows in, {found['rows_out']:,} out, {len(found['columns'])} columns"]
    shares = [f"{100 * j['share']:.1f} % in {j['table']}" for j in found["joins"]]
    parts += [f"partners: {', '.join(shares)}"] if shares else []
    parts += [
        f"{j['table']} has {j['duplicate_keys']:,} repeated keys ({RULES[j['rule']]})"
        for j in found["joins"]
        if j["duplicate_keys"]
    ]
    kinds = [(kind, c["column"], c.get(kind, 0)) for c in found["columns"] for kind in ("nan", "inf")]
    odd = [f"{count:,} {kind} in {column}" for kind, column, count in kinds if count]
    parts += [", ".join(odd[:5])] if odd else []
    parts += [f"outputs: {', '.join(found['outputs'])}"] if found["outputs"] else []
    return "; ".join(parts)
