"""Scores are those of scikit-learn, and intervals hold what they say."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score, root_mean_squared_error

from tasks.tabular import scores

RNG = np.random.default_rng(0)


def test_areas_are_those_of_scikit_learn_with_ties_and_weights() -> None:
    truth, score = RNG.random(500) < 0.3, RNG.integers(0, 9, 500) / 9
    weights = RNG.integers(0, 4, (3, 500)).astype(float)
    assert scores.auc(truth, score) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    want = [roc_auc_score(truth, score, sample_weight=one) for one in weights]
    assert scores._areas(truth, score, weights) == pytest.approx(want, abs=1e-12)
    assert scores.auc(np.ones(3, bool), np.arange(3)) == 0.5


def test_scores_of_numbers_are_those_of_scikit_learn() -> None:
    truth, found = RNG.normal(size=200), RNG.normal(size=200)
    want = {
        "rmse": root_mean_squared_error(truth, found),
        "mae": mean_absolute_error(truth, found),
        "r2": r2_score(truth, found),
    }
    assert scores.number_scores(truth, found) == pytest.approx(want)
    assert scores.number_floor(np.array([1.0, 3.0]), np.array([2.0, 4.0])) == {
        "rmse_mean": pytest.approx(2**0.5),
        "mae_mean": 1.0,
    }


def test_the_main_score_comes_first_and_a_missing_class_is_left_out() -> None:
    truth, sure = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    two = scores.class_scores(truth, sure)
    assert list(two) == ["roc_auc", "accuracy", "log_loss", "macro_f1"]
    assert two["roc_auc"] == 0.75
    three = scores.class_scores(truth, np.hstack([sure, np.zeros((4, 1))]))
    assert next(iter(three)) == "accuracy"
    assert three["macro_f1"] == two["macro_f1"]
    assert "roc_auc" not in scores.class_scores(np.zeros(4, int), sure)


@pytest.mark.parametrize("name", ["roc_auc", "accuracy", "rmse"])
def test_an_interval_of_clusters_is_wider_than_one_of_their_rows(name: str) -> None:
    """Each row is there ten times: taken for new evidence, they would make the interval three times too small."""
    truth = np.repeat(RNG.integers(0, 2, 60), 10)
    noise = np.repeat(RNG.normal(size=60), 10)
    share = 1 / (1 + np.exp(-(truth - 0.5) - noise))
    found = noise + truth if name == "rmse" else np.stack([1 - share, share], axis=1)
    wide = scores.interval(name, truth, found, np.repeat(np.arange(60), 10), seed=0)
    narrow = scores.interval(name, truth, found, np.arange(600), seed=0)
    assert 2 < (wide[1] - wide[0]) / (narrow[1] - narrow[0]) < 4.5
