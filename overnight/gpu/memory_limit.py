"""What keeps a process inside its lease: an allocator's cap on a CUDA card, the byte counter on the virtual one.

A lease pays for all that a process has on the card: the CUDA context (`overhead_mib`) and what its allocators take (`cap_mib`). On a
CUDA card torch's allocator and, by rmm.py, RMM's are capped; allocators that know of neither are named by `Cap.outside`. The virtual
card has no context, and counts bytes only where it was asked to (`card.count`).
"""

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from overnight.errors import DoesNotFit, OutOfMemory, ServiceError
from overnight.gpu import cuda_context, rmm
from overnight.gpu.card import Card
from overnight.gpu.cuda_context import overhead as overhead  # noqa: PLC0414 - also found here
from overnight.gpu.device_usage import gauge
from overnight.gpu.out_of_memory import is_host_memory, is_out_of_memory

if TYPE_CHECKING:
    from overnight.gpu.lease import Lease

MIB = 1 << 20
NEAR = 0.95  # of the cap: a peak above it may have been held down by the cap, so it says little of what the step would like
ALLOCATORS = ("catboost", "ctranslate2", "cupy", "jax", "llama_cpp", "numba.cuda", "onnxruntime", "paddle", "pycuda", "tensorflow", "tensorrt", "warp", "xgboost")  # fmt: skip
BY_RMM = {"cupy", "numba.cuda"}  # cudf and cuml make them take their memory from RMM
WSL_FIXED = (
    615  # the first driver under which segments can be expanded on every card on WSL2 (pytorch issue 192330)
)


class Meter(Protocol):
    """What an allocator says of itself, in bytes."""

    def use(self) -> int: ...
    def peak(self) -> int: ...
    def refused(self) -> int:
        """How many times out of memory was met, caught or not."""
        ...


@dataclass
class Cap:
    """What of a lease its holder's allocators may take (MiB), and what they took.

    overhead_mib: the CUDA context's part of the lease; 0 on the virtual card. meter: None where nothing counts.
    """

    lease_mib: int
    cap_mib: int
    overhead_mib: int = 0
    meter: Meter | None = None
    scope: AbstractContextManager[Any] = field(
        default_factory=nullcontext
    )  # to be open while the step's body runs
    modules: Mapping[str, Any] = field(default_factory=dict)  # loaded ones that may take memory of the card
    _ended: bool = False

    def peak_mib(self) -> float:
        """The most that the allocators held, without the context: what `cap_mib` bounds. 0 where nothing counts."""
        return self.meter.peak() / MIB if self.meter else 0.0

    def use_mib(self) -> float:
        """What the process has of the card now, with the context: what `lease_mib` bounds."""
        return (self.meter.use() / MIB if self.meter else 0.0) + self.overhead_mib

    @property
    def out_of_memory(self) -> bool:
        """Whether it was met, overcome or not."""
        return self._ended or bool(self.meter and self.meter.refused())

    @property
    def met(self) -> bool:
        """Whether out of memory was met, or the peak came near the cap."""
        return self.out_of_memory or self.peak_mib() >= NEAR * self.cap_mib

    def outside(self) -> list[str]:
        """Loaded libraries that may take memory of the card past the cap."""
        ours = rmm.is_limited() and not {"cudf", "cuml"}.isdisjoint(self.modules)
        names = [name for name in ALLOCATORS if name in self.modules and not (ours and name in BY_RMM)]
        return [*names, *(["rmm"] if "rmm" in self.modules and not rmm.is_limited() else [])]

    def facts(self) -> dict[str, Any]:
        """For the step's result."""
        return {
            "cap_mib": self.cap_mib,
            "overhead_mib": self.overhead_mib,
            "peak_mib": self.peak_mib() if self.meter else None,
            "met_cap": self.met,
            "out_of_memory": self.out_of_memory,
            "outside": tuple(self.outside()),
        }

    @contextmanager
    def body(self) -> Iterator[None]:
        """Where the step's body runs. Out of memory is raised as OutOfMemory, with what the lease was and what to do."""
        try:
            with self.scope:
                yield
        except Exception as error:
            if not is_out_of_memory(error) or is_host_memory(error):
                raise
            self._ended = True
            raise OutOfMemory(self.explain(error)) from error

    def explain(self, error: BaseException) -> str:
        """What happened, and what to do about it."""
        part = f" after {self.overhead_mib} MiB for the CUDA context" if self.overhead_mib else ""
        came = f"; they came to {self.peak_mib():.0f} MiB at most" if self.meter else ""
        return (
            f"{' '.join(str(error).split())[:300]} - the step holds {self.lease_mib} MiB of the card, which leaves its tensors "
            f"{self.cap_mib} MiB{part}{came}. Lower `micro_batch` (the effective batch stays) or `batch`, or let the step ask for more (vram_mib)"
        )


