"""What a step asks of the card and what it took, as events of its run: metrics for the numbers, params to search by."""

import time
from typing import Any

from overnight.child import Usage
from overnight.gpu.sizes import Ask

SEARCHED = ("asked_mib", "lease_mib", "cap_mib", "peak_mib", "micro_batch", "exclusive", "outside")
NOT_MEASURED = "not measured"


def of_asking(asked: Ask) -> list[dict[str, Any]]:
    """What a step is about to ask for, and why that much."""
    size = f"micro-batch {asked.micro_batch}, " if asked.micro_batch else ""
    line = f"asks for {asked.mib:,} MiB of the card{', alone' if asked.exclusive else ''} ({size}{asked.why})"
    return [_event("log", text=line), _event("param", name="usage/why", value=asked.why)]


def of_ending(took: Usage) -> list[dict[str, Any]]:
    """What a step took, however it ended. What nobody measured is no number."""
    values = {name: value for name in Usage.model_fields if (value := getattr(took, name)) is not None}
    numbers = {f"usage/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}
    if not took.lease_mib:
        return [_event("metrics", values=numbers, step=0)]
    shown = {"peak_mib": NOT_MEASURED, "micro_batch": "", **values, "outside": ", ".join(took.outside)}
    params = [_event("param", name=f"usage/{name}", value=str(shown[name])) for name in SEARCHED]
    return [_event("metrics", values=numbers, step=0), *params]


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, **fields, "at": time.time()}
