"""The ledger, one system call at a time: whoever is stopped, killed or robbed of files anywhere, the sum of grants keeps the budget."""

import pytest

from tests.chaos._steps import BUDGET, Play


@pytest.mark.parametrize(("removing", "killing"), [(False, False), (False, True), (True, False), (True, True)])
def test_no_interleaving_exceeds_the_budget_or_leaves_anything(tmp_path, removing, killing):
    for seed in range(40):
        assert Play(seed, removing, killing).run(tmp_path / "card").worst <= BUDGET, seed
