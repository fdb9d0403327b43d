"""The virtual card's memory: bytes that torch's operators allocate on the CPU, below a cap.

A storage counts from the operator that makes it until its memory is freed. Views and operators that work in
place add nothing; an operator that grows what it is given (resize_, set_, out=) adds what is new. Not
counted: tensors from before the counter, arrays borrowed from NumPy or a file, tensors of other threads, the
resizing of a bare storage, and what an operator allocates and frees while it runs, so peaks are lower bounds.
Batches that are made or augmented by torch on the host count as well.

A storage that is watched looks shared to autograd, which then adds up gradients in new memory rather than in
place. That costs time; the peaks were the same.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

ALIASES, MAKES, LIFTS, RESIZES, DECOMPOSES = range(5)  # what an operator does to storages
PLAIN = frozenset({Tensor, torch.nn.Parameter})
STRIDED = torch.strided
SEQUENCES = frozenset({list, tuple})
NUMBERS = frozenset({int, float, bool, type(None)})  # among arguments: what is surely no tensor
MIB = 1 << 20
BY_ROW = ("crow_indices", "col_indices", "values")
BY_COLUMN = ("ccol_indices", "row_indices", "values")
COMPONENTS = {  # methods that return the parts of a sparse tensor
    torch.sparse_coo: ("_indices", "_values"),
    **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), BY_ROW),
    **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), BY_COLUMN),
}


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live bytes while it is entered.

    Raises torch.OutOfMemoryError where an operator would exceed `cap` (bytes; None: no cap), after giving its
    memory back: work may go on.
    """

    def __init__(self, cap: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cap = cap
        self._bytes = self._peak = self._refused = 0
        self._marks = dict[int, _Mark]()
        self._freed = deque[
            _Mark
        ]()  # filled by the thread that frees a storage, emptied by the one that counts
        self._gone: Callable[[_Mark], None] = self._freed.append
        self._kinds = dict[int, int]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Skip torch's guard against compilation: it costs more than the handler, and loads a compiler."""
        return False

    def use(self) -> int:
        """Bytes alive now; from any thread."""
        return self._bytes - sum(mark.bytes for mark in tuple(self._freed))

    def peak(self) -> int:
        return self._peak

    def refused(self) -> int:
        return self._refused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = self._kinds.get(id(func))
        if kind is None:
            kind = self._kinds[id(func)] = _kind(func)
        if kind == ALIASES:
            return func(*args, **kwargs) if kwargs else func(*args)
        if kind == DECOMPOSES:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        before = [self._before(tensor) for tensor in _tensors([args, kwargs])] if kind == RESIZES else []
        out = func(*args, **kwargs) if kwargs else func(*args)
        if self._freed:
            self._forget_freed()
        had = self._bytes
        if kind == MAKES:
            self._count(out, args)
        else:
            self._count([old.tensor for old in before if old.changed()] if kind == RESIZES else out, ())
        if self._bytes > self._peak:
            if self.cap is None or self._bytes <= self.cap:
                self._peak = self._bytes
            else:
                asked = self._bytes - had
                out, args, kwargs = None, (), None  # this frame lives as long as the error
                self._refuse(asked, had, before)
        return out

    def _before(self, tensor: Tensor) -> "_Before":
        storage = tensor.untyped_storage()
        mark = self._marks.get(storage._cdata)
        view = tensor.storage_offset(), tensor.shape, tensor.stride()
        return _Before(tensor, storage, storage.nbytes(), mark.bytes if mark else 0, view)

    def _count(self, made: Any, given: Any) -> None:
        """Count the storages that an operator made, except uncounted ones that it was given."""
        for item in made if type(made) in SEQUENCES else (made,):
            for tensor in (item,) if type(item) is Tensor and item.layout is STRIDED else _tensors(item):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                mark = self._marks.get(key)
                if mark is None:
                    if not storage.resizable() or not tensor.is_cpu or _has(given, key):
                        continue
                    mark = self._marks[key] = _Mark(storage, self._gone)
                    mark.key = key
                    mark.bytes = size
                    self._bytes += size
                elif size != mark.bytes:
                    self._bytes += size - mark.bytes
                    mark.bytes = size

    def _forget_freed(self) -> None:
        while self._freed:
            mark = self._freed.popleft()
            self._bytes -= mark.bytes
            if self._marks.get(mark.key) is mark:
                del self._marks[mark.key]

    def _refuse(self, asked: int, had: int, before: "list[_Before]") -> None:
        for old in before:
            if old.changed():
                self._marks[old.tensor.untyped_storage()._cdata].bytes = 0
                old.restore()
                if mark := self._marks.get(old.storage._cdata):
                    mark.bytes = old.counted
                self._bytes = had
        before.clear()
        self._forget_freed()
        self._refused += 1
        raise torch.OutOfMemoryError(
            f"out of memory on the virtual card: {asked / MIB:.1f} MiB were asked for, "
            f"{self._bytes / MIB:.1f} of {(self.cap or 0) / MIB:.1f} MiB are in use"
        )


class _Mark(weakref.ref):  # type: ignore[type-arg]
    """A storage that is counted, for as long as it lives. Made as `_Mark(storage, called at its end)`."""

    __slots__ = ("bytes", "key")

    bytes: int
    key: int


class _Before(NamedTuple):
    tensor: Tensor
    storage: UntypedStorage
    bytes: int
    counted: int
    view: tuple[Any, ...]

    def changed(self) -> bool:
        storage = self.tensor.untyped_storage()
        return storage._cdata != self.storage._cdata or storage.nbytes() != self.bytes

    def restore(self) -> None:
        if self.storage.nbytes() != self.bytes:
            self.storage.resize_(self.bytes)
        self.tensor.set_(self.storage, *self.view)


def _kind(func: Any) -> int:
    schema = getattr(func, "_schema", None)
    if schema is None:
        return MAKES
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return DECOMPOSES  # seen under inference_mode alone, where nothing above has taken it apart
    name = schema.name.rpartition("::")[2]
    if name.startswith("lift"):
        return LIFTS
    if (
        name == "set_"
        or "resize" in name
        or any(a.kwarg_only and a.alias_info and a.alias_info.is_write for a in schema.arguments)
    ):
        return RESIZES
    return ALIASES if all(value.alias_info for value in schema.returns) else MAKES


def _has(given: Any, key: int) -> bool:
    for item in given:
        kind = type(item)
        if kind in PLAIN and item.layout is STRIDED:
            if item.untyped_storage()._cdata == key:
                return True
        elif kind in NUMBERS or (kind in SEQUENCES and (not item or type(item[0]) in NUMBERS)):
            continue
        elif any(tensor.untyped_storage()._cdata == key for tensor in _tensors(item)):
            return True
    return False


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in there that have a storage; in place of sparse and wrapped ones what they are made of."""
    if isinstance(value, Tensor):
        if value.layout is STRIDED and (type(value) in PLAIN or _is_plain(value)):
            yield value
        else:
            yield from _tensors(_components(value))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])


def _is_plain(tensor: Tensor) -> bool:
    wrapped: bool = is_traceable_wrapper_subclass(tensor)
    return not wrapped and tensor.untyped_storage().device.type == "cpu"


def _components(tensor: Any) -> list[Tensor]:
    """What a tensor without a storage of its own is made of, where that is known."""
    if is_traceable_wrapper_subclass(tensor):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [getattr(tensor, name)() for name in COMPONENTS.get(tensor.layout, ())]
