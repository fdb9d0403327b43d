"""What a step used of the card and the host, and its form as events of the step's run."""

import time
from typing import Any, Literal

from overnight.config import Values
from overnight.gpu.out_of_memory import NEAR

AS_PARAMS = (  # so that runs can be searched by them
    "asked_mib",
    "lease_mib",
    "cap_mib",
    "peak_mib",
    "predicted_mib",
    "asked_micro_batch",
    "micro_batch",
    "exclusive",
    "uncapped",
)


class Usage(Values):
    """What a step took; None: not measured."""

    asked_mib: int = 0
    lease_mib: int = 0
    cap_mib: int = 0  # what its allocator may hold: the lease without the context's share
    overhead_mib: int = 0  # of the lease, for the CUDA context
    peak_mib: float | None = None  # the most its allocator held
    predicted_mib: float | None = None  # what its allocator was predicted to hold at most
    predicted_low_mib: float | None = None
    predicted_high_mib: float | None = None
    resident_mib: float = 0.0  # of that peak, data that lay on the card because there was room
    device_peak_mib: float | None = None  # the most the whole card held above what it held at the grant
    other_processes_peak_mib: float | None = None  # the most other programs held meanwhile
    host_peak_mib: float = 0.0
    wait_s: float = 0.0
    run_s: float = 0.0
    asked_micro_batch: int | None = None  # samples on the card at once that it began with
    micro_batch: int | None = None  # samples on the card at once at its end
    exclusive: bool = False
    hit_limit: bool = False  # met out of memory, or held 95 % of the cap
    out_of_memory: bool = False  # met out of memory, survived or not
    uncapped: tuple[str, ...] = ()  # allocators in its process that no cap holds
    finished: bool = False  # whether it came to its end

    @property
    def begun_with(self) -> int:
        return self.asked_micro_batch or 0

    @property
    def ended_with(self) -> int:
        return (self.micro_batch or self.begun_with) if self.begun_with else 0

    @property
    def filled(self) -> bool:
        """Whether its peak may have been held down by the cap."""
        return self.peak_mib is not None and self.peak_mib >= NEAR * self.cap_mib

    @property
    def too_large(self) -> list[int]:
        """Micro-batches that the cap was too small for: from the first, by halves, to before the last."""
        same = self.ended_with == self.begun_with
        if not self.out_of_memory or (self.finished and same):  # then an evaluation was cut into slices
            return []
        found = [self.begun_with]
        while half(found[-1]) > self.ended_with:
            found.append(half(found[-1]))
        return found

    def outcome(self, size: int) -> Literal["too small", "filled", "enough", "clean", ""]:
        """How its cap was for a micro-batch.

        enough: after a larger one failed. clean: its peak is what the micro-batch takes. "": unknown.
        """
        if size in self.too_large:
            return "too small"
        if size != self.ended_with:
            return ""
        if self.too_large:
            return "enough" if self.finished else ""
        if self.filled or self.hit_limit:
            return "filled"
        return "clean" if self.finished and self.peak_mib is not None else ""

    @property
    def prediction_error(self) -> float | None:
        """(measured - predicted) / predicted; None where the two say nothing of each other."""
        comparable = not self.hit_limit and self.micro_batch == self.asked_micro_batch
        if not (self.peak_mib and self.predicted_mib and comparable):
            return None
        return (self.peak_mib - self.resident_mib) / self.predicted_mib - 1


def half(size: int) -> int:
    """The next smaller candidate: half of the micro-batch, rounded up."""
    return -(-size // 2)


def usage_metrics(used: Usage) -> list[dict[str, Any]]:
    """Events, however the step ended; of the metrics, those that were not measured or are 0 are left out.

    A run's page in MLflow begins with those of system/: of what is a param, only the peaks are there.
    """
    fields = {name: getattr(used, name) for name in Usage.model_fields if name != "finished"}
    values = {name: value for name, value in fields.items() if value is not None}
    values |= {} if used.prediction_error is None else {"prediction_error": used.prediction_error}
    numbers = {
        name: float(value) for name, value in values.items() if isinstance(value, int | float) and value
    }
    left_out = {*AS_PARAMS} - {"peak_mib", "predicted_mib"}
    metrics = {f"system/usage_{name}": value for name, value in numbers.items() if name not in left_out}
    events = [event("metrics", values=metrics, step=0)]
    if used.lease_mib:
        empty = {"peak_mib": "not measured", "predicted_mib": "", "asked_micro_batch": "", "micro_batch": ""}
        shown = {**empty, **values, "uncapped": ", ".join(used.uncapped)}
        events += [event("param", name=f"usage/{name}", value=str(shown[name])) for name in AS_PARAMS]
    return events


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, **fields, "at": time.time()}
