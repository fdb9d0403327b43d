"""Tables are joined, typed, thinned and profiled by values alone, and whatever is odd is counted or refused
by name.
"""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from overnight import Artifact, RecordingRun
from overnight.data.dataset import Dataset, load_entry
from overnight.errors import DataError, ServiceError
from tasks.tabular.join import TableParams, join_tables

SALES = "day,shop,item,price\n2024-01-01,1,a,2.5\n2024-01-02,2,b,NA\n"
SALES += "2024-01-03,9,a,4.0\n2024-01-04,,c,1.0\n2024-01-05,1,b,-3.0\n"
SHOPS = "id,city,size\n1,Köln,10\n2,大阪,20\n2,Osaka,21\n3,Oslo,30\n"


def made(folder: Path, **tables: str) -> Dataset:
    """A data set of csv files, every column as text unless the reader knows better."""
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return Dataset(
        name="made", kind="table", reader="csv", options={"tables": {name: f"{name}.csv" for name in tables}}
    )


def joined(
    tmp_path: Path, data: Dataset, device: str = "cpu", **params: object
) -> tuple[RecordingRun, Artifact, pl.DataFrame]:
    run = RecordingRun(tmp_path / "run", device=device)
    run.folder.mkdir(exist_ok=True)
    table = join_tables.body(run, TableParams(fact="sales", **params), data)
    return run, table, pl.read_parquet(table.path / "table.parquet")


def test_left_join_keeps_every_row_in_order_and_counts_partners(folder: Path, tmp_path: Path) -> None:
    run, table, rows = joined(
        tmp_path,
        made(folder, sales=SALES, shops=SHOPS),
        joins=[{"table": "shops", "by": {"shop": "id"}, "prefix": "shop_", "take": ["city"]}],
    )
    assert rows["day"].cast(pl.String).to_list() == [f"2024-01-0{i}" for i in range(1, 6)]
    assert rows["shop_city"].to_list() == ["Köln", "大阪", None, None, "Köln"]
    assert table.spec.rows == rows.height == 5
    assert (run.last("join/shops_matched"), run.last("join/shops_repeated")) == (3, 1)
    assert [e["value"] for e in run.of("param") if e["name"] == "engine"] == ["streaming"]
    assert run.of("data")[0]["digest"] == table.digest


def test_rows_are_dropped_for_the_first_reason_that_holds(folder: Path, tmp_path: Path) -> None:
    run, table, rows = joined(
        tmp_path,
        made(folder, sales=SALES, shops=SHOPS),
        joins=[{"table": "shops", "by": {"shop": "id"}, "how": "inner", "take": ["size"]}],
        derive={"per_size": "price / size"},
        require=["price"],
        where={"price is not positive": "price > 0"},
    )
    assert table.meta()["profile"]["dropped"] == {
        "no partner in shops": 2,
        "no value in price": 1,
        "price is not positive": 1,
    }
    assert rows["per_size"].to_list() == [0.25]
    assert (run.last("rows/in"), run.last("rows/out"), run.last("rows/dropped")) == (5, 1, 4)


@pytest.mark.parametrize(("rule", "rows_out", "added"), [("first", 5, 0), ("multiply", 6, 1)])
def test_repeated_keys_multiply_only_where_asked(
    folder: Path, tmp_path: Path, rule: str, rows_out: int, added: int
) -> None:
    join = {"table": "shops", "by": {"shop": "id"}, "duplicates": rule, "take": ["city"]}
    run, _, rows = joined(tmp_path, made(folder, sales=SALES, shops=SHOPS), joins=[join])
    assert rows.height == rows_out
    assert run.last("rows/added") == added
    assert (
        rows.filter(pl.col("day").cast(pl.String) == "2024-01-02")["city"].to_list()
        == ["大阪", "Osaka"][: rows_out - 4]
    )


def test_repeated_keys_can_be_an_error_that_names_one(folder: Path, tmp_path: Path) -> None:
    join = {"table": "shops", "by": {"shop": "id"}, "duplicates": "error"}
    with pytest.raises(DataError, match=r"shops holds 1 keys more than once \(first id=2\)"):
        joined(tmp_path, made(folder, sales=SALES, shops=SHOPS), joins=[join])


def test_profile_says_what_is_in_each_column(folder: Path, tmp_path: Path) -> None:
    run, table, _ = joined(tmp_path, made(folder, sales=SALES))
    price = next(c for c in table.meta()["profile"]["columns"] if c["column"] == "price")
    assert price == {
        "column": "price",
        "type": "Float64",
        "nulls": 1,
        "distinct": 4,
        "min": -3.0,
        "max": 4.0,
        "mean": 1.125,
    }
    published = {Path(e["path"]).name for e in run.of("publish")}
    assert published == {"profile.html"}
    assert "5 rows in, 5 rows out" in (run.folder / "profile.html").read_text(encoding="utf-8")


