"""Further tables made of the result: Parquet (also cut into folders), CSV, or tables of one DuckDB file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from overnight.artifact import Writer
from overnight.errors import DataError
from overnight.run import Run
from tasks.tabular.plan import Planner
from tasks.tabular.tables import Output

FOLDER, DUCKDB = "outputs", "tables.duckdb"


@dataclass
class Written:
    """rows: of each output; places: where it will be; files: what to save with the artifact."""

    rows: dict[str, int] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)
    files: dict[str, Writer] = field(default_factory=dict)


def needs_duckdb(outputs: Mapping[str, Output]) -> None:
    """Raises DataError when an output is to be a DuckDB table and the package is not there."""
    wanted = [name for name, output in outputs.items() if output.form == "duckdb"]
    if wanted and find_spec("duckdb") is None:
        raise DataError(
            f"outputs.{wanted[0]}: form: duckdb needs the package duckdb, which is not installed; `pip "
            "install duckdb`, or write parquet"
        )


def written(run: Run, planner: Planner, result: pl.LazyFrame, tables: Mapping[str, pl.LazyFrame]) -> Written:
    """Write the outputs into the run's folder, one by one in batches."""
    found = Written()
    for name, frame in planner.outputs(result, tables).items():
        output = planner.params.outputs[name]
        place = f"{FOLDER}/{DUCKDB if output.form == 'duckdb' else name}"
        if output.form != "duckdb" and not output.by:
            place += f".{output.form}"
        path = run.folder / place
        path.parent.mkdir(exist_ok=True)
        found.rows[name] = _write(name, output, frame, path)
        found.places[name] = path
        if output.form != "duckdb":  # its bytes differ from run to run, and the artifact's digest must not
            found.places[name] = run.folder / "out" / "table" / place
            found.files[place] = _mover(path)
    return found


def _mover(path: Path) -> Writer:
    return lambda target: os.replace(path, target)


def _write(name: str, output: Output, frame: pl.LazyFrame, path: Path) -> int:
    """Returns the rows."""
    if output.form == "csv":
        return _written(frame.sink_csv(path, lazy=True), frame)
    if output.form == "duckdb":
        return _to_duckdb(name, frame, path)
    if output.by:
        parts = pl.PartitionBy(path, key=output.by, include_key=False)
        return _written(frame.sink_parquet(parts, mkdir=True, lazy=True), frame)
    return _written(frame.sink_parquet(path, lazy=True), frame)


def _written(sink: pl.LazyFrame, frame: pl.LazyFrame) -> int:
    _, counted = pl.collect_all([sink, frame.select(pl.len())], engine="streaming")
    return int(counted.item())


def _to_duckdb(name: str, frame: pl.LazyFrame, path: Path) -> int:
    """Through Parquet, so that neither side holds the table in memory."""
    import duckdb

    part = path.with_suffix(".parquet")
    rows = _written(frame.sink_parquet(part, lazy=True), frame)
    try:
        with duckdb.connect(path) as connection:
            connection.read_parquet(str(part)).create('"' + name.replace('"', '""') + '"')
    except duckdb.Error as error:
        raise DataError(f"outputs.{name}: DuckDB does not take it: {str(error).splitlines()[0]}") from None
    finally:
        part.unlink()
    return rows
