"""An entry is proposed for what people have, and reads it."""

import io

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

from overnight.cli.main import main
from overnight.data.propose import name_of, propose
from overnight.errors import DataError


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("a.csv", b"id,town\n1,Rome\n2,Oslo\n", {"types": {"id": "int", "town": "text"}}),
        (
            "a.csv",
            b"id;x\n1;2,5\n2;3,5\n",
            {"delimiter": ";", "decimal": ",", "types": {"id": "int", "x": "float"}},
        ),
        ("a.tsv", b"id\tx\n01\t2.5\n02\t3\n", {"delimiter": "\t", "types": {"id": "text", "x": "float"}}),
        (
            "a.csv",
            "id,town\n1,Köln\n".encode("cp1252"),
            {"encoding": "cp1252", "types": {"id": "int", "town": "text"}},
        ),
        (
            "a.csv",
            "id,town\n1,Köln\n".encode("utf-16"),
            {"encoding": "utf-16", "types": {"id": "int", "town": "text"}},
        ),
    ],
)
def test_a_table_of_text(tmp_path, name, data, wanted):
    (tmp_path / name).write_bytes(data)
    found = propose(tmp_path / name)
    assert found == {"kind": "table", "reader": "csv", "options": {"tables": {"a": {"file": name, **wanted}}}}


def test_a_folder_of_tables(tmp_path):
    for name in ("Big Sales", "towns"):
        (tmp_path / f"{name}.csv").write_text("id,x\n1,2\n")
    assert set(propose(tmp_path)["options"]["tables"]) == {"big_sales", "towns"}


def test_a_parquet_file(tmp_path):
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "a.parquet")
    assert propose(tmp_path / "a.parquet")["reader"] == "parquet"


def test_images_in_folders(tmp_path):
    for place in ("cat/1.png", "dog/2.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(picture())
    assert propose(tmp_path) == {"kind": "images", "reader": "image_folder", "options": {}}


def test_a_graph(tmp_path):
    edges = np.array([[0, 1], [1, 2]])
    masks = {
        f"{part}_mask": np.array([part == "train", part == "val", part == "test"])
        for part in ("train", "val", "test")
    }
    np.savez(
        tmp_path / "g.npz", edge_index=edges, x=np.eye(3, dtype=np.float32), y=np.array([0, 1, 0]), **masks
    )
    assert propose(tmp_path)["reader"] == "planetoid"


def test_what_is_unknown_or_not_there_is_said(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    with pytest.raises(DataError, match="nothing here that is known"):
        propose(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        propose(tmp_path / "none")


def test_a_name_is_made_of_the_file(tmp_path):
    assert name_of(tmp_path / "My Sales-2024.csv.gz") == "my_sales_2024"


def test_the_proposed_entry_is_accepted_by_the_command(checkout, capsys):
    (checkout / "datasets" / "sales").mkdir()
    (checkout / "datasets" / "sales" / "sales.csv").write_text(
        "id,x\n" + "".join(f"{i},{i}.5\n" for i in range(50))
    )
    assert main(["data", "check", str(checkout / "datasets" / "sales")]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["folder"] == "sales"
    (checkout / "datasets" / "sales.yaml").write_text(text + "\ndrift: stop\n")
    assert main(["data", "check", "sales"]) == 0
    assert "sales: sales: 50 rows, 2 columns" in capsys.readouterr().out
    (checkout / "datasets" / "sales" / "sales.csv").write_text(
        "id,x\n" + "".join(f"{i},{i}500\n" for i in range(50))
    )
    assert main(["data", "check", "sales"]) == 2
    assert "changed: sales: x" in capsys.readouterr().out
    assert main(["data", "check", "sales", "--accept"]) == 0
    assert main(["data", "check", "sales"]) == 0


def test_files_whose_names_are_alike_are_all_proposed(tmp_path):
    for name in ("a b.csv", "a-b.csv", "c.csv"):
        (tmp_path / name).write_text("x,y\n1,2\n")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "d.parquet")
    (tmp_path / "README.txt").write_text("Words.\nMore words, and a comma\n")
    found = propose(tmp_path)
    tables = {name: given["file"] for name, given in found["options"]["tables"].items()}
    assert tables == {"a_b": "a b.csv", "a_b_2": "a-b.csv", "c": "c.csv", "d": "d.parquet"}
    assert found["reader"] == "csv"


def test_a_database_and_what_only_says_that_it_is_one(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as open_:
        open_.sql("CREATE TABLE sales AS SELECT 1 AS id")
    wanted = {"tables": {"sales": {"file": "shop.duckdb", "table": "sales"}}}
    assert propose(tmp_path) == {"kind": "table", "reader": "csv", "options": wanted}
    for name, said in (("b.db", "DuckDB"), ("c.parquet", "no Parquet file")):
        (tmp_path / name).write_bytes(b"hello" * 9)
        with pytest.raises(DataError, match=said):
            propose(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "said"),
    [("Report\nx,y\n1,2\n", "skip_rows: 1"), ("x y\n1 2\n3 4\n", "delimiter: ' '")],
)
def test_no_delimiter_is_proposed_that_parts_nothing(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        propose(tmp_path / "a.csv")


def test_a_file_that_is_not_there_is_no_data_set(checkout, capsys):
    assert main(["data", "check", "sales/none.csv"]) == 2
    assert "there is no such file or folder" in capsys.readouterr().err


def test_chats(tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 3)
    assert propose(tmp_path / "chats.jsonl") == {
        "kind": "chats",
        "reader": "chats",
        "options": {"splits": {"train": ["chats.jsonl"]}},
    }
    assert name_of(tmp_path / "chats.jsonl") == "chats"


def made(folder, *paths: str) -> None:
    """Images, which all differ."""
    for level, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (level, 0, 0)).save(folder / path)


@pytest.mark.parametrize(
    ("table", "rows", "paths"),
    [
        ("labels.csv", "file,label\na.png,cat\nb.png,dog\n", ["images/a.png", "images/b.png"]),
        ("train.csv", "id,label\n1,cat\n2,dog\n3,cat\n", ["1.png", "2.png"]),
        ("labels.csv", "path,y\npics/a.png,1\npics/b.png,2\n", ["pics/a.png", "pics/b.png"]),
    ],
)
def test_a_table_of_labels_beside_images_is_no_table(tmp_path, table, rows, paths):
    made(tmp_path, *paths)
    (tmp_path / table).write_text(rows)
    with pytest.raises(
        DataError, match=rf"{table} names 2 images that lie here, .* folder named after its class"
    ):
        propose(tmp_path)
    assert propose(tmp_path / table)["kind"] == "table"


def test_images_and_tables_beside_one_another_say_what_is_not_read(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    made(tmp_path, "plots/a.png", "plots/b.png")
    found = propose(tmp_path)
    assert (found["kind"], found["about"]) == ("table", "2 images beside the tables are not read")
    made(tmp_path, "cat/a.png", "dog/b.png")
    found = propose(tmp_path)
    assert (found["kind"], found["about"]) == (
        "images",
        "the tables beside the images are not read: notes.csv",
    )


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["a.png", "b.png"], "no image in folders named after classes"),
        (["images/a.png"], "the layout of YOLO"),
    ],
)
def test_images_that_no_reader_takes_say_why(tmp_path, paths, why):
    made(tmp_path, *paths)
    if "images/a.png" in paths:
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=why):
        propose(tmp_path)
