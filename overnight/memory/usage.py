"""What a step asks of the card and what it took, as events of its run: metrics for the numbers, params to search by."""

import time
from typing import Any

from overnight.errors import DoesNotFit, OutOfMemory
from overnight.gpu.card import Card
from overnight.memory.request import Ask
from overnight.orchestration.child import Result, Usage

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


def for_the_card(result: Result, card: Card) -> Result:
    """The step's result, its reason said for the whole card: what a lease was too small for may fit the card, and asks for more next time."""
    if (
        result.code != DoesNotFit.child_code
        or not result.out_of_memory
        or result.lease_mib >= card.budget_mib
    ):
        return result
    more = f"{result.error} - that was with {result.lease_mib} of the card's {card.budget_mib} MiB; the next run asks for more"
    return result.model_copy(update={"code": OutOfMemory.child_code, "error": more})


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, **fields, "at": time.time()}
