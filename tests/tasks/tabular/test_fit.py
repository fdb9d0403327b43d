"""A classifier on a table: finds what is there, claims nothing where nothing is, and its saved form says the
same.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from overnight import Artifact, DataSpec, RecordingRun, artifact
from overnight.errors import DataError
from tasks.tabular.fit import fit_table
from tasks.tabular.params import FitParams
from tasks.tabular.predictor import RowPredictor
from tasks.tabular.target import labelled
from tests.support.undrawn import UndrawnRun

ROWS = 4000


def table(tmp_path: Path, **more: object) -> Artifact:
    """x and shop decide the class `paid`; noise, and a column of one value, do not."""
    rng = np.random.default_rng(0)
    x, shop = rng.normal(50, 10, ROWS), rng.choice(["a", "b", "ç"], ROWS, p=[0.5, 0.3, 0.2])
    logit = (x - 50) / 5 + 2 * (shop == "ç") - 1
    paid = rng.random(ROWS) < 1 / (1 + np.exp(-logit))
    frame = pl.DataFrame(
        {
            "x": x,
            "shop": shop,
            "noise": rng.normal(size=ROWS),
            "one": 1,
            "day": np.arange(ROWS) // 10,
            "paid": paid,
            "size": 2 * x + 10 * (shop == "ç") + rng.normal(size=ROWS),
            "amount": np.exp(x / 20 + rng.normal(0, 0.1, ROWS)),
            "y": x,
            **more,
        }
    )
    return artifact.save(
        tmp_path / "table", "table", DataSpec(rows=ROWS), files={"table.parquet": frame.write_parquet}
    )


def fitted(tmp_path: Path, data: Artifact, seed: int = 0, **params: object) -> tuple[RecordingRun, Artifact]:
    return fitted_by(UndrawnRun(tmp_path / "run", seed=seed), data, **params)


def drawn(tmp_path: Path, data: Artifact, **params: object) -> tuple[RecordingRun, Artifact]:
    """With its pictures rendered."""
    found = fitted_by(RecordingRun(tmp_path / "run"), data, **params)
    assert all(Path(e["path"]).stat().st_size > 1000 for e in found[0].of("publish"))
    return found


def fitted_by(run: RecordingRun, data: Artifact, **params: object) -> tuple[RecordingRun, Artifact]:
    run.folder.mkdir(exist_ok=True)
    given = {
        "target": "paid",
        "numeric": ["x", "noise", "one"],
        "categorical": ["shop"],
        "rounds": 40,
        **params,
    }
    return run, fit_table.body(run, FitParams(**given), data)


def test_it_finds_what_decides_and_beats_the_majority(tmp_path: Path) -> None:
    data = table(tmp_path)
    rows = pl.read_parquet(data.path / "table.parquet")
    logits = (rows["x"].to_numpy() - 50) / 5 + 2 * (rows["shop"].to_numpy() == "ç")
    best = roc_auc_score(rows["paid"].to_numpy(), logits)
    run, model = drawn(tmp_path, data)
    assert run.last("test/roc_auc_low") < best < run.last("test/roc_auc_high")
    assert run.last("test/accuracy") > run.last("test/majority") + 0.15
    assert run.last("test/log_loss") < run.last("test/log_loss_prior") - 0.15
    assert model.spec.classes == ("false", "true")
    assert run.last("test/roc_auc_low") < run.last("test/roc_auc") < run.last("test/roc_auc_high")
    assert abs(run.last("test/roc_auc_linear") - best) < 0.04
    assert (run.last("train/linear_converged"), run.last("train/boosted_converged")) == (1, 1)
    assert next(iter(run.of("metrics")[2]["values"])) == "test/roc_auc"  # the main score comes first
    assert {Path(e["path"]).stem for e in run.of("publish")} == {"roc", "confusion", "importance"}


def test_a_number_is_predicted_beside_its_mean(tmp_path: Path) -> None:
    data = table(tmp_path)
    run, model = drawn(tmp_path, data, target="size", unit="cm")
    assert 1.0 < run.last("test/rmse") < 1.6  # the noise has 1
    assert 0.95 < run.last("test/rmse_linear") < 1.1
    assert run.last("test/rmse_low") < run.last("test/rmse") < run.last("test/rmse_high")
    assert run.last("test/rmse_mean") > 15
    assert run.last("test/r2") > 0.98
    assert run.last("val/mae") < run.last("test/mae_mean") / 5
    assert {Path(e["path"]).stem for e in run.of("publish")} == {"residuals", "importance"}
    predictor = RowPredictor(model.path)
    assert predictor.interface.about == "Boosted trees: size in cm"
    found = predictor.item_losses(data)
    assert 0 < found.loss.mean() < 0.01
    assert found.loss.max() <= 1
    assert len(set(found.group)) == 4
    worse = RowPredictor(fitted(tmp_path, data, target="size", numeric=["noise"])[1].path).item_losses(data)
    assert len(worse.loss) != len(found.loss) or worse.loss.mean() > 10 * found.loss.mean()


def test_a_number_of_large_spread_is_fitted_by_its_logarithm(tmp_path: Path) -> None:
    data = table(tmp_path)
    rows = pl.read_parquet(data.path / "table.parquet").to_pandas()
    errors = []
    for log_target in (True, False):
        run, model = fitted(tmp_path, data, target="amount", log_target=log_target, model="linear")
        found = RowPredictor(model.path).predict(rows)["prediction"]
        errors.append(float(((found - rows["amount"]) ** 2).mean()))
        assert run.last("test/rmse") ** 2 == pytest.approx(errors[-1], rel=0.3)
    assert errors[0] < 0.5 * errors[1]


def test_weights_of_classes_move_the_answers(tmp_path: Path) -> None:
    data = table(tmp_path)
    rare = "paid AND day % 5 = 0"
    shares = []
    for weights in ("balanced", {"true": 20}):
        _, model = fitted(tmp_path, data, target=rare, class_weights=weights, model="linear")
        rows = pl.read_parquet(data.path / "table.parquet").to_pandas()
        shares.append((RowPredictor(model.path).predict(rows)["class"] == "true").mean())
    assert 0.2 < shares[0] < 0.8  # without weights it is 0
    assert shares[1] > shares[0]


def test_classes_that_are_numbers_stand_in_their_order(tmp_path: Path) -> None:
    data = table(tmp_path)
    for target, last in (("day % 12 * 1.0", ""), ("CAST(day % 12 + 0.5 AS VARCHAR)", ".5")):
        rows = labelled(FitParams(target=target, numeric=["x"], task="classify"), data)
        assert rows.classes == [f"{n}{last}" for n in range(12)]
        assert rows.values[:200].tolist() == (np.arange(200) // 10 % 12).tolist()


@pytest.mark.parametrize(
    ("target", "task"),
    [
        *((target, "classify") for target in ("paid", "shop", "day % 5", "day % 5 * 1.0")),
        *((target, "regress") for target in ("day % 60", "day % 5 * 0.3", "noise")),
    ],
)
def test_the_task_follows_from_the_target(tmp_path: Path, target: str, task: str) -> None:
    assert labelled(FitParams(target=target, numeric=["x"]), table(tmp_path)).task == task


def test_a_model_that_has_not_converged_says_so(tmp_path: Path) -> None:
    run, _ = fitted(tmp_path, table(tmp_path), iterations=1, rounds=2)
    assert (run.last("train/linear_converged"), run.last("train/boosted_converged")) == (0, 0)
    assert "raise iterations" in run.of("note")[0]["text"]
    assert "raise rounds" in run.of("note")[0]["text"]


def test_a_column_of_many_levels_is_learned_from_training_rows_alone(tmp_path: Path) -> None:
    """600 levels without meaning: means that saw the row's own answer would fit the training rows by heart."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 600, ROWS).astype(str)
    effect = rng.normal(size=300)
    level = rng.integers(0, 300, ROWS)
    data = table(tmp_path, many=noise, level=level.astype(str), told=effect[level] + rng.normal(0, 0.3, ROWS))
    run, model = fitted(tmp_path, data, numeric=["noise"], categorical=["many"])
    assert abs(run.last("test/roc_auc") - 0.5) < 0.06
    assert model.meta()["config"]["tree_encoder"]["many"] == ["many"]
    run, _ = fitted(tmp_path, data, target="told", numeric=["noise"], categorical=["level"])
    assert run.last("test/r2") > 0.8


