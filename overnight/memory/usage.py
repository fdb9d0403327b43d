"""What a step asks of the card and what it took, as events of its run: metrics for the numbers, params to search by."""

import time
from typing import Any

from pydantic import Field

from overnight.config import Values
from overnight.memory.request import Ask

SEARCHED = (
    "asked_mib",
    "lease_mib",
    "cap_mib",
    "peak_mib",
    "predicted_mib",
    "asked_micro_batch",
    "micro_batch",
    "exclusive",
    "outside",
)
NOT_MEASURED = "not measured"


class Usage(Values):
    """What a step took; None is what nobody measured."""

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
    foreign_peak_mib: float | None = Field(None, description="the most other programs held meanwhile")
    host_peak_mib: float = 0.0
    wait_s: float = 0.0
    run_s: float = 0.0
    asked_micro_batch: int | None = Field(None, description="samples on the card at once that it began with")
    micro_batch: int | None = Field(None, description="samples on the card at once at its end")
    exclusive: bool = False
    met_cap: bool = Field(False, description="met out of memory, or held 95 % of the cap")
    out_of_memory: bool = Field(False, description="met out of memory, survived or not")
    outside: tuple[str, ...] = Field((), description="allocators in its process that no cap holds")


def of_asking(asked: Ask) -> list[dict[str, Any]]:
    """What a step is about to ask for, and why that much."""
    size = f"micro-batch {asked.micro_batch}, " if asked.micro_batch else ""
    line = f"asks for {asked.mib:,} MiB of the card{', alone' if asked.exclusive else ''} ({size}{asked.why})"
    events = [_event("log", text=line), _event("param", name="usage/why", value=asked.why)]
    return (
        [
            *events,
            _event("log", text=asked.note),
            _event("param", name="usage/not_predicted", value=asked.note),
        ]
        if asked.note
        else events
    )


def of_prediction(asked: Ask) -> dict[str, float]:
    """Fields of Usage: what was predicted of the micro-batch that was asked for."""
    band = asked.predicted
    return (
        {"predicted_mib": band.mid, "predicted_low_mib": band.low, "predicted_high_mib": band.high}
        if band
        else {}
    )


def of_ending(took: Usage) -> list[dict[str, Any]]:
    """What a step took, however it ended. What nobody measured is no number."""
    values = {name: value for name in Usage.model_fields if (value := getattr(took, name)) is not None}
    numbers = {
        f"usage/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)
    }
    if (
        took.peak_mib
        and took.predicted_mib
        and not took.met_cap
        and took.micro_batch == took.asked_micro_batch
    ):
        numbers["usage/prediction_error"] = (took.peak_mib - took.resident_mib) / took.predicted_mib - 1
    if not took.lease_mib:
        return [_event("metrics", values=numbers, step=0)]
    shown = {
        "peak_mib": NOT_MEASURED,
        "predicted_mib": "",
        "asked_micro_batch": "",
        "micro_batch": "",
        **values,
        "outside": ", ".join(took.outside),
    }
    params = [_event("param", name=f"usage/{name}", value=str(shown[name])) for name in SEARCHED]
    return [_event("metrics", values=numbers, step=0), *params]


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, **fields, "at": time.time()}
