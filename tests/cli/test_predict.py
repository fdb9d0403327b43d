"""`overnight predict` on a folder of a model: every kind of input, and what is written."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from overnight import Artifact, DataSpec, RecordingRun
from overnight.artifact import save
from overnight.cli.main import main
from tasks.llm.write import WriteParams, train_writer
from tasks.rl.train import AgentParams, train_agent
from tasks.shared.tokens import Characters
from tasks.tabular.fit import fit_table
from tasks.tabular.params import FitParams
from tasks.vision.cnn import CnnParams, train_cnn
from tests.tasks.detection.test_yolo import SMALL, scenes
from tests.tasks.tabular.test_predictor import PARAMS, table
from tests.tasks.vision.test_cnn import made as brightness


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    run = RecordingRun(tmp_path_factory.mktemp("rows"))
    data = table(run.folder)
    return fit_table.body(run, FitParams.model_validate(PARAMS), data), data.path / "table.parquet"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RecordingRun(tmp_path_factory.mktemp("images"))
    params = CnnParams(epochs=2, batch=10, channels=8, blocks=1)
    return train_cnn.body(run, params, brightness(run.folder)).path


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, text = RecordingRun(tmp_path_factory.mktemp("writer")), "to be or not to be. " * 20
    characters = Characters.learnt(text)
    arrays = {f"{split}_tokens": characters.encode(text) for split in ("train", "val", "test")}
    meta = {"tokens": characters.state(), "bytes": dict.fromkeys(("train", "val", "test"), len(text))}
    corpus = save(run.folder / "corpus", "corpus", DataSpec(tokens=characters.size), arrays, meta)
    small = {"layers": 1, "heads": 2, "width": 16, "context": 8, "sample_tokens": 4, "prompt": "to"}
    return train_writer.body(run, WriteParams(epochs=1, epoch_steps=2, **small), corpus).path


def predict(out: Path, *words: object) -> pd.DataFrame:
    assert main(["predict", *map(str, words), "--out", str(out)]) == 0
    return pd.read_csv(out / "predictions.csv")


def test_a_table_as_csv_and_as_parquet_gets_the_same_answers(rows, tmp_path: Path, capsys) -> None:
    model, parquet = rows
    frame = pl.read_parquet(parquet)
    frame.with_columns(pl.lit("mine").alias("class")).write_csv(tmp_path / "a.csv", separator=";")
    one = predict(tmp_path / "one", model.path, tmp_path / "a.csv")
    two = predict(tmp_path / "two", model.path, parquet, "--parquet")
    assert "Boosted trees" in (said := capsys.readouterr().out)
    assert "1,200 rows, the first 10 above" in said
    np.testing.assert_allclose(one["probability_true"], two["probability_true"], atol=1e-12)
    assert (set(one["input class"]), set(one["class"])) == (
        {"mine"},
        {"false", "true"} if one["class"].dtype == object else set(one["class"]),
    )
    assert pd.read_parquet(tmp_path / "two" / "predictions.parquet").shape == two.shape
    assert main(["predict", str(model.path), "--example", "--out", str(tmp_path / "three"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["rows"]) == 3
    again = predict(tmp_path / "four", model.path, tmp_path / "three" / "input.csv")
    assert [row["probability"] for row in answer["rows"]] == pytest.approx(again["probability"].tolist())


def test_images_of_files_folders_and_patterns(images: Path, tmp_path: Path) -> None:
    for name, value in (("a/dark.png", 5), ("a/b/light.jpg", 240), ("c.bmp", 250)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (value, value, value)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "a" / "._dark.png").write_bytes(b"hidden")
    found = predict(tmp_path / "out", images, tmp_path / "in", tmp_path / "in" / "*.bmp")
    names = [str(tmp_path / "in" / name) for name in ("a/b/light.jpg", "a/dark.png", "c.bmp", "c.bmp")]
    assert found["image"].tolist() == names
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 1000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.csv", "sheet.png"]
    example = predict(tmp_path / "example", images, "--example")
    assert example["image"].tolist() == ["input-0.png"]
    assert (tmp_path / "example" / "input-0.png").is_file()


def test_texts_are_quoted_or_lines_or_a_column(writer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be\nor not\n")
    (tmp_path / "b.csv").write_text('n,prompt\n1,"a, b"\n')
    (tmp_path / "be.md").write_text("no table")
    given = [tmp_path / "a.txt", "to be, or", "be.md", tmp_path / "b.csv"]
    found = predict(tmp_path / "out", writer, *given, "--option", "tokens=7", "--option", "temperature=0")
    assert found["prompt"].tolist() == ["to be", "or not", "to be, or", "be.md", "a, b"]
    assert found["continuation"].str.len().tolist() == [7] * 5
    example = predict(tmp_path / "example", writer, "--example")
    assert example["prompt"].tolist() == ["to"]
    again = predict(tmp_path / "again", writer, tmp_path / "example" / "input.csv")
    assert again["continuation"].tolist() == example["continuation"].tolist()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{writer}"], "there is no input; this model takes texts in quotes"),
        (
            ["{writer}", "a", "--option", "words=3"],
            "has no such option; it has temperature=0.8, tokens=4, seed",
        ),
        (["{writer}", "a", "--option", "tokens=many"], "--option tokens=many: expected tokens=NUMBER"),
        (["{writer}", "a", "--option", "tokens=0"], "tokens=0: expected a whole number from 1"),
        (["{writer}", "none.csv"], "none.csv: there is no such file; this model takes texts"),
        (["{writer}", "{table}"], "has no column 'prompt'; it has 'a', 'b'"),
        (["{images}"], "there is no input; this model takes image files"),
        (["{images}", "none.jpg"], "none.jpg: there is no such file"),
        (["{images}", "{file}"], "a.txt: expected an image, but it does not decode"),
        (["{images}", "{file}", "--least-score", "0.5"], "--least-score: is for detectors"),
        (["{images}", "--example", "{file}"], "--example: is the model's own input"),
        (["{rows}", "{file}"], "the column 'x' is missing"),
        (["{rows}", "none.csv"], "none.csv: there is no such file"),
        (["{rows}", "{folder}"], "is a folder; this model takes CSV or Parquet"),
        (["{rows}", "{cut}"], "a.txt.gz: expected a table as CSV or Parquet"),
        (["{rows}", "--example", "--out", "/"], "--out /: name a folder below it"),
        (["{folder}/", "x.csv"], "there is no model in this folder"),
        (["{images}", "--example", "--out", "{file}"], "is a file; name a folder"),
    ],
)
def test_what_cannot_be_predicted_is_said_and_nothing_is_written(
    rows, images: Path, writer: Path, tmp_path: Path, capsys, words: list[str], said: str
) -> None:
    (tmp_path / "a.txt").write_text("a,b\n1,2\n")
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:-9])
    places = {"images": images, "rows": rows[0].path, "folder": tmp_path, "file": tmp_path / "a.txt"}
    places |= {"cut": tmp_path / "a.txt.gz", "writer": writer, "table": tmp_path / "a.csv"}
    given = [word.format(**places) for word in words]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    assert main(["predict", *given, *out]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.txt", "a.txt.gz"]


def test_answers_are_written_here_and_can_be_asked_again(rows, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(rows[0].path), "--example", "--out", "."]) == 0
    assert main(["predict", str(rows[0].path), "predictions.csv", "--out", "again"]) == 0
    assert main(["predict", str(rows[0].path), "again/predictions.csv", "--out", "third", "--json"]) == 0
    assert "input input class" in capsys.readouterr().out
    columns = pd.read_csv(tmp_path / "third" / "predictions.csv").columns
    assert {"class", "input class", "input input class"} <= set(columns)


@pytest.mark.slow
def test_boxes_are_drawn_and_an_episode_is_shown(tmp_path: Path, capsys) -> None:
    from tasks.detection.yolo import YoloParams, train_yolo

    (tmp_path / "run").mkdir()
    run = RecordingRun(tmp_path / "run")
    detector = train_yolo.body(run, YoloParams(**SMALL), scenes(run.folder, {"train": 4, "val": 4}, size=64))
    Image.new("RGB", (100, 80), "grey").save(tmp_path / "a.png")
    found = predict(tmp_path / "boxes", detector.path, tmp_path / "a.png", "--least-score", 0.001)
    assert list(found) == ["image", "class", "score", "x1", "y1", "x2", "y2"]
    assert set(found["image"]) <= {str(tmp_path / "a.png")}
    assert (tmp_path / "boxes" / "000-a.png").is_file()
    short = {"total_steps": 64, "eval_every": 64, "eval_episodes": 1, "test_episodes": 1}
    (tmp_path / "agent").mkdir()
    agent = train_agent.body(RecordingRun(tmp_path / "agent"), AgentParams.model_validate(short))
    played = predict(tmp_path / "episode", agent.path)
    assert (tmp_path / "episode" / "episode.gif").is_file()
    assert f"an episode of {len(played)} steps" in capsys.readouterr().out
    np.save(tmp_path / "some.npy", np.zeros((3, 4), np.float32))
    assert len(predict(tmp_path / "npy", agent.path, tmp_path / "some.npy")) == 3
    pd.DataFrame(np.zeros((2, 4))).to_csv(tmp_path / "some.csv", index=False)
    assert list(predict(tmp_path / "csv", agent.path, tmp_path / "some.csv"))[-3:] == [
        "action",
        "probability_0",
        "probability_1",
    ]
