"""Mixed precision: which dtype, and the loss scale that fp16 needs."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn


class Precision:
    """What a forward pass computes in; "auto" is bf16 or fp16 on a CUDA card, whichever it knows, and fp32 elsewhere."""

    def __init__(self, asked: str, device: torch.device) -> None:
        self.device = device.type
        self.name = automatic(device) if asked == "auto" else asked
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.name == "fp16")

    @property
    def scales(self) -> bool:
        """Whether losses are scaled: their size then depends on how gradients are summed, which must not change with the micro-batch."""
        return self.name == "fp16"

    def cast(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast region of a forward pass."""
        return torch.autocast(self.device, self.dtype) if self.dtype else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the (scaled) loss."""
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
        if count is not None:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], count)
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        if self.scales:  # torch warns of schedules that go on before the optimizer's first step, which fp16 may leave out on purpose
            setattr(optimizer, "_opt_called", True)  # noqa: B010 - torch declares it nowhere
        self.scaler.step(optimizer)
        self.scaler.update()


def automatic(device: torch.device) -> str:
    """The best precision that the device computes fast."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
