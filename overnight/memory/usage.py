"""What a step used of the card and the host: as events of its run, and as history for its next request."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from overnight.config import Values
from overnight.gpu.card import Card
from overnight.memory import history, intervals
from overnight.memory.intervals import PredictionInterval
from overnight.memory.request import MemoryRequest, folder_of, half

if TYPE_CHECKING:
    from overnight.step import Step

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
NOT_MEASURED = "not measured"
LOGGED_AS = {  # names in MLflow that differ from the field's, kept so that runs of all ages compare
    "hit_limit": "met_cap",
    "uncapped": "outside",
    "other_processes_peak_mib": "foreign_peak_mib",
}


class Usage(Values):
    """What a step took; None: not measured."""

    asked_mib: int = 0
    lease_mib: int = 0
    cap_mib: int = Field(0, description="what its allocator may hold: the lease without the context's share")
    overhead_mib: int = Field(0, description="of the lease, for the CUDA context")
    peak_mib: float | None = Field(None, description="the most its allocator held")
    predicted_mib: float | None = Field(None, description="what its allocator was predicted to hold at most")
    predicted_low_mib: float | None = None
    predicted_high_mib: float | None = None
    resident_mib: float = Field(
        0.0, description="of that peak, data that lay on the card because there was room"
    )
    device_peak_mib: float | None = Field(
        None, description="the most the whole card held above what it held at the grant"
    )
    other_processes_peak_mib: float | None = Field(None, description="the most other programs held meanwhile")
    host_peak_mib: float = 0.0
    wait_s: float = 0.0
    run_s: float = 0.0
    asked_micro_batch: int | None = Field(None, description="samples on the card at once that it began with")
    micro_batch: int | None = Field(None, description="samples on the card at once at its end")
    exclusive: bool = False
    hit_limit: bool = Field(False, description="met out of memory, or held 95 % of the cap")
    out_of_memory: bool = Field(False, description="met out of memory, survived or not")
    uncapped: tuple[str, ...] = Field((), description="allocators in its process that no cap holds")


# ---------------------------------------------------------------------- events of the run


def request_metrics(request: MemoryRequest) -> list[dict[str, Any]]:
    """Events of what a step is about to request, and why that much."""
    size = f"micro-batch {request.micro_batch}, " if request.micro_batch else ""
    alone = ", alone" if request.exclusive else ""
    line = f"asks for {request.mib:,} MiB of the card{alone} ({size}{request.why})"
    events = [_event("log", text=line), _event("param", name="usage/why", value=request.why)]
    if request.note:
        events.append(_event("log", text=request.note))
        events.append(_event("param", name="usage/not_predicted", value=request.note))
    return events


def prediction_fields(request: MemoryRequest) -> dict[str, float]:
    """Fields of Usage: the prediction for the requested micro-batch."""
    found = request.predicted
    if not found:
        return {}
    return {"predicted_mib": found.mid, "predicted_low_mib": found.low, "predicted_high_mib": found.high}


def usage_metrics(used: Usage) -> list[dict[str, Any]]:
    """Events of what a step used, however it ended. Values that were not measured are left out."""
    fields = {name: getattr(used, name) for name in Usage.model_fields}
    values = {name: value for name, value in fields.items() if value is not None}
    metrics = {_logged(name): float(v) for name, v in values.items() if isinstance(v, int | float)}
    comparable = not used.hit_limit and used.micro_batch == used.asked_micro_batch
    if used.peak_mib and used.predicted_mib and comparable:
        metrics["usage/prediction_error"] = (used.peak_mib - used.resident_mib) / used.predicted_mib - 1
    if not used.lease_mib:
        return [_event("metrics", values=metrics, step=0)]
    empty = {"peak_mib": NOT_MEASURED, "predicted_mib": "", "asked_micro_batch": "", "micro_batch": ""}
    shown = {**empty, **values, "uncapped": ", ".join(used.uncapped)}
    params = [_event("param", name=_logged(name), value=str(shown[name])) for name in AS_PARAMS]
    return [_event("metrics", values=metrics, step=0), *params]


def _logged(field: str) -> str:
    return f"usage/{LOGGED_AS.get(field, field)}"


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, **fields, "at": time.time()}


# ---------------------------------------------------------------------- history


def record_usage(
    step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, used: Usage, finished: bool
) -> None:
    """Add a run to the step's history.

    A filled cap only raises the figure; a run below its cap may lower it.
    """
    if not used.cap_mib or (card.virtual and not card.count):
        return
    folder = folder_of(step, arguments, card)
    first = used.asked_micro_batch or 0
    last = (used.micro_batch or first) if first else 0
    filled = used.peak_mib is not None and used.peak_mib >= history.NEAR_SHARE * used.cap_mib
    crowded = _crowded(card, used)
    if used.out_of_memory and not (finished and last == first):  # else an evaluation was cut into slices
        for size in _failed(first, last) if filled or not crowded else []:
            history.add_outcome(folder, size, history.OOM, used.cap_mib)
        if finished and last < first:
            history.add_outcome(folder, last, history.FITS, used.cap_mib)
    elif filled or (used.hit_limit and not (used.out_of_memory and crowded)):
        history.add_outcome(folder, last, history.NEAR, used.cap_mib)
    elif finished and used.peak_mib is not None and not used.out_of_memory:
        if used.resident_mib or history.cached_data_mib(history.read_outcomes(folder), last):
            history.add_outcome(folder, last, history.CACHED_DATA, used.resident_mib)
        history.add_outcome(folder, last, history.CLEAN, used.peak_mib)
        _record_error(step, arguments, card, last, used.peak_mib - used.resident_mib)
    if step.uncapped or used.uncapped:
        history.add_outcome(folder, first, history.OUTSIDE, 0)
        if finished and used.exclusive and used.device_peak_mib:
            history.add_outcome(folder, first, history.ALONE, used.device_peak_mib)


def _failed(first: int, last: int) -> list[int]:
    """The micro-batches that were too large: from the first one, by halves, to the one before the last."""
    found = [first]
    while half(found[-1]) > last:
        found.append(half(found[-1]))
    return found


def _crowded(card: Card, used: Usage) -> bool:
    """Whether other programs took more than the card's reserve, so that the lease was not too small."""
    return not card.virtual and (used.other_processes_peak_mib or 0) > card.total_mib - card.budget_mib


def _record_error(
    step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, size: int, peak_mib: float
) -> None:
    """Record by how much the prediction was off, for the family."""
    params = arguments[0] if arguments else None
    micro_batch = size or max(int(getattr(params, "batch", 1)), 1)
    found = intervals.read_interval(folder_of(step, arguments, card), intervals.version(), micro_batch)
    if isinstance(found, PredictionInterval):
        intervals.add_error(card, intervals.family(step, params), found.mid, peak_mib)
