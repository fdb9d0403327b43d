"""Programs that are no training: modules that lie on the card, called one after the other without gradients."""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from overnight.memory import cuda_rules
from overnight.memory.fake_tensors import FakeWorld
from overnight.memory.prediction import _ONE_AT_A_TIME, REFUSALS, Target, Unknown, _reason
from overnight.memory.trace import Trace

Call = Callable[[nn.Module], Any]


def traced_calls(
    modules: Mapping[str, tuple[Callable[[], nn.Module], Call]], target: Target = "cuda"
) -> Trace:
    """Every allocation of building all modules and then calling one after the other. Raises Unknown.

    modules: name -> (build, call); what a call returns is dropped at its end. Each call is a phase of its name.
    """
    world = FakeWorld(target, cuda_rules.workspace if target == "cuda" else lambda *_: 0)
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with cuda_rules.as_on_cuda() if target == "cuda" else contextlib.nullcontext(), world.entered():
                if target == "cuda":
                    world.tracer.trace.allocate(cuda_rules.BLAS_WORKSPACE, "workspace", ("build", "cuBLAS"))
                _called(world, modules)
        except REFUSALS as error:
            raise Unknown(_reason(error, world.tracer.failed)) from None
    return world.tracer.trace.settled()


def _called(world: FakeWorld, modules: Mapping[str, tuple[Callable[[], nn.Module], Call]]) -> None:
    with world.during("build"):
        built = {name: world.take(build).eval() for name, (build, _) in modules.items()}
    for name, (_, call) in modules.items():
        with world.during(name), torch.no_grad():
            call(built[name])
