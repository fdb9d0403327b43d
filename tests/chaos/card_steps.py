"""Every process of the ledger stopped, killed and robbed of files between any two of its system calls, in interleavings drawn at random."""

from tests.chaos._crowd import crowd
from tests.chaos._steps import BUDGET, Play
from tests.chaos.case import Case, Measured

PLAYS = 600


def cases() -> list[Case]:
    return [
        Case("card_steps", f"4 x {PLAYS} interleavings of 2 to 4 processes, one system call at a time", _plays,
             {"above_budget": "== 0", "stuck_or_left": "== 0"}, 300),
    ]  # fmt: skip


def _plays(seed: int) -> Measured:
    above = failed = held = 0
    with crowd() as people:
        for play in [
            Play(seed * PLAYS + n, removing, killing) for removing in (False, True) for killing in (False, True) for n in range(PLAYS)
        ]:
            try:
                worst = play.run(people.card).worst
            except AssertionError:
                failed += 1
                continue
            above, held = above + (worst > BUDGET), held + (worst > 0)
    return {"above_budget": above, "stuck_or_left": failed, "plays": 4 * PLAYS, "plays_that_held": held}