def test_all_means_what_is_left(tmp_path: Path) -> None:
    params = FitParams(target="paid", numeric="all", categorical="all", order="day")
    rows = labelled(params, table(tmp_path))
    assert (rows.numeric, rows.categorical) == (["x", "noise", "one", "size", "amount", "y"], ["shop"])


def test_it_claims_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    run, _ = fitted(tmp_path, table(tmp_path), numeric=["noise"], categorical=[])
    assert abs(run.last("test/roc_auc") - 0.5) < 0.06
    assert run.last("test/log_loss") == pytest.approx(run.last("test/log_loss_prior"), abs=0.02)


def test_ordered_rows_are_tested_on_the_last_and_equal_ones_stay_together(tmp_path: Path) -> None:
    # the class turns around for the last fifth of the days: learned on the first ones, it must be wrong there
    turned = table(tmp_path)
    frame = pl.read_parquet(turned.path / "table.parquet").with_columns(late=pl.col("day") >= 320)
    frame = frame.with_columns(paid=(pl.col("x") > 50) ^ pl.col("late")).sample(
        fraction=1.0, shuffle=True, seed=1
    )
    frame.write_parquet(turned.path / "table.parquet")
    run, _ = fitted(tmp_path, turned, order="day", numeric=["x"])
    assert run.last("test/accuracy") < 0.05
    assert run.of("note")[0]["text"].count("800 later rows") == 1


