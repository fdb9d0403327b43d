"""Where the data of a training lie, and who makes its batches when: on the card where they fit, else by a thread, while the card computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.training.acceleration import FAILURES
from overnight.training.batches import Batch, Batches, since
from overnight.training.out_of_memory import brief

Data = TypeVar("Data")
AHEAD = 2  # batches that wait
MIB = 1 << 20


class Feed(Generic[Data]):
    """The batches of a training's epochs, always the same ones in the same order, wherever the data lie.

    make(data) -> the batches of the current epoch; index() -> how many of them are done. where: in words, for the run.
    """

    def __init__(
        self,
        make: Callable[[Data], Iterable[Batch]],
        data: Data,
        index: Callable[[], int],
        device: torch.device,
    ) -> None:
        self.make, self.host, self.index, self.device = make, data, index, device
        self.data, self.moved_bytes = data, 0
        self.where = "host" if device.type == "cuda" else f"host: computes on {device.type}"
        self._inner: Iterator[Batch] | None = None

    @property
    def resident(self) -> bool:
        """Whether the batches are made of data on the card."""
        return self.data is not self.host

    def batches(self) -> Iterator[Batch]:
        """What is left of the current epoch; goes on at the same place when the data move meanwhile."""
        while (batch := next(self._inner or self._begun(), None)) is not None:
            yield batch
        self.close()

    def _begun(self) -> Iterator[Batch]:
        made = self.make(self.data)
        threaded = self.device.type == "cuda" and not self.resident and isinstance(made, Batches)
        self._inner = (
            ahead(made, self.index(), pinned)
            if threaded and isinstance(made, Batches)
            else since(made, self.index())
        )
        return self._inner

    def close(self) -> None:
        """Let go of what is made ahead, and of its thread."""
        inner, self._inner = self._inner, None
        if isinstance(inner, Iterator) and hasattr(inner, "close"):
            inner.close()

    def settle(self, room_bytes: float) -> None:
        """Move what batches are made of to the card, where it fits in the room, and the batch made of it is the same bit for bit."""
        names = self._needed()
        if not isinstance(self.host, dict) or not names:
            self.where = "host: not tensors by name" if not names else "host"
            return
        size = sum(self.host[name].nbytes for name in names)
        if size > room_bytes:
            self.where = f"host: {size / MIB:,.0f} MiB do not fit into the {max(0.0, room_bytes) / MIB:,.0f} MiB that training leaves of the lease"
            return
        try:
            self._move({name: self.host[name].to(self.device, copy=True) for name in names})
            self.moved_bytes = size
            self.where = f"card: {size / MIB:,.0f} MiB ({', '.join(sorted(names))})"
        except (
            MemoryError,
            *FAILURES,
        ) as error:  # code that mixes what lies on the card with what it makes on the host, or no memory
            self.data = self.host
            self.where = f"host: {'out of memory' if is_out_of_memory(error) else f'its batches cannot be made there ({brief(error)[:80]})'}"

    def _needed(self) -> set[str]:
        """What the making of a batch asks for; nothing where that is no dict, or not all of it tensors."""
        if not isinstance(self.host, dict) or not all(
            isinstance(value, Tensor) for value in self.host.values()
        ):
            return set()
        asked = _Asked(self.host)
        next(iter(since(self.make(asked), 0)), None)  # type: ignore[arg-type]
        return {name for name in asked.names if isinstance(name, str)}

    def _move(self, moved: dict[str, Tensor]) -> None:
        """Take batches from there. Raises RuntimeError when they are others."""
        assert isinstance(self.host, dict)
        data: Any = {**self.host, **moved}
        mine, theirs = (next(iter(since(self.make(source), 0)), {}) for source in (data, self.host))
        if mine.keys() != theirs.keys() or not all(
            torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine
        ):
            raise RuntimeError("they are others there")
        self.close()
        self.data = data

    def back(self) -> bool:
        """Give the card's memory back; False when nothing of it was taken."""
        if not self.resident:
            return False
        self.data, self.where = self.host, "host: moved back when the card's memory ran out"
        self.close()
        return True


class _Asked(dict[Any, Any]):
    """A dict that remembers what it was asked for."""

    def __init__(self, data: dict[Any, Any]) -> None:
        super().__init__(data)
        self.names = set[Any]()

    def __getitem__(self, name: Any) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: Any, default: Any = None) -> Any:
        """As of a dict."""
        self.names.add(name)
        return super().get(name, default)

    def items(self) -> Any:
        """As of a dict."""
        self.names |= set(self)
        return super().items()

    def values(self) -> Any:
        """As of a dict."""
        self.names |= set(self)
        return super().values()


def ahead(
    batches: Batches, first: int, finish: Callable[[Batch], Batch], depth: int = AHEAD
) -> Iterator[Batch]:
    """The batches from number `first` on, in order, `depth` of them made ahead by a thread; an error comes where its batch would."""
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
    """In memory that the card fetches by itself; as it was where there is no such memory left."""
    try:
        return {name: tensor if tensor.is_cuda else tensor.pin_memory() for name, tensor in batch.items()}
    except RuntimeError:
        return batch
