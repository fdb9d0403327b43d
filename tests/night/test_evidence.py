"""Evidence is valid at any level, order and distribution; a year of looks spends no more than its budget."""

import numpy as np
import pytest

from overnight.night.evidence import (
    MOST_LOOKS,
    cluster_gains,
    detectable,
    interval,
    level,
    log_capital,
    worse_groups,
)

NULLS = {  # gains with mean 0, (sequences, observations)
    "rare": lambda r, n: (r.random(n) < 0.01).astype(float) - (r.random(n) < 0.01),
    "skewed": lambda r, n: np.where(r.random(n) < 0.1, 0.9, -0.1),  # many small losses, few large gains
    "large": lambda r, n: r.choice([-1.0, 1.0], n),
    "small": lambda r, n: r.uniform(-0.05, 0.05, n),
}


@pytest.mark.parametrize("gains", NULLS.values(), ids=NULLS)
@pytest.mark.parametrize("count", [30, 300])
def test_equal_models_reach_a_level_no_more_often_than_it_says(gains, count):
    found = log_capital(gains(np.random.default_rng(0), (4000, count)), 0.0, 0.05)
    share = (found >= -np.log(0.05)).mean()
    assert share <= 0.05 + 2 * (0.05 * 0.95 / 4000) ** 0.5


def test_a_gain_of_the_minimum_effect_is_not_enough():
    rng = np.random.default_rng(1)
    gains = np.where(rng.random((4000, 300)) < 0.2, 1.0, 0.0) - (rng.random((4000, 300)) < 0.1)
    assert (log_capital(gains, 0.1, 0.05) >= -np.log(0.05)).mean() <= 0.057
    assert (log_capital(gains, 0.0, 0.05) >= -np.log(0.05)).mean() > 0.9


def test_its_power_is_about_that_of_the_z_test():
    rng = np.random.default_rng(2)
    gains = (rng.random((1000, 2000)) < 0.06).astype(float) - (rng.random((1000, 2000)) < 0.04)
    z = gains.mean(-1) / gains.std(-1) * 2000**0.5
    for one, quantile in ((0.05, 1.645), (0.001, 3.09)):
        ours = (log_capital(gains, 0.0, one) >= -np.log(one)).mean()
        assert abs(ours - (z > quantile).mean()) < 0.06


def test_capital_is_what_the_formula_says():
    """Against the sum written out, one observation after another."""
    from statistics import NormalDist

    gains = np.random.default_rng(3).uniform(-1, 1, 50)
    normal = NormalDist()
    capital, total, squares, best, goal = 1.0, 0.0, 0.0, 1.0, 1.05 / 0.01
    for i, gain in enumerate(gains):
        mean = total / (i + 1)
        spread = ((1 + squares - i * mean**2) / (i + 1)) ** 0.5
        share = capital / goal
        bet = min(normal.pdf(normal.inv_cdf(share)) / (share * spread * (50 - i) ** 0.5), 0.9 / 1.02)
        capital *= 1 + bet * (gain - 0.02)
        best, total, squares = max(best, capital), total + gain, squares + gain**2
    assert np.isclose(log_capital(gains, 0.02, 0.01), np.log(best))


def test_capital_never_ends_below_zero_whatever_comes():
    for gains in (np.full(400, -1.0), np.full(400, 1.0), np.zeros(400), np.array([1.0])):
        assert np.isfinite(log_capital(gains, 0.001, 1e-5))


def test_a_year_spends_its_budget_and_no_more():
    spent = [level(look, 0.05) for look in range(1, MOST_LOOKS + 100)]
    assert np.isclose(sum(spent), 0.05)
    assert spent == sorted(spent, reverse=True)
    assert spent[MOST_LOOKS] == 0


def test_a_cluster_is_one_observation_and_the_order_is_that_of_no_model():
    old = np.array([1.0, 1.0, 0.0, 1.0])
    new = np.array([0.0, 0.0, 0.0, 0.0])
    assert sorted(cluster_gains(old, new, [7, 7, 7, 9])) == [2 / 3, 1.0]
    order = np.random.default_rng(4).permutation(4)
    shuffled = cluster_gains(old[order], new[order], np.array([7, 7, 7, 9])[order])
    assert shuffled.tolist() == cluster_gains(old, new, [7, 7, 7, 9]).tolist()
    many = cluster_gains(np.arange(500) / 500, np.zeros(500), range(500))
    assert abs(np.corrcoef(many, np.arange(500))[0, 1]) < 0.15


def test_copies_of_items_add_no_evidence():
    rng = np.random.default_rng(5)
    old = (rng.random(400) < 0.3).astype(float)
    new = (rng.random(400) < 0.2).astype(float)
    once = cluster_gains(old, new, range(400))
    copied = cluster_gains(np.tile(old, 10), np.tile(new, 10), np.tile(np.arange(400), 10))
    assert np.allclose(log_capital(once, 0.0, 0.05), log_capital(copied, 0.0, 0.05))


def test_a_class_that_loses_much_is_named_and_one_that_loses_by_chance_is_not():
    rng = np.random.default_rng(6)
    groups = np.repeat(["bird", "cat", "rare"], [400, 400, 4])
    old = (rng.random(804) < 0.2).astype(float)
    new = np.concatenate([(rng.random(400) < 0.5), (rng.random(400) < 0.1), [1, 0, 1, 0]]).astype(float)
    old[800:] = [0, 0, 1, 0]
    found = worse_groups(old, new, range(804), groups, 0.05)
    assert list(found) == ["bird"]
    assert 0.2 < found["bird"] < 0.4
    assert worse_groups(old, new, range(804), groups, 0.6) == {}


def test_the_interval_covers_and_the_detectable_gain_is_detected_half_of_the_time():
    rng = np.random.default_rng(7)
    gains = (rng.random((500, 1000)) < 0.15).astype(float) - (rng.random((500, 1000)) < 0.1)
    ends = [interval(one) for one in gains]
    assert 0.92 <= np.mean([low <= 0.05 <= high for _, low, high in ends]) <= 0.98
    wanted = detectable(gains[0], 0.0, 0.01)
    centred = gains - gains.mean() + wanted
    assert 0.3 < (log_capital(np.clip(centred, -1, 1), 0.0, 0.01) >= -np.log(0.01)).mean() < 0.7
