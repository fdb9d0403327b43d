"""Mixed precision, channels-last, fused optimizers and compiled models: faster, with the same mathematics."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from overnight.errors import FAILURES

FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # those with fused CUDA kernels
WORTH_FLOP = 1e16  # of a whole training: minutes even on a fast card, where compiling takes about one
COMPILERS = (  # errors of their own, which derive from Exception alone
    ("triton.errors", "TritonError"),
    ("torch._inductor.compile_worker.subproc_pool", "SubprocException"),
)


def failures() -> tuple[type[Exception], ...]:
    """What a step may fail with: no memory, FAILURES, the errors of those compilers that are loaded."""
    loaded = [getattr(sys.modules.get(module), name, MemoryError) for module, name in COMPILERS]
    return (MemoryError, *FAILURES, subprocess.SubprocessError, *loaded)


class Precision:
    """The dtype of a forward pass, and the loss scale that fp16 needs.

    asked: "fp32", "bf16", "fp16", or "auto": bf16 or fp16 on a CUDA card, fp32 elsewhere.
    """

    def __init__(self, asked: str, device: torch.device) -> None:
        self.device = device.type
        self.name = automatic(device) if asked == "auto" else asked
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.name == "fp16")

    @property
    def scales(self) -> bool:
        """Gradients are then summed the same way for every micro-batch size."""
        return self.name == "fp16"

    def cast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device, self.dtype) if self.dtype else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        count: float | Tensor | None,
        clip: float,
    ) -> None:
        """Divide summed gradients by the count (None: they are averages), clip, and step."""
        self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if count is not None and gradients:
            # with a count of another dtype a card takes a slow path, one kernel for each gradient
            count = count.to(gradients[0].dtype) if isinstance(count, Tensor) else count
            torch._foreach_div_(gradients, count)
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        self.scaler.update()


def automatic(device: torch.device) -> str:
    """The lowest precision that the device computes fast and safely."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """On a CUDA card convolutions get channels-last weights; on a CPU which is faster differs by net."""
    convolves = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if convolves and device.type == "cuda" else model


def fuse(optimizer: torch.optim.Optimizer) -> bool:
    """Use fused kernels on a CUDA card, unless the author chose; True if any group now does."""
    found = False
    for group in optimizer.param_groups if isinstance(optimizer, FUSED) else []:
        chosen = (
            group.get("fused") is not None or group.get("foreach") is not None or group.get("differentiable")
        )
        if not chosen and all(p.is_cuda and p.is_floating_point() for p in group["params"]):
            group["fused"] = found = True
    if found and all(group["fused"] for group in optimizer.param_groups):
        vars(optimizer)["_step_supports_amp_scaling"] = True  # GradScaler then waits for no card
    return found


class Compiled:
    """Compiles a model's forward pass; its names, weights and hooks stay those of the plain model.

    asked: "on", "off", or "auto": on a CUDA card, if the training is long enough. why: on or off, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        asked: str,
        device: torch.device,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        self.model = model
        self.asked = asked
        self.backend = backend
        self.call: Callable[..., Any] | None = None
        self.why = ""
        if asked == "off":
            self.why = "off"
        elif asked == "auto" and device.type != "cuda":
            self.why = "off: no CUDA card"

    def decide(self, flop: float) -> None:
        """flop: what the whole training will compute."""
        if self.why:
            return
        if self.asked == "auto" and flop < WORTH_FLOP:
            self.why = f"off: the whole training is {flop / 1e15:.2g} PFLOP, less than compiling is worth"
            return
        self.why = "on"
        self.call = torch.compile(self.model._call_impl, backend=self.backend)

    def give_up(self, reason: str) -> None:
        self.call = None
        self.why = f"off: it could not be compiled ({reason})"

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Calling the model calls the compiled forward pass, as after its own method `compile`."""
        if self.call is None:  # the author may have compiled it
            yield
            return
        self.model._compiled_call_impl = self.call
        try:
            yield
        finally:
            self.model._compiled_call_impl = None
