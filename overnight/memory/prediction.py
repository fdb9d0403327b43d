"""From a recipe to MiB: the peak of a training step with an interval and its parts, or why it is unknown."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from overnight.config import Values
from overnight.errors import FAILURES, OvernightError, one_line
from overnight.gpu.cuda_context import UNMEASURED_MIB
from overnight.memory.trace import Trace

if TYPE_CHECKING:
    from torch import nn

    from overnight.memory.fake_tensors import FakeTensorContext

Target = Literal["cuda", "cpu"]
MIB = 2**20
MARGIN = 0.03  # of the reserved memory, added to the upper edge
MARGIN_MIB = {"cuda": 32.0, "cpu": 8.0}  # and this; the virtual card counts live bytes, without rounding
_TRACING = threading.Lock()  # a trace changes operators of the whole process
REASONS = {  # of torch's own exceptions
    "DataDependentOutputException": "it reads a value off the device and goes on by it",
    "DynamicOutputShapeException": "the size of a tensor depends on values",
    "UnsupportedOperatorException": "an operator has no shape rule",
}


class Unknown(OvernightError):
    """The program depends on values that only a real run has; never taken for a fit."""

    exit_code = 2
    child_code = 10


class Constants(Values):
    """What no trace shows of a card: MiB of the CUDA context, and whether segments are expandable."""

    context_mib: float = UNMEASURED_MIB
    expandable: bool = True


ASSUMED = Constants()


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a step on the card, MiB, between two edges.

    needed_mib: upper edge without the evaluation, which can be cut into slices. parts: add up to `mib`.
    phase, operator: when the peak is. unknown: why there is no estimate. why: how it is known.
    whole: the recipe cannot split a batch.
    """

    micro_batch: int = 0
    mib: float = 0.0
    low_mib: float = 0.0
    high_mib: float = 0.0
    needed_mib: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    operator: str = ""
    unknown: str = ""
    why: str = ""
    whole: bool = False

    def verdict(self, budget_mib: float) -> Literal["fits", "does not fit", "unknown"]:
        if self.unknown:
            return "unknown"
        return "fits" if self.needed_mib <= budget_mib else "does not fit"

    def fits(self, budget_mib: float) -> bool:
        return self.verdict(budget_mib) == "fits"


def traced(recipe: Any, micro: int, target: Target, spare: Callable[..., int] | None = None) -> Trace:
    """Allocations of training in micro-batches of `micro` samples. Raises Unknown.

    spare: see tracer.Tracer; cuDNN's workspaces when left out.
    """
    from overnight.memory import cuda_rules
    from overnight.memory.program import run_program

    return _trace(lambda world: run_program(recipe, micro, world), target, cuda_rules.BLAS_HANDLES, spare)


def traced_calls(
    modules: "Mapping[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any]]]",
) -> Trace:
    """Allocations of building all modules and calling one after the other. Raises Unknown.

    modules: name -> (build, call). Each call is a phase of that name; its result is dropped.
    """
    import torch

    def run(world: "FakeTensorContext") -> None:
        with world.during("build"):
            built = {name: world.module(build).eval() for name, (build, _) in modules.items()}
        for name, (_, call) in modules.items():
            with world.during(name), torch.no_grad():
                call(built[name])

    return _trace(run, "cuda", blas_handles=1)


def _trace(
    run: "Callable[[FakeTensorContext], None]",
    target: Target,
    blas_handles: int,
    spare: Callable[..., int] | None = None,
) -> Trace:
    from overnight.memory import cuda_rules
    from overnight.memory.fake_tensors import FakeTensorContext

    cuda = target == "cuda"
    world = FakeTensorContext(target, spare or (cuda_rules.workspace if cuda else lambda *_: 0))
    with _TRACING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with cuda_rules.as_on_cuda() if cuda else contextlib.nullcontext(), world.entered():
                for _ in range(blas_handles if cuda else 0):
                    world.tracer.trace.allocate(cuda_rules.BLAS_WORKSPACE, "workspace", ("build", "cuBLAS"))
                run(world)
        except FAILURES as error:
            raise Unknown(_reason(error, world.tracer.failed)) from None
    return world.tracer.trace.settled()


def _reason(error: BaseException, phase: str) -> str:
    kind = type(error).__name__
    return f"{phase or 'build'}: {REASONS.get(kind, kind)}: {one_line(error)}"


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop warnings, and log lines below errors, of libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def predict(
    recipe: Any,
    batch: Any = None,
    target: Target = "cuda",
    data_mib: float = 0.0,
    constants: Constants = ASSUMED,
    **module: Any,
) -> MemoryEstimate:
    """The peak memory of training, without a card; `unknown` is set if it cannot be traced.

    recipe: a Recipe, then `batch` is the micro-batch (its own when left out); or an nn.Module, then `batch`
    holds its inputs, and `loss`, `optimizer`, `precision`, `accumulate` may be given (see modules.as_recipe).
    data_mib: what else lies on the device, such as a data set.
    """
    from torch import nn

    if isinstance(recipe, nn.Module):
        from overnight.memory.modules import as_recipe

        recipe, batch = as_recipe(recipe, batch, **module), 1
    micro = int(batch or recipe.params.micro_batch or recipe.params.batch)
    sliced = recipe.eval_example is not None
    return estimated(lambda: traced(recipe, micro, target), micro, target, data_mib, constants, sliced)


def estimated(trace: Callable[[], Trace], micro: int, *how: Any) -> MemoryEstimate:
    """As estimate(), with `unknown` set for Unknown."""
    try:
        return estimate(trace(), micro, *how)
    except Unknown as error:
        return MemoryEstimate(micro, unknown=str(error))


def estimate(
    trace: Trace,
    micro: int,
    target: Target = "cuda",
    data_mib: float = 0.0,
    constants: Constants = ASSUMED,
    sliced: bool = False,
) -> MemoryEstimate:
    from overnight.memory.allocator import BLOCK, reserved_bytes

    cuda = target == "cuda"
    context = constants.context_mib if cuda else 0.0
    training = trace.without("evaluate") if sliced else trace
    peak = trace.peak(BLOCK if cuda else 1)
    least = training.peak(BLOCK if cuda else 1)
    held = [reserved_bytes(t, constants.expandable) if cuda else t.peak().bytes for t in (trace, training)]
    mib = held[0] / MIB + data_mib
    high, needed = ((n / MIB + data_mib) * (1 + MARGIN) + MARGIN_MIB[target] + context for n in held)
    low = (least.bytes - least.parts.get("workspace", 0)) / MIB + data_mib + context
    parts = {kind: size / MIB for kind, size in peak.parts.items()}
    parts["data"] = parts.get("data", 0.0) + data_mib
    if cuda:
        parts |= {"fragments": max(0.0, mib - peak.bytes / MIB - data_mib), "context": context}
    return MemoryEstimate(micro, mib + context, low, high, needed, parts, peak.phase, peak.operator)
