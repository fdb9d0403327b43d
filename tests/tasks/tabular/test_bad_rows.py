"""What a join says of values that are not of their column's type, and where rows set aside go."""

from pathlib import Path

import polars as pl
import pytest

from overnight import RecordingRun
from overnight.data.dataset import Dataset
from overnight.errors import DataError
from tasks.tabular.join import TableParams, join_tables

SALES = "day,price\n2024-01-01,2.5\n2024-01-02,dear\n24-01-03,1.0\n2024-01-04,4.0\n"
TYPES = {"day": "date %Y-%m-%d", "price": "float"}


def joined(folder: Path, tmp_path: Path, **more: object) -> tuple[RecordingRun, pl.DataFrame]:
    (folder / "sales.csv").write_text(SALES)
    options = {"tables": {"sales": "sales.csv"}, "types": TYPES, **more}
    data = Dataset.model_validate({"name": "made", "kind": "table", "reader": "csv", "options": options})
    run = RecordingRun(tmp_path / "run")
    run.folder.mkdir()
    table = join_tables.body(run, TableParams(fact="sales"), data)
    return run, pl.read_parquet(table.path / "table.parquet")


def test_a_value_that_is_not_of_its_type_is_named_with_its_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sales\.csv: line 3: column 'price', row 2 .*'dear' is not a float"):
        joined(folder, tmp_path)


def test_rows_set_aside_are_published_and_counted(folder: Path, tmp_path: Path) -> None:
    run, rows = joined(folder, tmp_path, bad_rows="quarantine")
    assert rows["price"].to_list() == [2.5, 4.0]
    assert (run.last("rows/in"), run.last("data/row_with_a_value_of_another_type_set_aside")) == (2, 2)
    bad = next(Path(e["path"]) for e in run.of("publish") if e["path"].endswith("bad-rows-sales.csv"))
    assert pl.read_csv(bad).rows() == [
        ("sales.csv", 3, "column 'price' is not a float", "2024-01-02,dear"),
        ("sales.csv", 4, "column 'day' is not a date of the form %Y-%m-%d", "24-01-03,1.0"),
    ]


def typed(folder: Path, tmp_path: Path, values: list[str], kind: str, **more: object) -> RecordingRun:
    """Joined with a text column that the config reads as `kind`."""
    (folder / "ids.csv").write_text("id\n" + "\n".join(values) + "\n")
    options = {"tables": {"ids": {"file": "ids.csv", "types": {"id": "text"}, "trim": False}}}
    entry = {"name": "made", "kind": "table", "reader": "csv", "options": options, **more}
    run = RecordingRun(tmp_path / "run")
    run.folder.mkdir()
    params = TableParams(fact="ids", types={"ids": {"id": kind}})
    join_tables.body(run, params, Dataset.model_validate(entry))
    return run


@pytest.mark.parametrize(
    ("values", "kind", "count"),
    [
        (["012", "+7", "8", "2.0", " 9"], "int", 4),
        (["01.5", "+2", "-03", "0.5", "1e3", "7"], "float", 3),
        (["12", "-7"], "int", None),
        (["1.50", "nan", "inf"], "float", None),
    ],
)
def test_numbers_written_in_another_way_are_counted(
    folder: Path, tmp_path: Path, values: list[str], kind: str, count: int | None
) -> None:
    run = typed(folder, tmp_path, values, kind)
    said = [e["text"] for e in run.of("log") if "written in another way" in e["text"]]
    rule = f"data: text of ids.id written in another way than the {kind} it is read as: {count}"
    assert said == ([rule] if count else [])


def test_a_strict_set_refuses_them(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'made' is strict: text of ids\.id written in another way .*: 1"):
        typed(folder, tmp_path, ["012", "7"], "int", strict=True)


@pytest.mark.parametrize(
    "value", ["9007199254740993", "1e999", "9007199254740993.0", "123456789012345678901"]
)
def test_a_text_that_a_float_cannot_hold_is_none(folder: Path, tmp_path: Path, value: str) -> None:
    with pytest.raises(
        DataError, match=f"ids.id: 1 values are not float; the first is '{value}' in data row 2"
    ):
        typed(folder, tmp_path, ["1", value], "float")
