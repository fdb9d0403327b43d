"""What is in a table: nulls, range and distinct values of every column, as JSON, page and picture."""

import html
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.data.audit import audited
from overnight.data.content import Tables
from overnight.data.dataset import Dataset
from overnight.run import Run

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

Json = dict[str, Any]
DRAWN = 500_000  # rows in a histogram, about: every n-th of a larger table


def compare(run: Run, data: Dataset, content: Tables) -> None:
    """Hold the tables against the rules of their entry and, where it asks for that, the last good ones."""
    found = audited(data, content)
    if found is None:
        return
    run.metrics({"data/changes": len(found.changes)})
    for line in found.changes:
        run.log(f"data set {data.name!r} has changed: {line}")
    page = run.folder / "data.html"
    page.write_text(found.page(), encoding="utf-8")
    run.publish(page)


def columns(frame: "pl.LazyFrame") -> list[Json]:
    """One entry per column: name, type, nulls, distinct, min, max and, for numbers, the mean (6 digits)."""
    import polars as pl

    schema = frame.collect_schema()
    wanted = [
        e
        for name, dtype in schema.items()
        for e in (
            pl.col(name).null_count().alias(f"{name}\0nulls"),
            pl.col(name).drop_nulls().n_unique().alias(f"{name}\0distinct"),
            pl.col(name).min().alias(f"{name}\0min"),
            pl.col(name).max().alias(f"{name}\0max"),
            (pl.col(name).mean() if dtype.is_numeric() else pl.lit(None)).alias(f"{name}\0mean"),
        )
    ]
    row = frame.select(wanted).collect(engine="streaming").row(0, named=True)
    return [_column(name, str(dtype), row) for name, dtype in schema.items()]


def _column(name: str, dtype: str, row: Json) -> Json:
    nulls = int(row[f"{name}\0nulls"])
    return {
        "column": name,
        "type": dtype,
        "nulls": nulls,
        "distinct": int(row[f"{name}\0distinct"]),
        **{key: _plain(row[f"{name}\0{key}"]) for key in ("min", "max", "mean")},
    }


def _plain(value: Any) -> Any:
    """JSON keeps whole numbers, truth values and text; the rest becomes rounded numbers or text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def page(profile: Json) -> str:
    """The profile as one self-contained HTML page."""
    dropped = (
        "".join(f"<li>{html.escape(reason)}: {count:,}</li>" for reason, count in profile["dropped"].items())
        or "<li>none</li>"
    )
    joins = "".join(
        f"<li>{html.escape(j['table'])}: {j['matched']:,} of {profile['rows_in']:,} rows found a partner, "
        f"{j['duplicate_keys']:,} repeated keys ({html.escape(j['rule'])})</li>"
        for j in profile["joins"]
    )
    keys = ("column", "type", "nulls", "distinct", "min", "max", "mean")
    head = "".join(f"<th>{key}</th>" for key in keys)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(c[key])}</td>" for key in keys) + "</tr>" for c in profile["columns"]
    )
    return (
        "<!doctype html><meta charset='utf-8'><title>Table profile</title>"
        "<style>body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{padding:.25em .8em;border-bottom:1px solid "
        "#ddd;text-align:right}td:first-child,th:first-child{text-align:left}</style>"
        f"<h1>{profile['rows_in']:,} rows in, {profile['rows_out']:,} rows out</h1>"
        f"<h2>Dropped</h2><ul>{dropped}</ul><h2>Joins</h2><ul>{joins or '<li>none</li>'}</ul>"
        f"<h2>Columns</h2><table><tr>{head}</tr>{body}</table>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else html.escape(str(value)[:60])
    )


def picture(profile: Json, file: Path, most: int = 12) -> "Figure":
    """Missing values by column, and the histograms of the first `most` numeric columns that vary."""
    import polars as pl
    from matplotlib.figure import Figure

    frame = pl.scan_parquet(file)
    names = [c["column"] for c in profile["columns"] if c["mean"] is not None and c["distinct"] > 1][:most]
    every = max(1, profile["rows_out"] // DRAWN)
    values = frame.select(names).gather_every(every).collect(engine="streaming") if names else pl.DataFrame()
    distinct = {c["column"]: c["distinct"] for c in profile["columns"]}
    rows = max(2, -(-len(names) // 4))
    figure = Figure(figsize=(13, 2.1 * rows + 0.6), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=(1, 2.6))
    left, right = panels
    axes = left.subplots()
    shares = {c["column"]: 100 * c["nulls"] / max(1, profile["rows_out"]) for c in profile["columns"]}
    shown = sorted(shares, key=lambda name: -shares[name])[:24]
    axes.barh(shown[::-1], [shares[name] for name in shown[::-1]], color="#c4553b")
    axes.set_xlabel("missing, % of rows")
    axes.set_xlim(0, max(1.0, *(shares.values() or [1.0])) * 1.05)
    axes.tick_params(axis="y", labelsize=7)
    for name, axis in zip(names, right.subplots(rows, 4, squeeze=False).flat, strict=False):
        axis.hist(
            values[name].drop_nulls().cast(pl.Float64).to_numpy(),
            bins=min(40, distinct[name]),
            color="#3b6ea5",
        )
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in right.axes[len(names) :]:
        axis.set_axis_off()
    figure.suptitle(f"{profile['rows_in']:,} rows in, {profile['rows_out']:,} rows out", fontsize=11)
    return figure
