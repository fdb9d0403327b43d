"""Several seeds: which, under which names, and what their scores vary by."""

import math

import pytest
from scipy import stats

from overnight.config import Experiment
from overnight.orchestration.seeds import as_metrics, seeds_of, spread, spreads


def test_seeds_count_on_from_the_first_and_fit_into_32_bits():
    assert seeds_of(Experiment(seed=7, seeds=3)) == [7, 8, 9]
    assert seeds_of(Experiment(seed=2**32 - 1, seeds=2)) == [2**32 - 1, 0]


def test_the_interval_is_students():
    values = [0.91, 0.93, 0.92, 0.90, 0.94]
    found = spread(values)
    low, high = stats.t.interval(0.95, 4, loc=found.mean, scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    wide = found.one_more()
    assert wide[1] - found.mean == pytest.approx((high - found.mean) * math.sqrt(6))


def test_scores_are_gathered_over_the_seeds_and_those_of_one_seed_are_left_out():
    scores = {"seed-0/cnn/accuracy": 0.5, "seed-1/cnn/accuracy": 0.7, "seed-0/cnn/loss": 1.0, "etl/rows": 3.0}
    found = spreads(scores | {"seed-1/cnn/loss": float("nan")})
    assert list(found) == ["cnn/accuracy"]
    assert as_metrics(found)["cnn/accuracy"] == pytest.approx(0.6)
    assert set(as_metrics(found)) == {
        "cnn/accuracy",
        "cnn/accuracy_sd",
        "cnn/accuracy_low",
        "cnn/accuracy_high",
    }
