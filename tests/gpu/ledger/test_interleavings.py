"""The ledger, one system call at a time: it keeps the budget though processes are stopped, killed or
robbed of files anywhere.
"""

import pytest

from tests.chaos._steps import BUDGET, LONG, Play, Stops


@pytest.mark.parametrize(
    ("removing", "killing"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_no_interleaving_exceeds_the_budget_or_leaves_anything(tmp_path, removing, killing):
    for seed in range(25):
        assert Play(seed, removing, killing).run(tmp_path / "card") <= BUDGET, seed


@pytest.mark.parametrize("killed", [False, True])
def test_one_that_is_stopped_anywhere_on_its_way_to_a_grant_takes_nothing_that_another_got_meanwhile(
    tmp_path, killed
):
    worst = [Stops(first, LONG, killed).run(tmp_path / "card") for first in range(0, 140, 2)]
    assert 0 < max(worst) <= BUDGET


@pytest.mark.parametrize("removes", ["[hg]-*", "*"])
def test_one_that_is_stopped_does_not_overlook_another_whose_files_were_removed_meanwhile(tmp_path, removes):
    worst = [Stops(first, LONG, removes=removes).run(tmp_path / "card") for first in range(0, 140, 3)]
    assert 0 < max(worst) <= BUDGET