# ------------------------------------------------------------------------------------------------ before torch is loaded


def prepare(
    card: Card, leased: bool, environ: MutableMapping[str, str] = os.environ, kernel: str = ""
) -> None:
    """Let this process see its card alone, none without a lease; to be called before anything imports torch.

    Asking whether CUDA is there then goes through NVML, which makes no context.
    """
    environ["CUDA_VISIBLE_DEVICES"] = card.uuid if leased and not card.virtual else ""
    environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    mine = environ.get("PYTORCH_ALLOC_CONF", "")
    if "expandable_segments" not in mine and expands(card, kernel or platform.release()):
        environ["PYTORCH_ALLOC_CONF"] = ",".join(filter(None, [mine, "expandable_segments:True"]))


def expands(card: Card, kernel: str) -> bool:
    """Whether the allocator may expand segments: less is lost to fragmentation. Older drivers fail at it on some cards on WSL2."""
    return (
        "microsoft" not in kernel.lower()
        or "GeForce" in card.name
        or int(card.driver.partition(".")[0] or 0) >= WSL_FIXED
    )


# ------------------------------------------------------------------------------------------------ the caps


def apply(
    lease: "Lease",
    card: Card,
    cuda: "ModuleType | Any" = None,
    used_mib: Callable[[], int] | None = None,
    warm: Callable[[], int] = cuda_context.warm_up,
) -> Cap:
    """Keep this process inside its lease; to be called once, before anything takes memory of the card.

    Raises DoesNotFit when the CUDA context leaves nothing of the lease, ServiceError when torch cannot use the card.
    cuda: torch.cuda; used_mib: what the whole card uses; warm: makes the context (cuda_context.measure).
    """
    if not card.virtual:
        return _on_cuda(lease.mib, card, cuda, used_mib or (lambda: gauge(card).used_mib(card, [])), warm)
    if not card.count:
        return Cap(lease.mib, lease.mib)
    from overnight.gpu.memory_counter import Counter

    counter = Counter(lease.mib * MIB)
    return Cap(lease.mib, lease.mib, meter=counter, scope=counter)


def _on_cuda(mib: int, card: Card, cuda: Any, used_mib: Callable[[], int], warm: Callable[[], int]) -> Cap:
    if cuda is None:
        import torch

        cuda = torch.cuda
    if not cuda.is_available():
        raise ServiceError(
            f"NVML sees {card.name} (driver {card.driver}), and torch cannot use it: run `overnight doctor`, or use --cpu"
        )

    def capped() -> int:
        hold(cuda, _rest(mib, card) * MIB)
        return warm()

    cuda_context.measure(card, used_mib, capped)
    cap_mib = _rest(mib, card)
    hold(cuda, cap_mib * MIB)
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    return Cap(mib, cap_mib, overhead(card), meter=OnCuda(cuda), modules=sys.modules)


def _rest(mib: int, card: Card) -> int:
    """What the context leaves of a lease."""
    rest = mib - overhead(card)
    if rest <= 0:
        raise DoesNotFit(
            f"a lease of {mib} MiB leaves nothing beside the CUDA context of {overhead(card)} MiB: ask for more (vram_mib)"
        )
    return rest


def hold(cuda: Any, bytes_: int) -> None:
    """Cap torch's allocator. The fraction is of what CUDA calls the card's memory, which is less than what NVML does."""
    cuda.set_per_process_memory_fraction(min(1.0, bytes_ / cuda.get_device_properties(0).total_memory), 0)


@dataclass
class OnCuda:
    """torch's allocator and, where it is used, RMM's."""

    cuda: Any  # torch.cuda

    def use(self) -> int:
        return int(self.cuda.memory_reserved(0)) + rmm.held()[0]

    def peak(self) -> int:
        return int(self.cuda.max_memory_reserved(0)) + rmm.held()[1]

    def refused(self) -> int:
        return int(self.cuda.memory_stats(0).get("num_ooms", 0))
