"""A dispatch mode that records when each storage is allocated and released."""

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
ITEM = torch.ops.aten._local_scalar_dense.default  # float(tensor)
EQUAL = torch.ops.aten.equal.default  # torch.equal()
# phases in which values are shown or count steps, and change no allocation
REPORTS = ("optimizer", "evaluate")
# its shape rule omits the workspace, most of what it takes
FUSED_LSTM = torch.ops.aten.mkldnn_rnn_layer.default
Spare = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], int]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Entered inside a fake mode, it sees every operator, including the backward pass.

    spare(operator, args, kwargs, out) -> bytes of workspace that the operator takes and releases.
    """

    def __init__(self, spare: Spare) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self.spare = spare
        self.phase = ""
        self.operator = ""
        self.failed = ""  # the innermost phase of an error
        self.known: dict[int, tuple[int, Any]] = {}  # storage -> allocation, weak reference that ends it
        self.ignored: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE:  # called constantly
            return args[0].fake_device
        if func is FUSED_LSTM:
            raise NotImplementedError("a fused LSTM keeps memory for its backward pass that no shape tells")
        out = (
            _stand_in(func, args[0])
            if func in (ITEM, EQUAL) and self.phase in REPORTS
            else func(*args, **kwargs)
        )
        self.operator = str(func)
        spare = self.spare(func, args, kwargs, out)
        held = self.trace.allocate(spare, "workspace", (self.phase, self.operator)) if spare else None
        for tensor in tensors(out):
            self.note(tensor, _kind(self.phase))
        if held is not None:
            self.trace.release(held, (self.phase, self.operator))
        return out

    def note(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        found = self.known.get(key)
        if key in self.ignored or (found is not None and self.trace.sizes[found[0]] >= size):
            return
        if found is not None:  # resized: the old bytes go once the new ones are there
            self._end(key)
        if size:
            number = self.trace.allocate(size, kind, (self.phase, self.operator))
            self.known[key] = (number, weakref.ref(storage, partial(self._end, key)))

    def ignore(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.ignored[storage._cdata] = weakref.ref(storage, partial(self._forget, storage._cdata))

    def _forget(self, key: int, _gone: object = None) -> None:
        self.ignored.pop(key, None)

    def _end(self, key: int, _gone: object = None) -> None:
        number, _ = self.known.pop(key)
        self.trace.release(number, (self.phase, self.operator))

    def label(self, found: Iterable[Tensor], kind: str) -> None:
        for tensor in found:
            entry = self.known.get(tensor.untyped_storage()._cdata)
            if entry is not None:
                self.trace.kinds[entry[0]] = kind

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        except BaseException:
            self.failed = self.failed or phase
            raise
        finally:
            self.phase = before


def _stand_in(func: Any, tensor: Tensor) -> float | int | bool:
    if func is EQUAL or tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


def _kind(phase: str) -> str:
    return {"forward": "activations", "evaluate": "activations", "data": "data"}.get(phase, "temporary")


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
