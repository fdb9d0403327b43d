"""RMM, the allocator of RAPIDS, under the memory limit of the step."""

import importlib
import sys
from typing import Any


def limit_memory(cap_mib: int | None, mr: Any = None, torch: Any = None) -> Any:
    """Make RAPIDS allocate no more than the step's cap less what torch holds of it, and torch no more than it holds; the memory resource.

    mr, torch: rmm.mr and, where it is loaded, torch.
    """
    mr = mr or importlib.import_module("rmm.mr")
    if (resource := _limited(mr)) is not None:  # made anew, it would forget what it gave out
        return resource
    resource = mr.CudaAsyncMemoryResource(
        initial_pool_size=1 << 20
    )  # its default is half of what is free on the card
    if cap_mib is not None:
        left = (cap_mib << 20) - _taken(torch or sys.modules.get("torch"))
        resource = mr.LimitingResourceAdaptor(mr.StatisticsResourceAdaptor(resource), left)
    mr.set_current_device_resource(resource)
    return resource


def _taken(torch: Any) -> int:
    """What torch's allocator holds (bytes), which is all it may have from now on: two allocators share one cap."""
    if torch is None or not torch.cuda.is_initialized():
        return 0
    torch.cuda.empty_cache()
    taken = int(torch.cuda.memory_reserved(0))
    torch.cuda.set_per_process_memory_fraction(taken / torch.cuda.get_device_properties(0).total_memory, 0)
    return taken


def is_limited() -> bool:
    """Whether RMM is loaded and takes memory below a cap."""
    return _limited() is not None


def held(mr: Any = None) -> tuple[int, int]:
    """What RMM holds of the card, now and at most (bytes), where it is limited."""
    resource = _limited(mr)
    if resource is None:
        return 0, 0
    counts = resource.get_upstream().allocation_counts
    return int(counts.current_bytes), int(counts.peak_bytes)


def _limited(mr: Any = None) -> Any:
    """The memory resource, when it is one with a limit; asked by the monitor's thread too, while rmm may be half imported."""
    mr = mr or sys.modules.get("rmm.mr")
    current, limiting = (
        getattr(mr, "get_current_device_resource", None),
        getattr(mr, "LimitingResourceAdaptor", None),
    )
    resource = current() if current and limiting else None
    return resource if limiting and isinstance(resource, limiting) else None
