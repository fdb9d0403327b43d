"""From a recipe to MiB: the peak of a training step, with a band and its parts, or the reason why it cannot be known."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from overnight.config import Values
from overnight.errors import OvernightError
from overnight.memory.trace import Trace

Target = Literal["cuda", "cpu"]
MIB = 2**20
VIRTUAL_MARGIN_MIB = 8.0
_ONE_AT_A_TIME = threading.Lock()  # a trace changes operators of the whole process while it lasts


class Unknown(OvernightError):
    """What a program does depends on values that only a real run has, or it cannot run without its data; never taken for a fit."""

    exit_code = 2
    child_code = 10


class Constants(Values):
    """What no trace shows, measured once per machine where there is a card."""

    context_mib: float = 600.0  # CUDA context, kernels and library handles of a process, until measured
    margin: float = 0.03  # of the reserved memory, added to the band's upper edge
    margin_mib: float = 32.0
    expandable: bool = (
        True  # PYTORCH_ALLOC_CONF=expandable_segments:True, as the children of overnight have it
    )

    @classmethod
    def of(cls, virtual: bool) -> "Constants":
        """Of the allocator alone, as leases are sized. A virtual card counts live bytes: nothing is rounded, and no library takes more."""
        return cls(context_mib=0.0, margin_mib=VIRTUAL_MARGIN_MIB) if virtual else cls(context_mib=0.0)


@dataclass(frozen=True)
class Prediction:
    """MiB of the card that a step takes at its peak: as predicted, between which edges, of what, when."""

    target: str
    micro_batch: int
    mib: float = 0.0
    low_mib: float = 0.0
    high_mib: float = 0.0
    needed_mib: float = (
        0.0  # the upper edge without the evaluation, which is cut into smaller slices where memory runs out
    )
    live_mib: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)  # they add up to `mib`
    phase: str = ""
    operator: str = ""
    unknown: str = ""  # why there is no prediction

    def verdict(self, budget_mib: float) -> Literal["fits", "does not fit", "unknown"]:
        """Of a budget; on the edge it does not fit."""
        if self.unknown:
            return "unknown"
        return "fits" if self.needed_mib <= budget_mib else "does not fit"


def traced(recipe: Any, micro: int, target: Target, spare: Callable[..., int] | None = None) -> Trace:
    """Every allocation of the recipe's program with micro-batches of `micro` samples. Raises Unknown."""
    import contextlib

    from overnight.memory import cuda_rules
    from overnight.memory.fake_tensors import FakeWorld
    from overnight.memory.program import drive

    world = FakeWorld(target, spare or (cuda_rules.workspace if target == "cuda" else lambda *_: 0))
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with cuda_rules.as_on_cuda() if target == "cuda" else contextlib.nullcontext(), world.entered():
                if target == "cuda":
                    for _ in range(cuda_rules.BLAS_HANDLES):
                        world.tracer.trace.allocate(
                            cuda_rules.BLAS_WORKSPACE, "workspace", ("build", "cuBLAS")
                        )
                drive(recipe, micro, world)
        except REFUSALS as error:
            raise Unknown(_reason(error, world.tracer.failed)) from None
    return world.tracer.trace.settled()


REFUSALS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    AssertionError,
    NotImplementedError,
    ImportError,
    OSError,
)


def _reason(error: BaseException, phase: str) -> str:
    kind = type(error).__name__
    what = {
        "DataDependentOutputException": "it reads a value off the device and goes on by it",
        "DynamicOutputShapeException": "the size of a tensor depends on values",
        "UnsupportedOperatorException": "an operator has no shape rule",
    }.get(kind, kind)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{phase or 'build'}: {what}: {first[:160]}"


def predict(
    recipe: Any,
    batch: Any = None,
    target: Target = "cuda",
    data_mib: float = 0.0,
    constants: Constants | None = None,
    **module: Any,
) -> Prediction:
    """The peak memory of training, before it runs and without a card.

    recipe: a Recipe, then `batch` is the micro-batch (its own when left out); or an nn.Module, then `batch` holds its inputs, and
    `loss`, `optimizer`, `precision`, `accumulate` may be given (see overnight.memory.modules.as_recipe).
    data_mib: what else lies on the device, as a data set does. A program that cannot be traced ends with `unknown` set.
    """
    from torch import nn

    if isinstance(recipe, nn.Module):
        from overnight.memory.modules import as_recipe

        recipe, batch = as_recipe(recipe, batch, **module), 1
    micro = int(batch or recipe.params.micro_batch or recipe.params.batch)
    try:
        trace = traced(recipe, micro, target)
        return weighed(
            trace, micro, target, data_mib, constants or Constants(), recipe.eval_example is not None
        )
    except Unknown as error:
        return Prediction(target, micro, unknown=str(error))


def weighed(
    trace: Trace, micro: int, target: Target, data_mib: float, constants: Constants, sliced: bool = False
) -> Prediction:
    """What a trace takes of a card, or of the virtual one, which counts live bytes alone. sliced: its evaluation can be cut smaller."""
    from overnight.memory.allocator import BLOCK

    training = trace.without("evaluate") if sliced else trace
    peak = trace.peak(BLOCK if target == "cuda" else 1)
    least = training.peak(BLOCK if target == "cuda" else 1)
    live = peak.bytes / MIB + data_mib
    mib, needed = (_taken(t, target, constants) + data_mib for t in (trace, training))
    context = constants.context_mib if target == "cuda" else 0.0
    high, needed = (m * (1 + constants.margin) + constants.margin_mib + context for m in (mib, needed))
    low = (least.bytes - least.parts.get("workspace", 0)) / MIB + data_mib + context
    parts = {kind: size / MIB for kind, size in peak.parts.items()}
    parts["data"] = parts.get("data", 0.0) + data_mib
    if target == "cuda":
        parts |= {"fragments": max(0.0, mib - live), "context": context}
    return Prediction(target, micro, mib + context, low, high, needed, live, parts, peak.phase, peak.operator)


def _taken(trace: Trace, target: Target, constants: Constants) -> float:
    """MiB: on a card what the allocator reserves, elsewhere what is alive."""
    from overnight.memory.allocator import replay

    return (replay(trace, constants.expandable).reserved if target == "cuda" else trace.peak().bytes) / MIB


def predict_peak(
    recipe: Any, micro_batch: int, target: Target, data_mib: float = 0.0
) -> tuple[float, float] | None:
    """(low, high) MiB of a recipe with that micro-batch, None when it is unknown: what a lease is sized by."""
    found = predict(recipe, micro_batch, target, data_mib)
    return None if found.unknown else (found.low_mib, found.high_mib)
