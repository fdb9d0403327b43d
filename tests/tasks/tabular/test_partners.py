"""Joins: partners by equal keys, by nearness and by intervals; who found none is told, or refused."""

from pathlib import Path

import polars as pl
import pytest

from overnight import Artifact, RecordingRun
from overnight.config import Source, validate
from overnight.data.content import Tables
from overnight.data.dataset import Dataset
from overnight.errors import ConfigError, DataError
from tasks.tabular import collected
from tasks.tabular.tables import Join, TableParams

DATA = Dataset(name="made", kind="table", reader="csv", options={"tables": {"fact": "fact.csv"}})


def joined(
    folder: Path, frames: dict[str, pl.DataFrame], **params: object
) -> tuple[RecordingRun, Artifact, pl.DataFrame]:
    run = RecordingRun(folder)
    content = Tables({name: frame.lazy() for name, frame in frames.items()})
    table = collected.table(run, TableParams(fact="fact", **params), DATA, content)
    return run, table, pl.read_parquet(table.path / "table.parquet")


def test_a_join_that_too_few_rows_meet_is_refused_with_ids_of_both_sides(tmp_path: Path) -> None:
    frames = {
        "fact": pl.DataFrame({"id": ["A1", "B2", "C3", "D4", None]}),
        "names": pl.DataFrame({"id": ["a1", "b2", "D4"], "name": ["x", "y", "z"]}),
    }
    with pytest.raises(DataError) as error:
        joined(tmp_path, frames, joins=[{"table": "names", "by": ["id"]}])
    text = str(error.value)
    assert "the join with names: 1 of 4 rows with a key (25.0 %) found a partner, of 5 rows" in text
    assert "Ours without one: 'A1', 'B2', 'C3'; not met in names: 'a1', 'b2'" in text
    run, _, rows = joined(tmp_path, frames, joins=[{"table": "names", "by": ["id"], "min_match": 0.25}])
    assert rows["name"].to_list() == [None, None, None, "z", None]
    assert "partners: 20.0 % in names" in run.of("note")[0]["text"]


def test_rows_without_a_key_are_no_reason_to_refuse(tmp_path: Path) -> None:
    frames = {
        "fact": pl.DataFrame({"id": [1, None, None, None]}),
        "names": pl.DataFrame({"id": [1], "name": ["x"]}),
    }
    _, table, _ = joined(tmp_path, frames, joins=[{"table": "names", "by": ["id"]}])
    assert table.meta()["profile"]["joins"][0]["share"] == 0.25
    frames["fact"] = pl.DataFrame({"id": [None, None]}, schema={"id": pl.Int64})
    with pytest.raises(DataError, match="0 of 0 rows with a key"):
        joined(tmp_path, frames, joins=[{"table": "names", "by": ["id"]}])


def test_ids_that_a_float_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    ids = [2**53, 2**53 + 2]
    frames = {
        "fact": pl.DataFrame({"id": ids, "n": [1, 2]}),
        "names": pl.DataFrame({"id": [float(i) for i in ids], "name": ["x", "y"]}),
    }
    with pytest.raises(DataError, match=r"2 values of names's id are floats beyond 2\^53"):
        joined(tmp_path, frames, joins=[{"table": "names", "by": ["id"], "min_match": 0}])


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (pl.Series([1, 2], dtype=pl.Int64), pl.Series([1.0, 2.5]), ["x", None]),
        (pl.Series([1, 2], dtype=pl.Int8), pl.Series([2**40, 2]), [None, "y"]),
        (pl.Series([1, 2], dtype=pl.UInt64), pl.Series([-1, 2]), [None, "y"]),
        (pl.Series([0.5, float("nan")]), pl.Series([0.5, float("nan")]), ["x", None]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), pl.Series(["b", "a"]), ["y", "x"]),
    ],
)  # fmt: skip
def test_keys_of_different_types_meet_where_they_are_equal(
    tmp_path: Path, ours: pl.Series, theirs: pl.Series, names: list[object]
) -> None:
    frames = {"fact": pl.DataFrame({"id": ours}), "names": pl.DataFrame({"key": theirs, "name": ["x", "y"]})}
    _, _, rows = joined(tmp_path, frames, joins=[{"table": "names", "by": {"id": "key"}}])
    assert rows["name"].to_list() == names
    assert rows["id"].dtype == ours.dtype


@pytest.mark.parametrize("other", [pl.Series(["1"]), pl.Series([True])])
def test_keys_that_cannot_be_compared_are_refused_before_a_row_is_read(
    tmp_path: Path, other: pl.Series
) -> None:
    frames = {"fact": pl.DataFrame({"id": [1.0]}), "names": pl.DataFrame({"id": other, "name": ["x"]})}
    with pytest.raises(
        DataError, match=r"id is Float64, names.id is .*; give both the same type under types"
    ):
        joined(tmp_path, frames, joins=[{"table": "names", "by": ["id"]}])


