"""RAPIDS, where it works: the engine a Polars query runs on, and whether cuML can fit. An import proves nothing here: only a result does."""

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from overnight.errors import ServiceError
from overnight.run import Run

if TYPE_CHECKING:
    import polars as pl

Engine = Literal["auto", "gpu", "streaming", "in-memory"]


def collect(frames: "Sequence[pl.LazyFrame]", asked: Engine, run: Run) -> "list[pl.DataFrame]":
    """Run the queries together on the engine that was asked for, or the best that works; logs which as the parameter `engine`.

    "auto" takes the GPU when this run holds the card and can run these very queries on it, else streaming. "gpu" raises ServiceError instead.
    """
    import polars as pl

    if asked == "gpu" or (asked == "auto" and run.device == "cuda"):
        problem = _gpu_problem(run)
        try:
            if problem is None:
                found = pl.collect_all(frames, engine=_gpu_engine(run.budget_mib))
                run.param("engine", "gpu")
                return found
        except (pl.exceptions.PolarsError, NotImplementedError, MemoryError) as error:
            problem = f"this query does not run there: {' '.join(str(error).split())[:300]}"
        if asked == "gpu":
            raise ServiceError(f"engine: gpu was asked for, but {problem}; set engine: auto to use the processor where it must")
        run.log(f"engine: streaming, because {problem}")
    engine: Literal["streaming", "in-memory"] = "in-memory" if asked == "in-memory" else "streaming"
    run.param("engine", engine)
    return pl.collect_all(frames, engine=engine)


def cuml_problem(run: Run) -> str | None:
    """Why cuML cannot be used by this run, or None when it can."""
    return _no_card(run) or _missing("cuml")


def limit_memory(cap_mib: int | None, mr: Any = None, torch: Any = None) -> Any:
    """Make RAPIDS allocate no more than the step's cap less what torch holds of it, and torch no more than it holds; the memory resource.

    mr, torch: rmm.mr and, where it is loaded, torch.
    """
    mr = mr or importlib.import_module("rmm.mr")
    if (resource := _limited(mr)) is not None:  # made anew, it would forget what it gave out
        return resource
    resource = mr.CudaAsyncMemoryResource(initial_pool_size=1 << 20)  # its default is half of what is free on the card
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
    current, limiting = getattr(mr, "get_current_device_resource", None), getattr(mr, "LimitingResourceAdaptor", None)
    resource = current() if current and limiting else None
    return resource if limiting and isinstance(resource, limiting) else None


def _gpu_problem(run: Run) -> str | None:
    return _no_card(run) or _missing("cudf_polars") or _probe(run.budget_mib)


def _no_card(run: Run) -> str | None:
    """RAPIDS imports happily without a driver, so ask the driver."""
    if run.device != "cuda":
        return f"this run has no CUDA card (device {run.device!r})"
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"the NVIDIA driver does not answer ({error})"
    return None if count else "the NVIDIA driver sees no card"


def _missing(package: str) -> str | None:
    return None if find_spec(package) else f"the package {package} is not installed (requirements-rapids.lock has it)"


@cache
def _probe(budget_mib: int | None) -> str | None:
    """Collect three rows on the card."""
    import polars as pl

    try:
        total = pl.LazyFrame({"a": [1, 2, 3]}).sum().collect(engine=_gpu_engine(budget_mib)).item()
    except (pl.exceptions.PolarsError, ImportError, OSError, RuntimeError, MemoryError) as error:
        return f"a tiny query fails there: {' '.join(str(error).split())[:300]}"
    return None if total == 6 else f"a tiny query gives {total} there instead of 6"


def _gpu_engine(budget_mib: int | None) -> Any:
    import polars as pl

    return pl.GPUEngine(memory_resource=limit_memory(budget_mib), raise_on_fail=True)
