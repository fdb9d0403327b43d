"""RAPIDS, where it works: the engine a Polars query runs on, and whether cuML can fit.

An import proves nothing here: only a result does.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from overnight.errors import ServiceError
from overnight.gpu.card import Card
from overnight.gpu.rmm import limit_memory
from overnight.run import Run

if TYPE_CHECKING:
    import polars as pl

Engine = Literal["auto", "gpu", "streaming", "in-memory"]


def collect(
    frames: "Sequence[pl.LazyFrame]", asked: Engine, run: Run, beside: "Iterable[pl.LazyFrame]" = ()
) -> "list[pl.DataFrame]":
    """Run the queries on the engine that was asked for, or the best that works; on the card one by one.

    beside: further ones, which only the processor can run. Logs which as the parameter `engine`.

    "auto" takes the GPU when this run holds the card and can run these very queries on it, else streaming.
    "gpu" raises ServiceError instead.
    """
    import polars as pl

    if asked == "gpu" or (asked == "auto" and run.device == "cuda"):
        problem = _gpu_problem(run)
        try:
            if problem is None:
                engine_on_card = _gpu_engine(run.budget_mib)  # collect_all does not take it
                found = [frame.collect(engine=engine_on_card) for frame in frames]
                run.param("engine", "gpu")
                return [*found, *pl.collect_all(list(beside), engine="streaming")]
        except (pl.exceptions.PolarsError, NotImplementedError, MemoryError) as error:
            problem = f"this query does not run there: {' '.join(str(error).split())[:300]}"
        if asked == "gpu":
            raise ServiceError(
                f"engine: gpu was asked for, but {problem}; set engine: auto to use the processor where it "
                "must"
            )
        run.log(f"engine: streaming, because {problem}")
    engine: Literal["streaming", "in-memory"] = "in-memory" if asked == "in-memory" else "streaming"
    run.param("engine", engine)
    return pl.collect_all([*frames, *beside], engine=engine)


def takes_card(asked: Engine, run: Run) -> bool:
    """Whether `collect` will try the card."""
    return (asked == "gpu" or (asked == "auto" and run.device == "cuda")) and _gpu_problem(run) is None


def typed_files(frames: "dict[str, pl.LazyFrame]", asked: Engine, run: Run) -> "dict[str, pl.LazyFrame]":
    """The tables as Parquet in the run's folder, where the card will join them; else as they are.

    cudf-polars translates no dates read from text and no count of a CSV file, so the processor reads and
    types the tables, in batches.
    """
    import polars as pl

    if not takes_card(asked, run):
        return frames
    found = {}
    for number, (name, frame) in enumerate(frames.items()):
        file = run.folder / f"typed-{number}.parquet"
        frame.sink_parquet(file)
        found[name] = pl.scan_parquet(file)
    return found


def engine_choice(card: Card | None, asked: Engine) -> str:
    """The engine that `collect` will take on this card (None: the CPU), where the queries run on it."""
    if asked != "auto":
        return asked
    on_card = card is not None and not card.virtual and _missing("cudf_polars") is None
    return "gpu" if on_card else "streaming"


def cuml_choice(card: Card | None) -> bool:
    """Whether cuML can be used on this card."""
    return card is not None and not card.virtual and _missing("cuml") is None


def cuml_problem(run: Run) -> str | None:
    """Why cuML cannot be used by this run, or None when it can."""
    return _no_card(run) or _missing("cuml")


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
    return (
        None
        if find_spec(package)
        else f"the package {package} is not installed (requirements-rapids.lock has it)"
    )


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
    """In-memory: the streaming executor, the default, takes its memory past the resource it is given."""
    import polars as pl

    resource = limit_memory(budget_mib)
    return pl.GPUEngine(executor="in-memory", memory_resource=resource, raise_on_fail=True)