def test_a_table_joined_twice_has_two_metrics(tmp_path: Path) -> None:
    frames = {
        "fact": pl.DataFrame({"start": [1, 2], "stop": [2, 9]}),
        "places": pl.DataFrame({"id": [1, 2, 2], "name": ["x", "y", "z"]}),
    }
    joins = [{"table": "places", "by": {key: "id"}, "prefix": f"{key}_"} for key in ("start", "stop")]
    run, table, rows = joined(tmp_path, frames, joins=joins)
    assert (run.last("join/places-1_matched"), run.last("join/places-2_matched")) == (2, 1)
    assert rows["stop_name"].to_list() == ["y", None]
    assert "places-1 has 1 repeated keys (the first was taken)" in run.of("note")[0]["text"]
    assert [j["table"] for j in table.meta()["profile"]["joins"]] == ["places-1", "places-2"]


TRADES = pl.DataFrame({"symbol": ["b", "a", "a", "a", None], "at": [50, 30, 10, 5, 30]})
QUOTES = pl.DataFrame({"symbol": ["a", "a", "a", "b"], "at": [30, 10, 10, 1], "price": [3.0, 1.0, 9.0, 7.0]})


@pytest.mark.parametrize(
    ("asof", "prices"),
    [
        ({"column": "at"}, [7.0, 3.0, 1.0, None, None]),
        ({"column": "at", "within": 10}, [None, 3.0, 1.0, None, None]),
        ({"column": "at", "direction": "forward"}, [None, 3.0, 1.0, 1.0, None]),
    ],
)
def test_asof_finds_the_nearest_row_and_keeps_the_order(
    tmp_path: Path, asof: dict[str, object], prices: list[object]
) -> None:
    join = {"table": "quotes", "by": ["symbol"], "asof": asof, "min_match": 0.2}
    run, _, rows = joined(tmp_path, {"fact": TRADES, "quotes": QUOTES}, joins=[join])
    assert rows["price"].to_list() == prices
    assert rows.select("symbol", "at").equals(TRADES)
    assert run.last("join/quotes_repeated") == 1


def test_asof_of_times_takes_a_duration(tmp_path: Path) -> None:
    fact = pl.DataFrame({"at": ["2024-01-01T10:07:00Z", "2024-01-01T12:00:00Z"]})
    rates = pl.DataFrame({"from": ["2024-01-01T10:00:00Z"], "rate": [2]})
    types = {"fact": {"at": "datetime"}, "rates": {"from": "datetime"}}
    join = {"table": "rates", "asof": {"column": "at", "of": "from", "within": "10m"}}
    _, _, rows = joined(tmp_path, {"fact": fact, "rates": rates}, types=types, joins=[join])
    assert rows["rate"].to_list() == [2, None]


TARIFFS = pl.DataFrame(
    {"shop": [1, 1, 2], "since": [1, 5, 1], "until": [5, None, 9], "price": ["old", "new", "other"]}
)
VISITS = pl.DataFrame({"shop": [1, 1, 2, 1, 3], "day": [9, 5, 9, 0, 5]})


@pytest.mark.parametrize(
    ("closed", "rule", "found"),
    [
        ("both", "first", ["new", "old", "other", None, None]),
        ("left", "first", ["new", "new", None, None, None]),
        ("both", "multiply", ["new", "old", "new", "other", None, None]),
    ],
)
def test_between_finds_the_interval_that_holds_the_value(
    tmp_path: Path, closed: str, rule: str, found: list[object]
) -> None:
    between = {"column": "day", "start": "since", "end": "until", "closed": closed}
    join = {"table": "tariffs", "by": ["shop"], "between": between, "duplicates": rule, "min_match": 0.3}
    _, table, rows = joined(tmp_path, {"fact": VISITS, "tariffs": TARIFFS}, joins=[join])
    assert rows["price"].to_list() == found
    assert table.meta()["profile"]["joins"][0]["duplicate_keys"] == (closed == "both")
    if rule == "first":
        assert rows.select("shop", "day").equals(VISITS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"table": "t"}, "give `by`"),
        ({"table": "t", "asof": {"column": "a"}, "between": {"column": "a", "start": "b", "end": "c"}}, "either asof or between"),
        ({"table": "t", "asof": {"column": "a"}, "duplicates": "multiply"}, "may be first or error"),
        ({"table": "t", "by": ["a"], "min_match": 1.5}, "min_match"),
    ],
)  # fmt: skip
def test_values_that_make_no_join_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Join, values, Source(Path("x.yaml")))


@pytest.mark.parametrize(("column", "within"), [("at", "2h"), ("time", 5.5)])
def test_how_far_is_said_in_what_the_column_holds(tmp_path: Path, column: str, within: object) -> None:
    times = TRADES.with_columns(time=pl.lit("2024-01-01T10:00:00Z").str.to_datetime(time_zone="UTC"))
    join = {"table": "quotes", "asof": {"column": column, "within": within}, "take": []}
    with pytest.raises(DataError, match=f"within is {within!r}, but {column} is"):
        joined(tmp_path, {"fact": times, "quotes": times}, joins=[join])
