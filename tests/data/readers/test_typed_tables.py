"""Parquet and DuckDB: alone, in several files, and beside csv in one entry."""

from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import pytest

from overnight.errors import ConfigError, DataError

TIME = datetime(2024, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def odd(folder) -> None:
    frame = pl.DataFrame(
        {
            "small": pl.Series([1, 2], dtype=pl.UInt8),
            "money": pl.Series([Decimal("1.50"), None], dtype=pl.Decimal(10, 2)),
            "id": pl.Series([Decimal(12345678901234567890), None], dtype=pl.Decimal(20, 0)),
            "kind": pl.Series(["x", "y"], dtype=pl.Categorical),
            "at": pl.Series([TIME, None]).dt.convert_time_zone("Europe/Berlin"),
            "list": [[1], [2]],
            "__index_level_0__": [0, 1],
        }
    )
    frame.write_parquet(folder / "t.parquet")


@pytest.mark.parametrize("reader", ["csv", "parquet"])
def test_parquet_gets_the_types_of_tables(load, folder, odd, reader: str) -> None:
    content = load(reader, {"tables": {"t": "t.parquet"}}, kind="table")
    table = content.frames["t"].collect()
    assert table.row(0) == (1, 1.5, "12345678901234567890", "x", TIME)
    assert table.schema == {
        "small": pl.Int64, "money": pl.Float64, "id": pl.String, "kind": pl.String, "at": pl.Datetime("us", "UTC"),
    }  # fmt: skip
    assert content.rows == {"t": 2}
    assert sorted(content.cleaned) == [
        "column '__index_level_0__' of type Int64 left out",
        "column 'id' stays text: a number cannot hold Decimal(precision=20, scale=0) exactly",
        "column 'list' of type List(Int64) left out",
    ]


def test_several_parquet_files(load, folder) -> None:
    pl.DataFrame({"a": [1], "b": ["x"]}).write_parquet(folder / "p1.parquet")
    pl.DataFrame({"b": ["y"], "a": [2]}).write_parquet(folder / "p2.parquet")
    pl.DataFrame({"a": [3]}).write_parquet(folder / "q.parquet")
    pl.DataFrame({"a": [0.5], "b": ["z"]}).write_parquet(folder / "r.parquet")

    def rows(files, union: str = "same") -> list[tuple]:
        content = load("parquet", {"tables": {"t": {"file": files, "union": union}}}, kind="table")
        return content.frames["t"].collect().rows()

    assert rows("p*.parquet") == [(1, "x"), (2, "y")]
    assert rows(["p1.parquet", "q.parquet"], "fill") == [(1, "x"), (3, None)]
    with pytest.raises(
        DataError, match=r"q\.parquet: lacks b, unlike p1\.parquet; set the table's union: fill"
    ):
        rows(["p1.parquet", "q.parquet"])
    with pytest.raises(DataError, match=r"r\.parquet: column 'a' is Float64, but Int64 in p1\.parquet"):
        rows(["p1.parquet", "r.parquet"])


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"a,b\n1,2\n", "expected parquet|is damaged, or no Parquet file"),
        (b"PAR1" + b"\0" * 40, "is damaged, or no Parquet file"),
        (b"", "the file is empty"),
    ],
)
def test_files_that_are_no_parquet(load, folder, data: bytes, cause: str) -> None:
    (folder / "t.parquet").write_bytes(data)
    with pytest.raises(DataError, match=rf"t\.parquet: .*({cause})|t\.parquet: ({cause})"):
        load("parquet", {"tables": {"t": "t.parquet"}}, kind="table")


def test_a_parquet_file_without_rows(load, folder) -> None:
    pl.DataFrame({"a": []}, schema={"a": pl.Int64}).write_parquet(folder / "t.parquet")
    with pytest.raises(DataError, match="has columns, but no row"):
        load("parquet", {"tables": {"t": "t.parquet"}}, kind="table")


