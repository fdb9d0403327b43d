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
from tasks.tabular.fit import FitParams, fit_table
from tasks.tabular.predictor import RowClassifier

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
            **more,
        }
    )
    return artifact.save(
        tmp_path / "table", "table", DataSpec(rows=ROWS), files={"table.parquet": frame.write_parquet}
    )


def fitted(tmp_path: Path, data: Artifact, seed: int = 0, **params: object) -> tuple[RecordingRun, Artifact]:
    run = RecordingRun(tmp_path / "run", seed=seed)
    run.folder.mkdir(exist_ok=True)
    given = {"target": "paid", "numeric": ["x", "noise", "one"], "categorical": ["shop"], **params}
    return run, fit_table.body(run, FitParams(**given), data)


def test_it_finds_what_decides_and_beats_the_majority(tmp_path: Path) -> None:
    data = table(tmp_path)
    rows = pl.read_parquet(data.path / "table.parquet")
    logits = (rows["x"].to_numpy() - 50) / 5 + 2 * (rows["shop"].to_numpy() == "ç")
    best = roc_auc_score(rows["paid"].to_numpy(), logits)
    run, model = fitted(tmp_path, data)
    assert abs(run.last("test/roc_auc") - best) < 0.02
    assert run.last("test/accuracy") > run.last("test/majority") + 0.15
    assert run.last("test/log_loss") < run.last("test/log_loss_prior") - 0.15
    assert model.spec.classes == ("false", "true")
    assert {Path(e["path"]).stem for e in run.of("publish")} == {"roc", "confusion", "weights"}


def test_it_claims_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    run, _ = fitted(tmp_path, table(tmp_path), numeric=["noise"], categorical=[])
    assert abs(run.last("test/roc_auc") - 0.5) < 0.06
    assert run.last("test/log_loss") == pytest.approx(run.last("test/log_loss_prior"), abs=0.01)


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
    config = model.meta()["config"]["encoder"]
    assert config["levels"][1] == ["old", "(missing)", "(other)"]  # "new" occurs in the test rows alone
    assert config["flagged"] == [1, 2]
    assert run.last("test/roc_auc") > 0.85


def test_several_classes_and_a_target_that_is_an_expression(tmp_path: Path) -> None:
    target = "CASE WHEN x < 45 THEN 'low' WHEN x < 55 THEN 'middle' WHEN x < 90 THEN 'high' END"
    run, model = fitted(tmp_path, table(tmp_path), target=target, numeric=["x"])
    assert model.spec.classes == ("high", "low", "middle")
    assert run.last("test/accuracy") > 0.85
    example = pd.DataFrame(list(RowClassifier(model.path).interface.example))
    assert RowClassifier(model.path).predict(example).shape == (3, 5)


def test_rows_without_a_class_are_left_out_and_counted(tmp_path: Path) -> None:
    run, _ = fitted(tmp_path, table(tmp_path), target="CASE WHEN day < 300 THEN paid END")
    assert (run.last("rows/in"), run.last("rows/without_class")) == (4000, 1000)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"numeric": ["y"]}, "no column 'y'; the table has x, shop"),
        ({"numeric": ["shop"]}, "'shop' is String, not a number"),
        ({"numeric": [], "categorical": []}, "at least one column"),
        ({"target": "one"}, "has 1 classes in 4000 rows"),
        ({"target": "noise"}, "has 4000 classes"),
        ({"target": "payed"}, "target 'payed' does not work"),
        ({"target": "day < 320", "order": "day"}, "fewer than 2 classes"),
        ({"backend": "cuml"}, "backend cuml was asked for, but"),
    ],
)
def test_what_cannot_be_fitted_says_why(tmp_path: Path, params: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted(tmp_path, table(tmp_path), **params)


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    data = table(tmp_path)
    first, second, other = (fitted(tmp_path, data, seed)[1].digest for seed in (0, 0, 1))
    assert first == second != other
