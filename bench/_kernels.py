"""Workspace of this machine's CPU kernels, such as convolutions that reorder their operands.

Asked of the kernels themselves with two and with three samples; between those and any other number the bytes
grow evenly.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten
ASKED = {  # operator: which of its arguments have samples in their first dimension
    aten.convolution.default: (0,),
    aten.convolution_backward.default: (0, 1),
    aten.native_batch_norm_backward.default: (0, 1),
    aten.mean.dim: (0,),
    aten.sum.dim_IntList: (0,),
}
FEW = 3  # samples up to which a kernel is asked for the very size


class Kernels:
    """spare() of a Tracer for the CPU."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[int, int]] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any) -> int:
        """Bytes that the operator holds beside its result at its worst moment."""
        if func not in ASKED or kwargs or not args[0].ndim:
            return 0
        samples = len(args[0])
        sizes = (2, 3) if samples > FEW else (samples, samples)
        key = (func, sizes, *(_layout(a) if isinstance(a, Tensor) else str(a) for a in args))
        if key not in self.known:
            with _disable_current_modes():
                self.known[key] = (_spare(func, args, sizes[0]), _spare(func, args, sizes[1]))
        few, more = self.known[key]
        return max(0, few + (more - few) * (samples - sizes[0]))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """All that a kernel looks at but the number of samples."""
    return tensor.dtype, tuple(tensor.shape[1:]), tensor.is_contiguous(), tensor.stride()[1:]


def _spare(func: Any, args: tuple[Any, ...], samples: int) -> int:
    """The most bytes held while the operator runs, less those of its result."""
    real = list(args)
    for i, a in enumerate(args):
        if isinstance(a, Tensor):
            real[i] = _real(a, samples if i in ASKED[func] else a.shape[0])
    if func is aten.native_batch_norm_backward.default:  # its statistics have the dtype of the weight
        real[3:7] = [t if t is None else t.to(real[2].dtype) for t in real[3:7]]
    func(*real)  # the first call may keep something for later
    with torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profiler:
        out = func(*real)
    now = most = 0
    for event in (e for e in profiler.kineto_results.events() if e.name() == "[memory]"):
        now += event.nbytes()
        most = max(most, now)
    del out
    return most - now


def _real(tensor: Tensor, first: int) -> Tensor:
    """A tensor of ones laid out as the fake one, with `first` rows."""
    whole = torch.empty((first, *tensor.shape[1:]), dtype=tensor.dtype)
    last = (
        tensor.ndim == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return whole.contiguous(memory_format=torch.channels_last).fill_(1) if last else whole.fill_(1)
