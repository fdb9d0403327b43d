"""What the gate decides, and in which words."""

import numpy as np
import pytest

from overnight.config import Gate
from overnight.errors import DataError
from overnight.night.evidence import level
from overnight.night.gate import YEAR_S, _aligned, account_of, compared, decide, items_digest
from overnight.predictor import ItemLosses

FIRST = level(1, 0.05)


def losses(values, groups=None, items=None):
    count = len(values)
    groups = ["all"] * count if groups is None else groups
    items = [f"item {i}" for i in range(count)] if items is None else items
    return ItemLosses(np.asarray(values, float), np.array(items), np.arange(count), np.array(groups))


def pair(old_rate, new_rate, count=4000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(count) < old_rate, rng.random(count) < new_rate


def verdict(old, new, gate=None, groups=None, spent=FIRST, **more):
    gate = gate or Gate()
    found = compared(losses(old, groups), losses(new, groups), gate, spent)
    return decide({**found, "old_bytes": 1000, "new_bytes": 1000, **more}, gate)


def test_a_better_model_is_promoted_and_the_reason_has_the_figures():
    found = verdict(*pair(0.2, 0.1))
    assert found.promotes
    assert "4,000 test items" in found.reason
    assert "lower than the champion's" in found.reason


def test_a_slightly_better_one_is_not_and_the_reason_says_what_would_have_been_seen():
    old, new = pair(0.2, 0.195, seed=3)
    found = verdict(old, new)
    assert not found.promotes
    assert "would have been needed" in found.reason


def test_a_worse_one_is_called_worse():
    found = verdict(*pair(0.1, 0.2))
    assert not found.promotes
    assert "higher than the champion's" in found.reason


def test_one_class_that_gets_much_worse_keeps_the_champion():
    old, new = pair(0.3, 0.05)
    groups = np.where(np.arange(4000) < 400, "cat", "dog")
    new[:400] = np.random.default_rng(9).random(400) < 0.6
    assert not verdict(old, new, groups=groups).promotes
    assert "the loss of cat rises" in verdict(old, new, groups=groups).reason
    assert verdict(old, new, gate=Gate(margin=0.5), groups=groups).promotes


def test_size_and_latency_keep_the_champion_where_they_are_asked_for():
    old, new = pair(0.2, 0.1)
    assert "3.0 times as large" in verdict(old, new, new_bytes=3000).reason
    assert verdict(old, new, gate=Gate(size=4), new_bytes=3000).promotes
    slow = {"old_s": 1.0, "new_s": 2.5}
    assert "2.5 times as long" in verdict(old, new, gate=Gate(latency=2), **slow).reason
    assert verdict(old, new, gate=Gate(latency=3), **slow).promotes


def test_no_look_promotes_when_the_budget_is_used_up():
    found = decide({"level": 0.0}, Gate())
    assert not found.promotes
    assert "overnight promote" in found.reason


def test_items_are_matched_by_name_and_other_items_are_refused():
    old = losses([0, 1, 1], items=["a", "b", "c"])
    new = _aligned(old, losses([1, 0, 0], items=["c", "a", "b"]))
    assert new.loss.tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="cannot be compared"):
        _aligned(old, losses([1, 0, 0], items=["a", "b", "d"]))


def test_the_digest_of_a_test_set_is_that_of_its_items_in_any_order():
    first = losses([0, 1], items=["a", "b"])
    other = ItemLosses(first.loss, first.item[::-1], first.cluster[::-1], first.group)
    assert items_digest(first) == items_digest(other)
    assert items_digest(first) != items_digest(losses([0, 1], items=["a", "c"]))


def test_a_year_ends_after_365_days():
    account = {"began": 1000.0, "looks": 7}
    assert account_of(account, 1000.0 + YEAR_S - 1) == {"began": 1000.0, "looks": 7}
    assert account_of(account, 1000.0 + YEAR_S) == {"began": 1000.0 + YEAR_S, "looks": 0}
    assert account_of({}, 5.0 + YEAR_S) == {"began": 5.0 + YEAR_S, "looks": 0}
