"""Several processes on one ledger, one system call at a time, in any order; and the policy beside a plain one."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from overnight.gpu.ledger.scheduler import Size, startable
from tests.chaos._stories import BUDGET, Stories, allowed, chosen

PLAYERS = st.lists(
    st.tuples(st.integers(1, BUDGET), st.sampled_from([False, False, False, True])), max_size=6
)


def test_stories_of_several_processes_end_well():
    run_state_machine_as_test(Stories, settings=chosen(40, derandomize=True))


@dataclass(frozen=True)
class Asked:
    number: int
    weight: int


@chosen(300, derandomize=True)
@given(held=PLAYERS, queue=PLAYERS)
def test_the_policy_is_the_one_that_tries_every_subset(held, queue):
    sizes = [Size(mib, exclusive) for mib, exclusive in queue]
    running = [Size(mib, exclusive) for mib, exclusive in held]
    while sum(size.weight(BUDGET) for size in running) > BUDGET:
        running.pop()
    asked = [Asked(n, size.weight(BUDGET)) for n, size in enumerate(sizes)]
    expected = allowed([Asked(-1, size.weight(BUDGET)) for size in running], asked)
    assert startable(BUDGET, 0, running, sizes) == sorted(player.number for player in expected)