def test_a_value_of_another_type_far_down_is_named_with_its_row(folder: Path, tmp_path: Path) -> None:
    lines = [f"{i},{i}.5" for i in range(100_000)]
    lines[99_998] = "x1,7.25"
    data = made(folder, sales="n,price\n" + "\n".join(lines) + "\n")
    data = data.model_copy(
        update={"options": {"tables": {"sales": "sales.csv"}, "types": {"n": "text", "price": "float"}}}
    )
    with pytest.raises(DataError) as error:
        joined(tmp_path, data, types={"sales": {"n": "int", "price": "int"}})
    assert error.value.problems == [
        "data set 'made': sales.n: 1 values are not int; the first is 'x1' in data row 99999",
        "data set 'made': sales.price: 100000 values are not int; the first is 0.5 in data row 1",
    ]


def test_types_are_cast_where_every_value_fits(folder: Path, tmp_path: Path) -> None:
    data = made(folder, sales="n,flag,at,day\n 1 ,Yes,2024-01-01T10:00:00Z,2024-01-01\n2.0,0,NA,2024-02-29\n")
    data = data.model_copy(
        update={
            "options": {
                "tables": {"sales": "sales.csv"},
                "types": dict.fromkeys(["n", "flag", "at", "day"], "text"),
            }
        }
    )
    _, _, rows = joined(
        tmp_path, data, types={"sales": {"n": "int", "flag": "bool", "at": "datetime", "day": "date"}}
    )
    assert [str(t) for t in rows.dtypes] == [
        "Int64",
        "Boolean",
        "Datetime(time_unit='us', time_zone='UTC')",
        "Date",
    ]
    assert rows["n"].to_list() == [1, 2]
    assert rows["flag"].to_list() == [True, False]


def test_times_with_and_without_a_zone_join_in_utc(folder: Path, tmp_path: Path) -> None:
    data = made(
        folder,
        sales="at,n\n2024-01-01T10:00:00Z,1\n2024-01-01T11:00:00Z,2\n",
        rates="at,rate\n2024-01-01 11:00:00,7\n",
    )
    types = {table: {"at": "datetime"} for table in ("sales", "rates")}
    _, _, rows = joined(tmp_path, data, types=types, joins=[{"table": "rates", "by": ["at"]}])
    assert rows["rate"].to_list() == [None, 7]


def test_everything_that_is_missing_is_named_at_once(folder: Path, tmp_path: Path) -> None:
    joins = [
        {"table": "shop", "by": ["id"]},
        {"table": "shops", "by": {"shop": "nr"}, "take": ["city", "mayor"]},
    ]
    with pytest.raises(DataError) as error:
        joined(
            tmp_path, made(folder, sales=SALES, shops=SHOPS), joins=joins, types={"sales": {"prize": "float"}}
        )
    text = "\n".join(error.value.problems)
    assert len(error.value.problems) == 4
    assert all(word in text for word in ("'shop'", "'nr'", "'mayor'", "'prize'"))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"joins": [{"table": "shops", "by": {"city": "city"}}]}, "'city', which is not there yet"),
        ({"joins": [{"table": "shops", "by": {"item": "id"}}]}, "item is String, shops.id is Int64"),
        (
            {"joins": [{"table": "shops", "by": {"shop": "id"}}, {"table": "shops", "by": {"shop": "id"}}]},
            "already there",
        ),
        ({"derive": {"x": "price >>> 2"}}, "derive.x: 'price >>> 2' is not an SQL expression"),
        ({"derive": {"x": "prize * 2"}}, "prize"),
        ({"require": ["prize"]}, "'prize'; after the joins there are day, shop, item, price"),
        ({"where": {"dear": "price > 1000"}}, r"no row left of 5 \(dear: 5\)"),
    ],
)
def test_wrong_values_say_what_and_where(
    folder: Path, tmp_path: Path, params: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        joined(tmp_path, made(folder, sales=SALES, shops=SHOPS), **params)


def test_the_gpu_engine_is_never_replaced_silently(folder: Path, tmp_path: Path) -> None:
    data = made(folder, sales=SALES)
    with pytest.raises(ServiceError, match="engine: gpu was asked for, but this run has no CUDA card"):
        joined(tmp_path, data, engine="gpu")
    assert not (tmp_path / "run" / "out").exists()


def test_where_the_gpu_engine_fails_auto_says_why(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pynvml")
    run, _, rows = joined(tmp_path, made(folder, sales=SALES), device="cuda")
    engine = run.of("param")[0]["value"]
    assert rows.height == 5
    assert engine == "gpu" or any("because" in line["text"] for line in run.of("log"))


def test_a_set_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not tables"):
        joined(tmp_path, load_entry("karate"))


TWICE = """
import sys, pathlib
from overnight import RecordingRun
from overnight.data.dataset import load_entry
from tasks.tabular.join import TableParams, join_tables
run = RecordingRun(pathlib.Path(sys.argv[1]))
joins = [{"table": "weather", "by": ["origin", "time_hour"], "take": ["temp"]}]
joins.append({"table": "planes", "by": ["tailnum"], "prefix": "plane_"})
params = TableParams(fact="flights", joins=joins, require=["arr_delay"])
print(join_tables.body(run, params, load_entry("flights")).digest)
"""


@pytest.mark.slow
def test_the_same_bytes_whatever_the_number_of_threads(tmp_path: Path) -> None:
    digests = set()
    for threads in ("1", "3"):
        folder = tmp_path / threads
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", TWICE, str(folder)],
            env={**os.environ, "POLARS_MAX_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
