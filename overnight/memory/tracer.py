"""A dispatch mode that notes when each storage is born and when it dies."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from overnight.memory.trace import Trace

DEVICE = torch.ops.prim.device.default
READ = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
)  # what float(tensor) and torch.equal() become
REPORTS = (
    "optimizer",
    "evaluate",
)  # phases in which numbers are read to be shown, or are counters: they steer no allocation
HIDING = (
    torch.ops.aten.mkldnn_rnn_layer.default,
)  # its shape rule says nothing of the workspace, which is most of what an LSTM takes
Spare = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], int]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Entered inside a fake mode it sees every operator of the program, of the backward pass as well.

    spare(operator, args, kwargs, out) -> bytes that the operator takes for itself beside what it returns, and gives back at its end.
    """

    def __init__(self, spare: Spare) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.spare, self.phase = Trace(), spare, ""
        self.known: dict[
            int, tuple[int, Any]
        ] = {}  # storage -> allocation and the weak reference that tells its end
        self.passed: dict[int, Any] = {}
        self.operator = self.failed = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE:  # asked for at every turn
            return args[0].fake_device
        if func in HIDING:
            raise NotImplementedError("a fused LSTM keeps memory for its backward pass that no shape tells")
        out = _stand_in(func, args[0]) if func in READ and self.phase in REPORTS else func(*args, **kwargs)
        self.operator = str(func)
        spare = self.spare(func, args, kwargs, out)
        held = self.trace.allocate(spare, "workspace", (self.phase, self.operator)) if spare else None
        for tensor in tensors(out):
            self.note(tensor, _kind(self.phase))
        if held is not None:
            self.trace.release(held, (self.phase, self.operator))
        return out

    def note(self, tensor: Tensor, kind: str) -> None:
        """Take down the tensor's storage, if it is new or has grown."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        found = self.known.get(key)
        if key in self.passed or (found is not None and self.trace.sizes[found[0]] >= size):
            return
        if found is not None:  # resized: the old bytes go once the new ones are there
            self._end(key)
        if size:
            number = self.trace.allocate(size, kind, (self.phase, self.operator))
            self.known[key] = (number, weakref.ref(storage, partial(self._end, key)))

    def pass_over(self, tensor: Tensor) -> None:
        """Take no notice of the tensor's storage, which somebody else has allocated."""
        storage = tensor.untyped_storage()
        self.passed[storage._cdata] = weakref.ref(storage, partial(self._forget, storage._cdata))

    def _forget(self, key: int, _gone: object = None) -> None:
        self.passed.pop(key, None)

    def _end(self, key: int, _gone: object = None) -> None:
        number, _ = self.known.pop(key)
        self.trace.release(number, (self.phase, self.operator))

    def call(self, found: Iterable[Tensor], kind: str) -> None:
        """Say what the storages of these tensors are: weights, gradients ..."""
        for tensor in found:
            entry = self.known.get(tensor.untyped_storage()._cdata)
            if entry is not None:
                self.trace.kinds[entry[0]] = kind

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Whatever is allocated in the block belongs to that phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        except BaseException:
            self.failed = self.failed or phase
            raise
        finally:
            self.phase = before


def _stand_in(func: Any, tensor: Tensor) -> float | int | bool:
    """A number in place of one that nobody knows."""
    return (
        True
        if func is READ[1]
        else 1.0
        if tensor.is_floating_point()
        else True
        if tensor.dtype == torch.bool
        else 1
    )


def _kind(phase: str) -> str:
    return {"forward": "activations", "evaluate": "activations", "data": "data"}.get(phase, "temporary")


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in an operator's result."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
