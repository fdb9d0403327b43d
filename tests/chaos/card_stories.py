"""Stories of several processes on one ledger, one system call at a time, that Hypothesis thinks of."""

import hypothesis
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos._stories import Stories, chosen
from tests.chaos.case import Case, Measured

STORIES = 2000


def cases() -> list[Case]:
    what = f"{STORIES:,} stories of up to 5 processes: the budget, the policy, nobody stuck, nothing left"
    return [Case("card_stories", what, _stories, {"stories": f">= {STORIES}"}, 600)]


def _stories(seed: int) -> Measured:
    """A story that ends badly breaks the case off, and is printed in its shortest form."""
    machine = hypothesis.seed(seed)(type("Seeded", (Stories,), {}))
    run_state_machine_as_test(machine, settings=chosen(STORIES))
    return {"stories": machine.count, "grants": machine.grants, "kills": machine.kills}
