"""The plan: queries, parts of times by the clock of a zone, frequencies, and mistakes found before a row is read."""

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from flows.etl import Etl
from overnight import paths
from overnight.data.dataset import Dataset
from overnight.errors import ConfigError, DataError
from tests.tasks.tabular.test_partners import joined

HOURS = [datetime(2024, month, 15, 2, tzinfo=UTC) for month in (1, 7)]


def test_parts_of_a_time_are_read_from_the_clock_of_a_zone(tmp_path: Path) -> None:
    dates = {
        "at": {"parts": ["hour", "weekday"]},
        "local": {"of": "at", "zone": "America/New_York", "parts": ["hour", "weekday", "date"]},
    }
    _, _, rows = joined(tmp_path, {"fact": pl.DataFrame({"at": HOURS})}, dates=dates)
    assert rows.drop("at").rows() == [
        (2, 1, 21, 7, date(2024, 1, 14)),  # 5 h behind in winter
        (2, 1, 22, 7, date(2024, 7, 14)),  # 4 in summer
    ]


def test_a_time_of_a_joined_table_has_parts_too(tmp_path: Path) -> None:
    frames = {"fact": pl.DataFrame({"id": [1, 2]}), "born": pl.DataFrame({"id": [1, 2], "at": HOURS})}
    joins = [{"table": "born", "by": ["id"]}]
    _, _, rows = joined(tmp_path, frames, joins=joins, dates={"at": {"parts": ["month"]}})
    assert rows["at_month"].to_list() == [1, 7]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"at": {"zone": "Europe/Berlin", "parts": ["hour"]}}, "'at' has no zone, .* `at: datetime Europe/Berlin`"),
        ({"n": {"parts": ["hour"]}}, "dates.n: 'n' is Int64, not a time"),
        ({"x": {"parts": ["hour"]}}, "dates.x names 'x'; there are at, n"),
    ],
)  # fmt: skip
def test_what_is_no_time_has_no_parts(tmp_path: Path, values: dict[str, object], message: str) -> None:
    fact = pl.DataFrame({"at": HOURS, "n": [1, 2]}).with_columns(pl.col("at").dt.replace_time_zone(None))
    with pytest.raises(DataError, match=message):
        joined(tmp_path, {"fact": fact}, dates=values)


def test_an_unknown_zone_is_named(tmp_path: Path) -> None:
    dates = {"at": {"zone": "Europe/Berlyn", "parts": ["hour"]}}
    with pytest.raises(DataError, match="Europe/Berlyn"):
        joined(tmp_path, {"fact": pl.DataFrame({"at": HOURS})}, dates=dates)


def test_a_value_that_an_expression_cannot_take_names_the_expression(tmp_path: Path) -> None:
    fact = pl.DataFrame({"code": ["1", "x"]})
    with pytest.raises(DataError, match=r"derive.n: 'CAST\(code AS BIGINT\)' fails: conversion .* \[\"x\"\]"):
        joined(tmp_path, {"fact": fact}, derive={"n": "CAST(code AS BIGINT)"})


SALES = pl.DataFrame({"shop": ["a", "a", "b", None], "price": [1.0, 3.0, 5.0, 7.0]})


def test_queries_make_tables_that_are_joined(tmp_path: Path) -> None:
    sql = {
        "ranked": "SELECT shop, price, RANK() OVER (PARTITION BY shop ORDER BY price) AS nth FROM sales",
        "shops": "SELECT shop, SUM(price) AS total FROM ranked GROUP BY shop",
    }
    _, _, rows = joined(
        tmp_path,
        {"sales": SALES},
        sql={**sql, "fact": "SELECT * FROM ranked WHERE shop IS NOT NULL"},
        joins=[{"table": "shops", "by": ["shop"]}],
    )
    assert rows.rows() == [("a", 1.0, 1, 4.0), ("a", 3.0, 2, 4.0), ("b", 5.0, 1, 5.0)]


def test_frequencies_are_shares_of_the_rows_that_stay(tmp_path: Path) -> None:
    _, _, rows = joined(
        tmp_path, {"fact": SALES}, where={"dear": "price < 6"}, frequencies=["shop"], keep=["shop_frequency"]
    )
    assert [round(share, 3) for share in rows["shop_frequency"]] == [0.667, 0.667, 0.333]


def test_nan_counts_as_missing_and_is_counted(tmp_path: Path) -> None:
    fact = pl.DataFrame({"id": range(5), "x": [1.0, float("nan"), float("inf"), None, -2.0]})
    run, table, rows = joined(tmp_path, {"fact": fact}, require=["x"])
    assert rows["id"].to_list() == [0, 2, 4]
    assert "1 inf in x" in run.of("note")[0]["text"]
    _, table, rows = joined(
        tmp_path, {"fact": fact}, where={"not above -1": "x > -1", "odd": "x IS NULL OR x > 0"}
    )
    assert rows["id"].to_list() == [0, 2]
    assert table.meta()["profile"]["dropped"] == {"not above -1": 3, "odd": 0}
    _, table, rows = joined(tmp_path, {"fact": fact}, derive={"y": "x / (id - 1)"})
    found = {c["column"]: c for c in table.meta()["profile"]["columns"]}
    assert (found["x"]["nan"], found["x"]["inf"], found["x"]["min"], found["x"]["max"]) == (1, 1, -2.0, 1.0)
    assert rows["x"].is_nan().sum() == 1