@pytest.mark.parametrize(
    ("table", "cause"),
    [
        ({"file": ["t.parquet", "t.csv"]}, "must be of one format"),
        ({"file": "t.parquet", "types": {"a": "int"}}, "types: for csv alone"),
        ({"file": "t.csv", "table": "x"}, "table names a table of a database"),
    ],
)
def test_options_that_do_not_go_with_the_format(load, table, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        load("csv", {"tables": {"t": table}})


def test_tables_of_duckdb_beside_csv(load, folder, odd) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(folder / "shop.duckdb")) as open_:
        open_.sql(
            'CREATE TABLE "the sales" AS SELECT 1 AS id, 170141183460469231731687303715884105727 AS huge'
        )
        open_.sql(
            "CREATE VIEW big AS SELECT id + 1 AS id, 'x' AS text, DATE '2024-01-01' AS day FROM \"the sales\""
        )
    (folder / "t.csv").write_text("a\n1\n")
    tables = {
        "big": "shop.duckdb",
        "sales": {"file": "shop.duckdb", "table": "the sales"},
        "t": "t.csv",
        "p": "t.parquet",
    }
    content = load("csv", {"tables": tables})
    assert content.rows == {"big": 1, "sales": 1, "t": 1, "p": 2}
    assert content.frames["sales"].collect().rows() == [(1, "170141183460469231731687303715884105727")]
    assert content.frames["big"].collect().schema == {"id": pl.Int64, "text": pl.String, "day": pl.Date}
    same = load("duckdb", {"file": "shop.duckdb", "tables": ["big"]}, kind="table")
    assert same.frames["big"].collect().equals(content.frames["big"].collect())
    with pytest.raises(
        DataError, match=r"has no table 'bigg'; did you mean 'big'\? \(there are: big, the sales\)"
    ):
        load("duckdb", {"file": "shop.duckdb", "tables": {"x": "bigg"}}, kind="table")


def test_files_that_are_no_database(load, folder) -> None:
    (folder / "t.duckdb").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"t\.duckdb: .*(not a valid DuckDB|needs the package duckdb)"):
        load("duckdb", {"file": "t.duckdb", "tables": ["t"]}, kind="table")
    (folder / "t.duckdb").write_bytes(b"xxxxxxxxDUCK" + b"\0" * 99)
    with pytest.raises(DataError, match=r"cannot be read by DuckDB|needs the package duckdb"):
        load("duckdb", {"file": "t.duckdb", "tables": ["t"]}, kind="table")


def test_parquet_without_a_column_for_tables_says_so(load, folder) -> None:
    pl.DataFrame({"a": [[1], [2]], "b": [b"x", b"y"]}).write_parquet(folder / "t.parquet")
    with pytest.raises(DataError, match="has no column of a type that tables have"):
        load("parquet", {"tables": {"t": "t.parquet"}}, kind="table")


def test_types_and_schemas_of_a_database(load, folder) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(folder / "d.duckdb")) as open_:
        open_.sql("CREATE SCHEMA s")
        open_.sql("CREATE TABLE s.t AS SELECT 2 AS a, INTERVAL 36 HOUR AS long")
        open_.sql("CREATE TABLE ends AS SELECT TIMESTAMP 'infinity' AS until UNION ALL SELECT NULL")
    found = load("duckdb", {"file": "d.duckdb", "tables": {"t": "s.t"}}, kind="table")
    assert found.frames["t"].collect().rows() == [(2, "36:00:00")]
    with pytest.raises(DataError, match=r"no table 't'.*there are: ends, s\.t"):
        load("duckdb", {"file": "d.duckdb", "tables": ["t"]}, kind="table")
    with pytest.raises(DataError, match="'until' is infinite in 1 rows"):
        load("duckdb", {"file": "d.duckdb", "tables": ["ends"]}, kind="table")
    open_ = duckdb.connect()
    open_.sql(f"COPY (SELECT INTERVAL 1 DAY AS long) TO '{folder}/long.parquet'")
    with pytest.raises(DataError, match=r"long\.parquet: has a column of a type that Polars does not read"):
        load("parquet", {"tables": {"t": "long.parquet"}}, kind="table")


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize("value", ["x", 1.5, TIME])
def test_a_column_without_a_value_in_one_file_has_the_type_of_the_others(load, folder, order, value) -> None:
    pl.DataFrame({"n": [1, 2], "v": [None, None]}).write_parquet(folder / "a.parquet")
    pl.DataFrame({"n": [3], "v": [value]}).write_parquet(folder / "b.parquet")
    content = load("parquet", {"tables": {"t": [f"{name}.parquet" for name in order]}}, kind="table")
    rows = content.frames["t"].sort("n").collect()
    assert rows["v"].null_count() == 2
    assert rows["v"][2] == value
    rule = "column 'v' without a value in one file of its table kept"
    assert (content.cleaned, content.cleaned.first) == ({rule: 1}, {rule: "a.parquet"})
