"""RMM, the allocator of RAPIDS, under the memory limit of the step."""

import importlib
import sys
from typing import Any


def limit_memory(cap_mib: int | None, mr: Any = None, torch: Any = None) -> Any:
    """Limit RAPIDS to the step's cap less what torch holds, and torch to what it holds.

    cap_mib: None for no limit; mr, torch: rmm.mr and, where it is loaded, torch.
    """
    mr = mr or importlib.import_module("rmm.mr")
    resource = limited(mr)
    if resource is not None:  # a new one would forget its allocations
        return resource
    resource = mr.CudaAsyncMemoryResource(release_threshold=0)  # the default keeps all that was ever taken
    if cap_mib is not None:
        left = (cap_mib << 20) - _taken(torch or sys.modules.get("torch"))
        resource = mr.LimitingResourceAdaptor(mr.StatisticsResourceAdaptor(resource), left)
    mr.set_current_device_resource(resource)
    return resource


def _taken(torch: Any) -> int:
    """Freeze torch at what it holds (bytes), since two allocators share one cap."""
    if torch is None or not torch.cuda.is_initialized():
        return 0
    torch.cuda.empty_cache()
    taken = int(torch.cuda.memory_reserved(0))
    torch.cuda.set_per_process_memory_fraction(taken / torch.cuda.get_device_properties(0).total_memory, 0)
    return taken


def held(mr: Any = None) -> tuple[int, int]:
    """What a limited RMM holds of the card, now and at its peak (bytes)."""
    resource = limited(mr)
    if resource is None:
        return 0, 0
    counts = resource.get_upstream().allocation_counts
    return int(counts.current_bytes), int(counts.peak_bytes)


def limited(mr: Any = None) -> Any:
    """The memory resource, when it has a limit; rmm may be half imported when the monitor's thread asks."""
    mr = mr or sys.modules.get("rmm.mr")
    if not hasattr(mr, "get_current_device_resource") or not hasattr(mr, "LimitingResourceAdaptor"):
        return None
    resource = mr.get_current_device_resource()
    return resource if isinstance(resource, mr.LimitingResourceAdaptor) else None
