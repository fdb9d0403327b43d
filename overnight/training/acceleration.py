"""What makes a card compute faster without changing what is computed: layout of the weights, fused optimizers, compiled models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # those whose fused kernels know CUDA
WORTH_FLOP = 1e16  # of a whole training: minutes even on a fast card, where compiling takes about one
FAILURES = (
    RuntimeError,
    OSError,
    ImportError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    AssertionError,
)  # of compilers and what they call


def laid_out(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device; on a CUDA card convolutions get channels-last weights, which their outputs then follow.

    On a CPU the weights stay as their author laid them: what is faster there differs from net to net.
    """
    convolves = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if convolves and device.type == "cuda" else model


def fuse(optimizer: torch.optim.Optimizer) -> bool:
    """Let an optimizer update all its weights in one kernel, where they lie on a CUDA card and its author did not choose; whether it does."""
    found = False
    for group in optimizer.param_groups if isinstance(optimizer, FUSED) else []:
        chosen = (
            group.get("fused") is not None or group.get("foreach") is not None or group.get("differentiable")
        )
        if not chosen and all(p.is_cuda and p.is_floating_point() for p in group["params"]):
            group["fused"] = found = True
    return found


class Compiled:
    """A model that is compiled while `on` lasts; its names, weights and everything outside stay those of the plain one.

    asked: "auto" compiles on a CUDA card, once the training is known to be long enough for it to pay; "on" everywhere; "off" nowhere.
    """

    def __init__(
        self,
        model: nn.Module,
        asked: str,
        device: torch.device,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        self.model, self.asked, self.cuda, self.backend = model, asked, device.type == "cuda", backend
        self.call: Callable[..., Any] | None = None
        self.why = (
            "off" if asked == "off" else "off: no CUDA card" if asked == "auto" and not self.cuda else ""
        )

    def decide(self, flop: float) -> None:
        """Start, or not, knowing what the whole training will compute (floating-point operations)."""
        if self.why:
            return
        if self.asked == "auto" and flop < WORTH_FLOP:
            self.why = f"off: the whole training is {flop / 1e15:.2g} PFLOP, less than compiling is worth"
            return
        self.why = "on"
        self.call = torch.compile(self.model._call_impl, backend=self.backend)

    def give_up(self, reason: str) -> None:
        """Go on with the plain model."""
        self.call, self.why = None, f"off: it could not be compiled ({reason})"

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, calling the model calls what was compiled, as after its own method `compile`."""
        self.model._compiled_call_impl = self.call
        try:
            yield
        finally:
            self.model._compiled_call_impl = None
