"""spec.json, which a parent writes for the child that runs a step, and result.json, its answer."""

from dataclasses import replace
from typing import Any, Self

from overnight.config import Values
from overnight.errors import DoesNotFit, OutOfMemory
from overnight.gpu.card import Card
from overnight.memory.request import MemoryRequest
from overnight.memory.usage import Usage

PEAKS = ("peak_mib", "device_peak_mib", "other_processes_peak_mib", "host_peak_mib")


class StepSpec(Values):
    """A step to run, without anything that depends on the machine."""

    step: str  # module:function
    label: str
    experiment: str
    arguments: list[Any]  # of the step's body, as JSON
    seed: int
    key: str
    uncapped: bool = False  # declared to take memory that no cap holds
    earlier: tuple[str, ...] = ()  # folders of the attempts whose MLflow run it goes on with
    logged_before: dict[str, int] = {}  # the last step that the run has of each metric


class ChildSpec(StepSpec):
    """The same with what a launcher decided for this machine."""

    parent: int  # pid of the parent; the child is killed when it ends
    card: Card
    request: MemoryRequest  # 0 MiB: no lease
    ticket: int | None = None  # the place in line of the child before, which gave its lease back

    def after(self, result: "StepResult") -> Self:
        """The next child has the same place in line, and begins with the last micro-batch of this one."""
        size = result.micro_batch or self.request.micro_batch
        smaller = tuple((mib, n) for mib, n in self.request.smaller if size is None or n < size)
        request = replace(self.request, micro_batch=size, smaller=smaller)
        return self.model_copy(update={"ticket": result.ticket or None, "request": request})


class StepResult(Usage):
    code: int  # exit code of errors.py; 0: done
    ticket: int = 0  # its place in the card's line
    value: Any = None  # the returned artifact, as JSON
    error: str = ""
    raised: tuple[str, ...] = ()  # names of what was raised (night.failures.names_of)

    def followed_by(self, after: "StepResult") -> "StepResult":
        """The ending of a later child of the same step, with what both used."""
        peaks = {
            name: max((v for v in (getattr(self, name), getattr(after, name)) if v is not None), default=None)
            for name in PEAKS
        }
        return after.model_copy(
            update={
                **peaks,
                "wait_s": self.wait_s + after.wait_s,
                "run_s": self.run_s + after.run_s,
                "asked_micro_batch": self.asked_micro_batch or after.asked_micro_batch,
                "hit_limit": self.hit_limit or after.hit_limit,
                "out_of_memory": self.out_of_memory or after.out_of_memory,
                "uncapped": tuple(sorted({*self.uncapped, *after.uncapped})),
            }
        )

    def judged_for(self, card: Card) -> "StepResult":
        """A step that did not fit its lease may fit the card."""
        fits_no_lease = self.code == DoesNotFit.child_code and self.out_of_memory
        if not fits_no_lease or self.lease_mib >= card.budget_mib:
            return self
        lease = (
            f"that was with {self.lease_mib} of the card's {card.budget_mib} MiB; the next run asks for more"
        )
        return self.model_copy(update={"code": OutOfMemory.child_code, "error": f"{self.error} - {lease}"})
