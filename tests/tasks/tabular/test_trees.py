"""Trees as arrays answer as scikit-learn's own."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from tasks.tabular.trees import Trees

ROWS = 1500


def codes(seed: int) -> np.ndarray:
    """Three columns of categories, one of 200, and four of numbers; all have gaps, and one is infinite."""
    rng = np.random.default_rng(seed)
    categories = np.stack([rng.integers(0, most, ROWS) for most in (3, 7, 200)], axis=1).astype(float)
    numbers = rng.normal(size=(ROWS, 4)).round(1)
    numbers[rng.random(ROWS) < 0.05, 1] = np.inf
    found = np.hstack([categories, numbers])
    found[rng.random(found.shape) < 0.1] = np.nan
    found[:200, 2] = np.arange(200)  # each is there, so that its number is its place
    return found


def target(given: np.ndarray) -> np.ndarray:
    whole = np.nan_to_num(given, nan=-3, posinf=9)
    return whole[:, 3] + (whole[:, 1] % 3) * whole[:, 4] + (whole[:, 2] % 5 == 1) * 2


@pytest.mark.parametrize("outputs", [0, 2, 5])
@pytest.mark.parametrize("categorical", [[0, 1, 2], None])
def test_they_answer_as_scikit_learn(outputs: int, categorical: list[int] | None, tmp_path: Path) -> None:
    train, test = codes(0), codes(1)
    kind = HistGradientBoostingClassifier if outputs else HistGradientBoostingRegressor
    model = kind(max_iter=25, categorical_features=categorical, early_stopping=False, random_state=0)
    values = target(train)
    if outputs:
        values = np.digitize(values, np.quantile(values, np.linspace(0, 1, outputs + 1)[1:-1]))
    model.fit(train, values)
    save_file(asdict(Trees.of(model, 25)), tmp_path / "trees")
    trees = Trees(**load_file(tmp_path / "trees"))
    want = model._raw_predict(test)
    assert np.abs(trees.raw(test) - want).max() < 1e-9
    assert np.ptp(want) > 1
    assert trees.raw(test[:0]).shape == (0, want.shape[1])
    half = list(model.staged_predict(test))[9]
    raw = Trees.of(model, 10).raw(test)
    assert (np.allclose(raw[:, 0], half)) if not outputs else (np.mean(_classes(raw) == half) == 1)


def _classes(raw: np.ndarray) -> np.ndarray:
    return (raw[:, 0] > 0).astype(int) if raw.shape[1] == 1 else raw.argmax(1)