def test_missing_values_and_unseen_levels_have_their_rules(tmp_path: Path) -> None:
    holes = np.where(np.arange(ROWS) % 7 == 0, np.nan, np.random.default_rng(1).normal(size=ROWS))
    level = [None if i % 5 == 0 else "old" for i in range(ROWS - 10)] + ["new"] * 10
    data = table(tmp_path, holes=holes, level=level, nothing=pl.Series([None] * ROWS, dtype=pl.Float64))
    run, model = fitted(
        tmp_path, data, numeric=["x", "holes", "nothing"], categorical=["shop", "level"], order="day"
    )
    config = model.meta()["config"]["tree_encoder"]
    assert config["levels"][1] == ["old"]  # "new" occurs in the test rows alone
    assert config["numeric"] == ["x", "holes"]
    assert run.last("test/roc_auc") > 0.85
    assert run.last("test/roc_auc_linear") > 0.85
    wanted = {"numeric": ["x", "holes", "nothing"], "categorical": ["shop", "level"]}
    _, linear = drawn(tmp_path, data, **wanted, order="day", model="linear")
    config = linear.meta()["config"]["encoder"]
    assert config["levels"][1] == ["old", "(missing)", "(other)"]
    assert config["flagged"] == [1, 2]


def test_several_classes_and_a_target_that_is_an_expression(tmp_path: Path) -> None:
    target = "CASE WHEN y < 45 THEN 'low' WHEN y < 55 THEN 'middle' WHEN y < 90 THEN 'high' END"
    run, model = drawn(tmp_path, table(tmp_path), target=target, numeric=["x"])
    assert model.spec.classes == ("high", "low", "middle")
    assert [e["values"] for e in run.of("metrics")][2]["test/macro_f1"] > 0.8
    assert run.last("test/accuracy") > 0.85
    example = pd.DataFrame(list(RowPredictor(model.path).interface.example))
    assert RowPredictor(model.path).predict(example).shape == (3, 5)


def test_rows_without_a_class_are_left_out_and_counted(tmp_path: Path) -> None:
    run, _ = fitted(tmp_path, table(tmp_path), target="CASE WHEN day < 300 THEN paid END")
    assert (run.last("rows/in"), run.last("rows/without_target")) == (4000, 1000)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"numeric": ["z"]}, "no column 'z'; the table has x, shop"),
        ({"numeric": ["shop"]}, "'shop' is String, not a number"),
        ({"numeric": [], "categorical": []}, "at least one column"),
        ({"target": "one", "numeric": ["x"]}, "has 1 classes in 4000 rows"),
        ({"target": "noise", "numeric": ["x"], "task": "classify"}, "has 4000 classes.*task: regress"),
        ({"target": "payed"}, "predictor.target: 'payed' names 'payed'"),
        ({"target": "day < 320", "order": "day"}, "fewer than 2 classes"),
        ({"backend": "cuml"}, "backend cuml was asked for, but"),
        ({"target": "y > 50 OR x > 60", "categorical": ["paid"]}, "'x' is part of the target"),
        ({"target": "day % 37"}, "37 different whole numbers.*say task: classify or task: regress"),
        ({"target": "shop", "categorical": [], "task": "regress"}, "is String, no number"),
        ({"target": "noise", "numeric": ["x"], "log_target": True}, "needs numbers from 0 on"),
        ({"target": "1 / (day - 1)"}, "infinite in 10 rows"),
        ({"target": "size", "class_weights": "balanced"}, "class_weights has no effect"),
        ({"log_target": True}, "log_target has no effect"),
        ({"class_weights": {"yes": 2}}, "of the classes false, true"),
        ({"categorical": ["x"]}, "'x' stands 2 times under numeric and categorical"),
        ({"numeric": ["nothing"], "categorical": []}, "no column has a value"),
        ({"numeric": ["x", "x"]}, "'x' stands 2 times"),
        ({"categorical": ["pair"]}, r"'pair' is List\(Int64\), which is no number"),
        ({"target": "pair"}, "it needs numbers, texts or truth values"),
        ({"target": "nothing", "numeric": ["x"]}, "with a value in 0 of 4000 rows"),
        ({"order": "nth"}, "order 'nth' is text, such as '0'"),
        ({"numeric": ["huge"]}, "'huge' is too large to scale"),
        ({"target": "size", "numeric": ["huge"], "task": "regress"}, "'huge' is too large to scale"),
        ({"target": "huge", "numeric": ["x"]}, "too far from 1 for squared errors"),
    ],
)
def test_what_cannot_be_fitted_says_why(tmp_path: Path, params: dict[str, object], message: str) -> None:
    huge = np.linspace(-1e300, 1e300, ROWS)
    nothing = pl.Series([None] * ROWS, dtype=pl.Float64)
    nth = [str(i) for i in range(ROWS)]
    data = table(tmp_path, nothing=nothing, pair=[[1, 2]] * ROWS, huge=huge, nth=nth)
    with pytest.raises(DataError, match=message):
        fitted(tmp_path, data, **params)


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    data = table(tmp_path)
    first, second, other = (fitted(tmp_path, data, seed)[1].digest for seed in (0, 0, 1))
    assert first == second != other
