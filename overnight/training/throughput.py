"""What a training computes, and how fast: floating-point operations by torch's own formulas, of one micro-batch of one step."""

import time
from contextlib import suppress
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from overnight.training.acceleration import FAILURES


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is entered, the operations of matrix products, convolutions and attention, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry

        self._formulas, self.total = flop_registry, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As of the byte counter: what torch wraps around the handler otherwise loads a compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator, then add what its formula says of the shapes."""
        out = func(*args, **(kwargs or {}))
        formula = self._formulas.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            with suppress(*FAILURES):  # shapes that a formula does not know are no reason to stop
                self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


class Pace:
    """Samples in a second, of the training alone; on a card, up to where it has really come."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.began, self.seen = time.perf_counter(), 0

    def add(self, samples: int) -> None:
        """So many more."""
        self.seen += samples

    def metrics(self, gflop: float) -> dict[str, float]:
        """train/samples_per_s and, where the operations are known, train/tflops; nothing when nothing was trained."""
        if not self.seen:
            return {}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        rate = self.seen / (time.perf_counter() - self.began)
        return {"train/samples_per_s": rate} | ({"train/tflops": rate * gflop / 1e3} if gflop else {})
