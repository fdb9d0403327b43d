"""A classifier of rows as MLflow loads it: columns by name, whatever their order and type."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from mlflow.exceptions import MlflowException

from overnight import Artifact, DataSpec, RecordingRun, artifact
from overnight.errors import BadInput, DataError
from tasks.tabular.fit import fit_table
from tasks.tabular.params import FitParams
from tasks.tabular.predictor import RowPredictor
from tests.support.loaded import by_mlflow

ROWS = 1200
PARAMS = {
    "target": "paid",
    "numeric": ["x", "seats", "gaps", "member"],
    "categorical": ["shop", "month", "code", "rare", "day"],
    "order": "hour",
}


def table(folder: Path) -> Artifact:
    """Every kind of column that people have; most of them matter."""
    rng = np.random.default_rng(0)
    x = rng.normal(50, 10, ROWS)
    shop = rng.choice(["a", "b", "ç"], ROWS)
    month = rng.integers(1, 13, ROWS)
    code = rng.choice(["01", "02", "30"], ROWS)
    logit = (x - 50) / 5 + 2 * (shop == "ç") + (month > 6) - 2 * (code == "01")
    frame = pl.DataFrame(
        {
            "x": x,
            "seats": rng.integers(0, 9, ROWS),
            "gaps": np.where(np.arange(ROWS) % 7 == 0, np.nan, x),
            "member": rng.random(ROWS) < 0.5,
            "shop": shop,
            "month": month,
            "code": code,
            "rare": [None if i % 3 == 0 else "old" for i in range(ROWS)],
            "day": pl.Series([17_000 + i % 5 for i in range(ROWS)], dtype=pl.Int32).cast(pl.Date),
            "hour": np.arange(ROWS) // 10,
            "paid": rng.random(ROWS) < 1 / (1 + np.exp(-logit)),
        }
    )
    frame = frame.with_columns(pl.col("gaps").fill_nan(None))
    return artifact.save(
        folder / "table", "table", DataSpec(rows=ROWS), files={"table.parquet": frame.write_parquet}
    )


Made = tuple[RecordingRun, Artifact, Artifact]


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    found = dict[str, Made]()
    for model in ("boosted", "linear"):
        folder = tmp_path_factory.mktemp(model)
        run, data = RecordingRun(folder), table(folder)
        params = FitParams.model_validate({**PARAMS, "model": model, "rounds": 40})
        found[model] = (run, fit_table.body(run, params, data), data)
    return found


@pytest.fixture(scope="module", params=["boosted", "linear"])
def made(request: pytest.FixtureRequest, all_made: dict[str, Made]) -> Made:
    return all_made[request.param]


@pytest.fixture(scope="module")
def model(made: tuple[RecordingRun, Artifact, Artifact], tmp_path_factory: pytest.TempPathFactory) -> object:
    return by_mlflow(made[1], tmp_path_factory.mktemp("packed") / "model")


@pytest.fixture
def test_rows(made: tuple[RecordingRun, Artifact, Artifact]) -> pd.DataFrame:
    return pl.read_parquet(made[2].path / "table.parquet").filter(pl.col("hour") >= 96).to_pandas()


def test_the_logged_scores_come_from_raw_rows(made, model, test_rows) -> None:
    run = made[0]
    found = model.predict(test_rows)
    truth = test_rows["paid"].astype(str).str.lower()
    assert list(found) == ["class", "probability", "probability_false", "probability_true"]
    assert (found["class"] == truth).mean() == pytest.approx(run.last("test/accuracy"), abs=1e-6)
    chosen = np.where(truth == "true", found["probability_true"], found["probability_false"])
    assert -np.log(chosen).mean() == pytest.approx(run.last("test/log_loss"), abs=1e-6)
    assert run.last("test/accuracy") > run.last("test/majority") + 0.1


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[rows.columns[::-1]],
        lambda rows: rows.assign(
            seats=rows["seats"].astype(float), month=rows["month"].astype(float), more="?"
        ),
        lambda rows: rows.assign(x=rows["x"].astype(object), month=rows["month"].astype(str) + ".0"),
        lambda rows: rows.astype(str).replace({"nan": None, "None": None, "NaT": None}),
        lambda rows: rows.assign(member=rows["member"].astype(int), shop=rows["shop"].astype("category")),
        lambda rows: rows.assign(day=pd.to_datetime(rows["day"])),
        lambda rows: rows.to_dict("records"),
        lambda rows: rows.convert_dtypes(),
        lambda rows: rows.sample(frac=1, random_state=0).sort_index(),
    ],
    ids=["order", "floats", "objects", "text", "category", "times", "records", "nullable", "index"],
)
def test_columns_are_known_by_name_in_any_order_and_type(model, test_rows, change) -> None:
    want = model.predict(test_rows)
    pd.testing.assert_frame_equal(model.predict(change(test_rows)), want, check_exact=False, atol=1e-9)


def test_one_row_is_a_row(model, test_rows) -> None:
    want = model.predict(test_rows[:1])
    pd.testing.assert_frame_equal(model.predict(test_rows.iloc[0]), want)
    pd.testing.assert_frame_equal(model.predict(test_rows.iloc[0].to_dict()), want)
    assert model.predict(test_rows[:0]).shape == (0, 4)


def test_missing_and_unseen_values_have_their_weights(made, model, test_rows) -> None:
    predictor = RowPredictor(made[1].path)
    missing = test_rows[:3].assign(x=[None, np.nan, pd.NA], shop=None, month=np.nan)
    assert model.predict(missing)["probability"].notna().all()
    unseen = test_rows[:2].assign(shop=["nowhere", "(other)"], month=["abc", 77], code=[30, 30.0])
    known = predictor.predict(unseen)
    assert known["probability_true"].iloc[0] != known["probability_true"].iloc[1]  # another x
    same = predictor.predict(unseen.assign(shop="(other)", month=99, code="30"))
    pd.testing.assert_frame_equal(known, same)


def test_a_missing_column_is_refused_by_its_name(model, test_rows) -> None:
    with pytest.raises(MlflowException, match="column 'month' is missing"):
        model.predict(test_rows.drop(columns="month"))
    with pytest.raises(MlflowException, match="'month' is missing; did you mean your 'Month'"):
        model.predict(test_rows.rename(columns={"month": "Month"}))
    with pytest.raises(MlflowException, match="'x' takes numbers; row 1 has 'tall'"):
        model.predict(test_rows[:2].assign(x=["1.5", "tall"]))
    with pytest.raises(MlflowException, match="takes a table with the columns 'x', 'seats'"):
        model.predict(test_rows[["x", "seats"]].to_numpy())
    twice = pd.concat([test_rows, test_rows[["x"]]], axis=1)
    with pytest.raises(MlflowException, match="'x' is there 2 times"):
        model.predict(twice)


def test_the_signature_names_columns_and_types(made, model) -> None:
    inputs = {column.name: str(column.type) for column in model.metadata.signature.inputs}
    assert inputs == {
        "x": "DataType.double",
        "seats": "DataType.long",
        "gaps": "DataType.double",
        "member": "DataType.boolean",
        **dict.fromkeys(("shop", "code", "rare", "day"), "DataType.string"),
        "month": "DataType.long",
    }
    assert model.predict(model.input_example).shape == (3, 4)


def test_losses_of_items_are_those_of_the_logged_accuracy(made) -> None:
    run, model, data = made
    found = RowPredictor(model.path).item_losses(data)
    assert 1 - found.loss.mean() == pytest.approx(run.last("test/accuracy"), abs=1e-9)
    assert len(set(found.item)) == len(found.loss) == len(found.cluster) == len(found.group) == 240
    assert len(set(found.cluster)) == 24  # rows of an hour are no independent evidence
    assert set(found.group) == {"false", "true"}


def test_a_number_comes_from_raw_rows(tmp_path: Path) -> None:
    data, run = table(tmp_path), RecordingRun(tmp_path)
    params = {**PARAMS, "target": "x * 2", "numeric": ["gaps", "seats"], "unit": "cm"}
    made = fit_table.body(run, FitParams.model_validate(params), data)
    model = by_mlflow(made, tmp_path / "packed")
    rows = pl.read_parquet(data.path / "table.parquet").filter(pl.col("hour") >= 96).to_pandas()
    found = model.predict(rows.astype({"seats": float}).iloc[:, ::-1])
    assert list(found) == ["prediction"]
    error = found["prediction"].to_numpy() - (rows["x"] * 2).to_numpy()
    assert np.sqrt((error**2).mean()) == pytest.approx(run.last("test/rmse"), rel=1e-9)
    assert {column.name: str(column.type) for column in model.metadata.signature.outputs} == {
        "prediction": "DataType.double"
    }
    losses = RowPredictor(made.path).item_losses(data)
    known = pl.read_parquet(data.path / "table.parquet").filter(pl.col("hour") < 96)
    spread = float((known["x"] * 2).to_numpy().std())
    assert losses.loss == pytest.approx(np.minimum(1, (error / (3 * spread)) ** 2))


def test_a_model_of_an_earlier_version_answers_but_is_not_compared(made, test_rows, tmp_path: Path) -> None:
    if RowPredictor(made[1].path).params.model == "boosted":
        pytest.skip("an earlier version had linear models alone")
    shutil.copytree(made[1].path, tmp_path / "old")
    meta = json.loads((tmp_path / "old" / "meta.json").read_text())
    for name in ("task", "model", "numeric"):
        del meta["config"][name]
    old = ("target", "numeric", "categorical", "levels", "order", "test", "strength", "iterations", "backend")
    meta["config"]["params"] = {name: meta["config"]["params"][name] for name in old}
    (tmp_path / "old" / "meta.json").write_text(json.dumps(meta))
    before, now = RowPredictor(tmp_path / "old"), RowPredictor(made[1].path)
    pd.testing.assert_frame_equal(before.predict(test_rows), now.predict(test_rows))
    with pytest.raises(DataError, match=r"trained by an earlier version.*promote by hand"):
        before.item_losses(made[2])


def test_answers_need_no_torch(all_made) -> None:
    given = {str(model.path): RowPredictor(model.path).interface.example for _, model, _ in all_made.values()}
    code = (
        "import sys, json, pathlib, pandas; from tasks.tabular.predictor import predictor\n"
        "for path, rows in json.loads(sys.argv[1]).items():\n"
        "    assert len(predictor(pathlib.Path(path)).predict(pandas.DataFrame(rows))) == len(rows)\n"
        "print('torch' in sys.modules, 'sklearn' in sys.modules)"
    )
    command = [sys.executable, "-c", code, json.dumps(given)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_a_folder_without_a_model_is_refused(made, tmp_path: Path) -> None:
    from overnight import predictor

    with pytest.raises(BadInput, match="is no model"):
        predictor.load(made[2].path)
    with pytest.raises(BadInput, match=r"no readable meta\.json"):
        predictor.load(tmp_path)
    assert type(predictor.load(made[1].path)).__name__ == "RowPredictor"