def test_whole_numbers_beyond_64_bits_name_their_expression(tmp_path: Path) -> None:
    fact = pl.DataFrame({"id": [1, 2**63 - 1]})
    with pytest.raises(
        DataError, match=r"data set 'made': derive.next: 'id \+ 1' gives whole numbers .* 9223372036854775808"
    ):
        joined(tmp_path, {"fact": fact}, derive={"same": "id", "next": "id + 1"})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sql": {"x": "SELECT no FROM fact"}}, 'sql.x: .* unable to find column "no"'),
        ({"sql": {"x": "SELECT * FROM facts"}}, "sql.x: .* relation 'facts' was not found"),
        ({"sql": {"fact": "SELECT 1"}}, "sql.fact: the data set has a table of that name"),
        ({"derive": {"x": "pricy * 2"}}, "derive.x: 'pricy \\* 2' names 'pricy'; .* did you mean 'price'"),
        ({"where": {"dear": "price + 1"}}, "where.dear: 'price \\+ 1' is Float64, not true or false"),
        ({"frequencies": ["ship"]}, "frequencies names 'ship'"),
        ({"outputs": {"x": {"sql": "SELECT day FROM result"}}}, "outputs.x: .* unable to find column"),
        ({"outputs": {"x": {"by": ["day"]}}}, "outputs.x: by names 'day'"),
        ({"asked": {"predictor.target": "CASE WHEN late > 1 THEN 1 ELSE 0 END"}}, "predictor.target: .* names 'late'"),
        ({"keep": ["shop"], "asked": {"predictor.price": '"price"'}}, "predictor.price: .* names 'price'"),
    ],
)  # fmt: skip
def test_a_mistake_is_found_before_a_row_is_read(
    tmp_path: Path, params: dict[str, object], message: str
) -> None:
    def read(_rows: pl.DataFrame) -> pl.DataFrame:
        raise AssertionError("a row was read")

    from overnight.data.content import Tables
    from tasks.tabular.plan import checked
    from tasks.tabular.tables import TableParams

    unread = SALES.lazy().map_batches(read, schema=SALES.schema)
    with pytest.raises(DataError, match=message):
        checked(TableParams(fact="fact", **params), Tables({"fact": unread}).frames)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tables.fact=flihgts", "fact names the table 'flihgts'; there are .*; did you mean 'flights'"),
        ("tables.joins.0.table=wether", r"joins.0.table names the table 'wether'; .* did you mean 'weather'"),
        ("tables.types={plane: {year: int}}", "types.plane names the table 'plane'"),
    ],
)
def test_a_table_that_the_entry_does_not_name_is_refused_with_the_config(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Etl.load(paths.configs() / "etl.yaml", [override])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"predictor": {"target": "pricee > 2", "numeric": ["id"]}},
            "predictor.target: 'pricee > 2' names 'pricee'",
        ),
        (
            {"predictor": {"target": "price > 2", "numeric": ["shop"]}},
            "predictor.shop: '\"shop\"' names 'shop'",
        ),
        ({"tables": {"keep": ["nope"]}}, "keep names 'nope'"),
        (
            {"tables": {"sql": {"more": "SELECT nope FROM sales"}}},
            "sql.more: 'SELECT nope FROM sales' is not a query",
        ),
        ({"tables": {"types": {"sales": {"prize": "int"}}}}, "types.sales names 'prize'"),
        ({"tables": {"derive": {"x": "day * 2"}}}, "derive.x: 'day \\* 2' is not an SQL expression"),
        ({"tables": {"outputs": {"o": {"by": ["nope"]}}}}, "outputs.o: by names 'nope'"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_column_that_the_files_do_not_have_is_refused_with_the_config(
    folder: Path, form: str, values: dict[str, dict[str, object]], message: str
) -> None:
    sales = pl.DataFrame({"id": [1, 2], "price": [2.5, 3.5], "day": ["a", "b"]})
    sales.write_csv(folder / "sales.csv")
    sales.write_parquet(folder / "sales.parquet")
    types = {"types": {"id": "int", "price": "float", "day": "text"}} if form == "csv" else {}
    entry = {"kind": "table", "reader": form, "options": {"tables": {"sales": f"sales.{form}"}, **types}}
    tables = {"fact": "sales", **values.get("tables", {})}
    data = Dataset.model_validate({"name": "made", **entry})
    Etl.model_validate({"flow": "etl", "data": data, "tables": {"fact": "sales"}})
    with pytest.raises(ValueError, match=message):
        Etl.model_validate({"flow": "etl", "data": data, **values, "tables": tables})


def test_types_that_the_first_rows_alone_show_refuse_no_config(folder: Path) -> None:
    (folder / "sales.csv").write_text("id,price\n" + "1,2\n" * 300 + "x,dear\n")
    entry = {"kind": "table", "reader": "csv", "options": {"tables": {"sales": "sales.csv"}}}
    data = Dataset.model_validate({"name": "made", **entry})
    tables = {"fact": "sales", "where": {"dear": "STARTS_WITH(price, 'd')"}}
    Etl.model_validate({"flow": "etl", "data": data, "tables": tables})
    with pytest.raises(ValueError, match="keep names 'nope'"):
        Etl.model_validate({"flow": "etl", "data": data, "tables": {"fact": "sales", "keep": ["nope"]}})


def test_what_was_read_as_a_number_or_a_time_is_no_text_again(tmp_path: Path) -> None:
    fact = pl.DataFrame({"version": [1.1, 2.0], "yes": [True, False], "at": HOURS, "n": [1, 2]})
    with pytest.raises(DataError) as error:
        joined(tmp_path, {"fact": fact}, types={"fact": dict.fromkeys(fact.columns, "text")})
    assert [problem.split("'")[3] for problem in error.value.problems] == ["version", "yes", "at"]
    assert "state `types: {version: text}` in the set's entry" in str(error.value)
    _, _, rows = joined(tmp_path, {"fact": fact}, types={"fact": {"n": "text"}})
    assert rows["n"].to_list() == ["1", "2"]
