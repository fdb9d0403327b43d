"""Where training data lie, and who makes batches: the card, or a thread while the card computes."""

from collections import UserDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from overnight.errors import FAILURES, one_line
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.training.batches import Batch, Batches, since

Data = TypeVar("Data")
DEPTH = 2  # batches made ahead
MIB = 1 << 20


class Prefetcher(Generic[Data]):
    """The same batches in the same order, wherever the data lie.

    where: for people; moved_bytes: data on the card; note: takes what a person should know.
    """

    def __init__(
        self, data: Data, device: torch.device, note: Callable[[str], object] = lambda _text: None
    ) -> None:
        self.host = data
        self.device = device
        self.data = data
        self.moved_bytes = 0
        self.note = note
        self.pins = True
        self.where = "host" if device.type == "cuda" else f"host: computes on {device.type}"
        self._inner: Iterator[Batch] | None = None

    @property
    def resident(self) -> bool:
        return self.data is not self.host

    def batches(self, make: Callable[[Data], Iterable[Batch]], first: int) -> Iterator[Batch]:
        self.make = make
        while True:
            batch = next(self._inner or self._start(first), None)
            if batch is None:
                break
            first += 1
            yield batch
        self.close()

    def _start(self, first: int) -> Iterator[Batch]:
        made = self.make(self.data)
        if self.device.type == "cuda" and not self.resident and isinstance(made, Batches):
            self._inner = prefetch(made, first, self._pin)
        else:
            self._inner = since(made, first)
        return self._inner

    def _pin(self, batch: Batch) -> Batch:
        """The batch, page-locked until that is refused once.

        WSL2 has 1 to 2 GB of such memory and says "CUDA error: out of memory" for more, with the card empty.
        """
        if self.pins:
            try:
                return pinned(batch)
            except RuntimeError as error:
                self.pins = False
                self.note(f"batches are not page-locked, which the host refused ({one_line(error)})")
        return batch

    def close(self) -> None:
        """Drop the batches made ahead."""
        inner = self._inner
        self._inner = None
        if isinstance(inner, Iterator) and hasattr(inner, "close"):
            inner.close()

    def settle(self, room_bytes: float) -> None:
        """Move the data to the card, if they fit and a batch made there is equal bit for bit."""
        names = self._used_names()
        if not isinstance(self.host, dict) or not names:
            on_card = any(t.device.type == self.device.type for t in self._first(self.data).values())
            self.where = "card: made there" if on_card else "host: not tensors by name"
            return
        size = sum(self.host[name].nbytes for name in names)
        if size > room_bytes:
            room_mib = max(0.0, room_bytes) / MIB
            self.where = (
                f"host: {size / MIB:,.0f} MiB do not fit into the {room_mib:,.0f} MiB "
                "that training leaves of the lease"
            )
            return
        try:
            moved: Any = self.host | {name: self.host[name].to(self.device, copy=True) for name in names}
            self._check(moved)
        except (MemoryError, *FAILURES) as error:  # no memory, or code that mixes tensors of card and host
            why = f"its batches cannot be made there ({one_line(error)[:80]})"
            self.where = f"host: {'out of memory' if is_out_of_memory(error) else why}"
        else:
            self.close()
            self.data = moved
            self.moved_bytes = size
            self.where = f"card: {size / MIB:,.0f} MiB ({', '.join(sorted(names))})"

    def _used_names(self) -> set[str]:
        """The entries that making a batch reads; empty if the data are no dict of tensors."""
        if not isinstance(self.host, dict) or not all(isinstance(v, Tensor) for v in self.host.values()):
            return set()
        recorder = _Recorder(self.host)
        self._first(recorder)  # type: ignore[arg-type]
        return recorder.names & self.host.keys()

    def _first(self, data: Data) -> Batch:
        return next(iter(since(self.make(data), 0)), {})

    def _check(self, moved: Data) -> None:
        ours = self._first(moved)
        theirs = self._first(self.host)
        if ours.keys() != theirs.keys() or not all(
            torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours
        ):
            raise RuntimeError("they are others there")

    def move_back(self) -> bool:
        """False when the data were on the host."""
        if not self.resident:
            return False
        self.data = self.host
        self.where = "host: moved back when the card's memory ran out"
        self.close()
        return True


class _Recorder(UserDict[Any, Any]):
    """Records which entries are read; items, values and get all come by here."""

    def __init__(self, data: dict[Any, Any]) -> None:
        super().__init__()
        self.names = set[Any]()
        self.data = data

    def __getitem__(self, name: Any) -> Any:
        self.names.add(name)
        return super().__getitem__(name)


def prefetch(
    batches: Batches, first: int, finish: Callable[[Batch], Batch], depth: int = DEPTH
) -> Iterator[Batch]:
    """`depth` batches are made ahead by a thread; errors come in order."""
    waiting = deque[Future[Batch]]()
    with ThreadPoolExecutor(1, "batches") as pool:
        try:
            for index in range(first, len(batches)):
                waiting.append(pool.submit(lambda number: finish(batches.at(number)), index))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def pinned(batch: Batch) -> Batch:
    """In page-locked memory, which the card copies itself."""
    return {name: tensor if tensor.is_cuda else tensor.pin_memory() for name, tensor in batch.items()}
