"""Every process of the ledger stopped, killed and robbed of files between any two of its system calls, in
interleavings drawn at random.
"""

import sys
from collections.abc import Sequence

from tests.chaos._steps import BUDGET, LONG, Play, Stops
from tests.chaos._workers import start_workers
from tests.chaos.case import Case, Measured

PLAYS = 400
PAUSES = 140  # more than there are on the way to a grant
SECOND = (*range(0, PAUSES, 20), LONG)


def cases() -> list[Case]:
    safe = {"above_budget": "== 0", "stuck_or_left": "== 0"}
    return [
        Case(
            "card_steps",
            f"4 x {PLAYS} interleavings of 2 to 4 processes, one system call at a time",
            _plays,
            safe,
            300,
        ),
        Case(
            "card_stops",
            "one of two stopped or killed at each of its system calls, the other at each 20th",
            _stops,
            safe,
            300,
        ),
    ]


def _plays(seed: int) -> Measured:
    kinds = [(removing, killing) for removing in (False, True) for killing in (False, True)]
    plays = [Play(seed * PLAYS + n, *kind) for kind in kinds for n in range(PLAYS)]
    return _count(plays)


def _stops(_seed: int) -> Measured:
    robbed = [Stops(n, LONG, removes=pattern) for n in range(PAUSES) for pattern in ("g-*", "[hg]-*", "*")]
    return _count(
        [*robbed, *(Stops(n, m, kill) for n in range(PAUSES) for m in SECOND for kill in (False, True))]
    )


def _count(plays: Sequence[Play | Stops]) -> Measured:
    """Those that went wrong are printed, so that they can be played again."""
    above = failed = held = 0
    with start_workers() as workers:
        for play in plays:
            try:
                worst = play.run(workers.card)
            except AssertionError as error:
                print(f"{play}: {error}", file=sys.stderr, flush=True)
                failed += 1
                continue
            if worst > BUDGET:
                print(f"{play}: {worst} of {BUDGET} were held", file=sys.stderr, flush=True)
            above, held = above + (worst > BUDGET), held + (worst > 0)
    return {"above_budget": above, "stuck_or_left": failed, "plays": len(plays), "plays_that_held": held}
