"""Safety of verdicts: readings against budgets, each cell predicted and measured to fit or not.

The bars: no cell says "fits" where the reading exceeds the budget; of the cells where it does fit, at most 10
% are refused. The upper edge of the band decides, an evaluation that could be cut into smaller slices counted
whole, as the reading has it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from overnight.memory.prediction import MARGIN, MARGIN_MIB

CARDS_GB = (8, 10, 12, 16, 24)
REFUSALS = 0.10


@dataclass(frozen=True)
class Reading:
    """MiB: the upper edge that was predicted, and what was measured."""

    case: str
    high_mib: float
    measured_mib: float


def upper(mib: float) -> float:
    """The edge of a figure that has none yet."""
    return mib * (1 + MARGIN) + MARGIN_MIB["cuda"]


def judge(readings: Sequence[Reading], budgets_mib: Iterable[float]) -> list[str]:
    """Print the table of cells; the bars that are missed."""
    budgets = list(budgets_mib)
    cells = [(r, b) for r in readings for b in budgets]
    unsafe = [f"{r.case} at {b:,.0f} MiB" for r, b in cells if r.high_mib <= b < r.measured_mib]
    fitting = [(r, b) for r, b in cells if r.measured_mib <= b]
    refused = [f"{r.case} at {b:,.0f} MiB" for r, b in fitting if r.high_mib > b]
    share = len(refused) / max(1, len(fitting))
    edges = f"budgets of {min(budgets):,.0f} to {max(budgets):,.0f} MiB"
    wrong = f"{len(unsafe)} said to fit that did not"
    too_careful = f"{len(refused)} of {len(fitting)} that fit were refused ({share:.1%})"
    print(f"\nverdicts: {len(cells)} cells ({len(readings)} readings, {edges}), {wrong}, {too_careful}")
    for cell in [*unsafe, *refused][:12]:
        print(f"  wrong: {cell}")
    return [*(["unsafe verdicts"] if unsafe else []), *([f"{share:.0%} refused"] if share > REFUSALS else [])]


def scaled(shares: Sequence[float] = (1 / 200, 1 / 100, 1 / 50)) -> list[float]:
    """Budgets of small trainings: the cards' sizes, cut by the same factors for all of them."""
    return sorted({gb * 1024 * share for gb in CARDS_GB for share in shares})
