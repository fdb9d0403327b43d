"""How a training uses memory and scales its learning rate: kept when it returns to its last checkpoint."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

GROW_AFTER = 100  # good optimizer steps before a larger micro-batch is tried; doubled when that fails


@dataclass
class MicroBatchState:
    """size: samples at once; largest: the limit when growing; least: the fewest that the model takes.

    failed_at: the optimizer step at which the smallest size has failed once; good: steps since the last
    change; patience: how many before it grows; grown: the last change was an increase.
    """

    size: int
    largest: int
    least: int = 1
    failed_at: int = -1
    good: int = 0
    patience: int = GROW_AFTER
    grown: bool = False

    def succeeded(self, grow: bool) -> None:
        self.good += 1
        if grow and self.size < self.largest and self.good >= self.patience:
            self.size = min(self.largest, self.size * 2)
            self.good = 0
            self.grown = True

    def failed(self, smaller: int | None, step: int) -> bool:
        """Take the smaller size (None: there is none); whether to try again, the smallest once a step."""
        again = smaller is not None or self.failed_at != step
        self.failed_at = step if smaller is None else -1
        self.patience *= 2 if self.grown else 1
        self.good = 0
        self.grown = False
        self.size = smaller or self.size
        return again


@dataclass
class EvalBatches:
    """limit: most samples at once, 0: none; size: those of the last try, 0: it was not split.

    faults: times memory ran out.
    """

    limit: int = 0
    size: int = 0
    faults: int = 0


@dataclass
class Plan:
    """rate: factor of the schedule."""

    micro: MicroBatchState
    rate: float = 1.0
    eval_batches: EvalBatches = field(default_factory=EvalBatches)


def read_plan(found: dict[str, Any], largest: int) -> Plan:
    """With micro-batches of at most `largest`. Raises ValueError."""
    plan = TypeAdapter(Plan).validate_python(found)
    plan.micro.largest = largest
    plan.micro.size = min(plan.micro.size, largest)
    return plan


class RollbackToCheckpoint(Exception):
    """With another plan; fresh: better in a new process."""

    def __init__(self, reason: str, plan: Plan, fresh: bool = False) -> None:
        super().__init__(reason)
        self.plan = plan
        self.fresh = fresh
