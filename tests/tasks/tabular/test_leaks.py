"""Columns that give the answer away are named, others are not; equal rows do not let a model learn by heart."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tasks.tabular.leaks import telling
from tasks.tabular.params import FitParams
from tasks.tabular.parts import cut
from tasks.tabular.target import labelled
from tests.tasks.tabular.test_fit import ROWS, fitted, table

RNG = np.random.default_rng(5)


def alone(tmp_path: Path, target: str, leak: np.ndarray) -> dict[str, float]:
    """What tells the target on its own, of an honest column and another."""
    data = table(tmp_path, leak=pl.Series(leak.tolist()))
    is_text = leak.dtype.kind in "OU"
    params = FitParams(
        target=target,
        numeric=["noise", *([] if is_text else ["leak"])],
        categorical=["shop", *(["leak"] if is_text else [])],
    )
    rows = labelled(params, data)
    parts = cut(params, rows, seed=0)
    return telling(rows, np.concatenate([parts.train, parts.val]), parts.identity)


def truth(tmp_path: Path, column: str) -> np.ndarray:
    return pl.read_parquet(table(tmp_path).path / "table.parquet")[column].to_numpy()


PLANTED = {
    "copy": lambda paid: paid,
    "words": lambda paid: np.where(paid, "cleared", "open"),
    "date": lambda paid: np.where(paid, np.char.add("day ", np.arange(ROWS).astype(str)), None),
    "amount": lambda paid: np.where(paid, RNG.uniform(1, 9, ROWS), 0.0),
    "gap": lambda paid: np.where(paid, RNG.normal(size=ROWS), np.nan),
    "ids": lambda paid: np.argsort(np.argsort(paid + RNG.random(ROWS) / 2)),
    "parity": lambda paid: 2 * RNG.integers(0, 50, ROWS) + paid,
    "a few wrong": lambda paid: paid ^ (np.arange(ROWS) % 400 == 0),
}
NUMBERS = {
    "scaled": lambda size: 3 * size + 7,
    "rounded": lambda size: size.round(1),
    "bent": np.exp,
    "noisy": lambda size: -size + RNG.normal(size=ROWS) / 8,
    "words": lambda size: np.char.add("about ", size.round(1).astype(str)),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_column_that_tells_the_class_is_named(tmp_path: Path, kind: str) -> None:
    assert set(alone(tmp_path, "paid", PLANTED[kind](truth(tmp_path, "paid")))) == {"leak"}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_column_that_tells_the_number_is_named(tmp_path: Path, kind: str) -> None:
    assert set(alone(tmp_path, "size", NUMBERS[kind](truth(tmp_path, "size") / 20))) == {"leak"}


@pytest.mark.parametrize("target", ["paid", "size", "CASE WHEN y < 40 THEN 1 WHEN y < 60 THEN 2 ELSE 3 END"])
def test_an_honest_column_is_not_named(tmp_path: Path, target: str) -> None:
    x = truth(tmp_path, "x")
    assert alone(tmp_path, target, x + RNG.normal(0, 5, ROWS)) == {}
    assert alone(tmp_path, target, np.arange(ROWS).astype(str)) == {}


def test_the_note_names_it(tmp_path: Path) -> None:
    run, _ = fitted(tmp_path, table(tmp_path), numeric=["noise", "y"], target="x > 50", categorical=[])
    assert "y (1.000) tell the target on their own (ROC AUC)" in run.of("note")[0]["text"]
    assert run.last("leak/columns") == 1


def test_random_labels_on_repeated_rows_are_not_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    four = {
        "x": np.tile(rng.normal(size=ROWS // 4), 4),
        "noise": np.tile(rng.normal(size=ROWS // 4), 4),
        "label": np.tile(rng.random(ROWS // 4) < 0.5, 4),
    }
    data = table(tmp_path, **four)
    wanted = {"target": "label", "numeric": ["x", "noise"], "categorical": []}
    run, _ = fitted(tmp_path, data, **wanted)
    assert run.last("test/roc_auc") == pytest.approx(0.5, abs=0.05)
    assert run.last("split/test_rows_seen") == 0
    run, _ = fitted(tmp_path, data, **wanted, order="day")  # this cut parts them, and says so
    assert run.last("split/test_rows_seen") == 800
    assert "800 test rows have the features of a row that was learned from" in run.of("note")[0]["text"]


def test_shuffled_rows_give_the_same_scores(tmp_path: Path) -> None:
    data = table(tmp_path)
    wanted = {"categorical": ["shop"], "numeric": ["x", "noise"]}
    first, _ = fitted(tmp_path, data, **wanted)
    mixed = pl.read_parquet(data.path / "table.parquet").sample(fraction=1.0, shuffle=True, seed=8)
    mixed.write_parquet(data.path / "table.parquet")
    second, _ = fitted(tmp_path, data, **wanted)
    for name in ("test/roc_auc", "test/log_loss", "test/roc_auc_linear", "val/roc_auc"):
        assert second.last(name) == pytest.approx(first.last(name), abs=1e-9)
