"""Further tables beside the result: Parquet, folders of Parquet, CSV, DuckDB."""

from pathlib import Path

import polars as pl
import pytest

from overnight.errors import DataError
from tasks.tabular.tables import TableParams
from tests.tasks.tabular.test_partners import joined

SALES = pl.DataFrame({"shop": ["a", "a", "b"], "day": [1, 2, 2], "price": [1.0, 3.0, 5.0]})
OUTPUTS = {
    "shops": {"sql": "SELECT shop, SUM(price) AS total FROM result GROUP BY shop ORDER BY shop"},
    "days": {"by": ["day"]},
    "plain": {"form": "csv", "sql": "SELECT shop, price FROM result WHERE day = 2"},
}


def test_outputs_lie_beside_the_table_and_are_counted(tmp_path: Path) -> None:
    run, table, _ = joined(tmp_path, {"fact": SALES}, outputs=OUTPUTS, where={"cheap": "price > 2"})
    folder = table.path / "outputs"
    assert pl.read_parquet(folder / "shops.parquet").rows() == [("a", 3.0), ("b", 5.0)]
    assert pl.read_csv(folder / "plain.csv").rows() == [("a", 3.0), ("b", 5.0)]
    assert [p.name for p in sorted((folder / "days").iterdir())] == ["day=2"]
    assert pl.read_parquet(folder / "days").sort("price").rows() == [("a", 3.0, 2), ("b", 5.0, 2)]
    assert table.meta()["profile"]["outputs"] == {"shops": 2, "days": 2, "plain": 2}
    assert "outputs: shops, days, plain" in run.of("note")[0]["text"]


def test_the_same_tables_have_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.add(joined(tmp_path / name, {"fact": SALES}, outputs=OUTPUTS)[1].digest)
    assert len(digests) == 1


def test_tables_of_duckdb_hold_the_rows(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    outputs = {"all": {"form": "duckdb"}, 'odd "name"': {"form": "duckdb", "sql": "SELECT day FROM result"}}
    run, _, _ = joined(tmp_path, {"fact": SALES}, outputs=outputs)
    with duckdb.connect(run.folder / "outputs" / "tables.duckdb", read_only=True) as connection:
        assert connection.sql('SELECT shop, day, price FROM "all"').fetchall() == SALES.rows()
        assert connection.sql('SELECT COUNT(*) FROM "odd ""name"""').fetchall() == [(3,)]


def test_only_parquet_is_cut_into_folders() -> None:
    with pytest.raises(ValueError, match="by cuts Parquet into folders; the form is csv"):
        TableParams(fact="x", outputs={"a": {"form": "csv", "by": ["day"]}})


def test_a_table_called_result_makes_outputs_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a table is called 'result'"):
        joined(tmp_path, {"fact": SALES, "result": SALES}, outputs={"a": {}})


@pytest.mark.parametrize(
    "values",
    [
        {"outputs": {"a": {"sql": "SELECT n + 1 AS m FROM result"}}},
        {"outputs": {"a": {"sql": "SELECT shop, SUM(n) AS m FROM result GROUP BY shop", "form": "csv"}}},
        {"sql": {"more": "SELECT shop, n * 2 AS m FROM fact"}, "joins": [{"table": "more", "by": ["shop"]}]},
    ],
)
def test_whole_numbers_beyond_64_bits_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    large = SALES.with_columns(n=pl.lit(2**63 - 1))
    with pytest.raises(DataError, match=r"under sql or outputs gives whole numbers .* 64 bits: .*'m'.*CAST"):
        joined(tmp_path, {"fact": large}, **values)


def test_a_database_differs_in_bytes_alone(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    digests, rows = set(), []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run, table, _ = joined(tmp_path / name, {"fact": SALES}, outputs={"all": {"form": "duckdb"}})
        digests.add(table.digest)
        with duckdb.connect(run.folder / "outputs" / "tables.duckdb", read_only=True) as connection:
            rows.append(connection.sql('SELECT * FROM "all"').fetchall())
    assert len(digests) == 1
    assert rows[0] == rows[1] == SALES.rows()
