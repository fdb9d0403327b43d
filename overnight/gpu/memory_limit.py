"""Keep a process inside its lease: an allocator limit on CUDA, a byte counter on the virtual card.

A lease covers the CUDA context (`overhead_mib`) and what allocators take (`cap_mib`). torch's allocator and,
by rmm.py, RMM's are capped; `MemoryLimit.uncapped` names loaded libraries with others. The virtual card
counts bytes only when asked to (`card.count`).
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from overnight.errors import BadInput, DoesNotFit, OutOfMemory, ServiceError
from overnight.gpu import cuda_context, rmm
from overnight.gpu.card import Card
from overnight.gpu.cuda_context import can_expand, overhead
from overnight.gpu.device_usage import Device, device_of, holders, program_mib, reported_mib
from overnight.gpu.out_of_memory import NEAR, is_host_memory, is_out_of_memory
from overnight.processes import STEP_MARK

MIB = 1 << 20
ALLOCATORS = [
    "catboost",
    "ctranslate2",
    "cupy",
    "jax",
    "llama_cpp",
    "numba.cuda",
    "onnxruntime",
    "paddle",
    "pycuda",
    "tensorflow",
    "tensorrt",
    "warp",
    "xgboost",
]
BY_RMM = {"cupy", "numba.cuda"}  # cudf and cuml make them take their memory from RMM
SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch reads both; the second one wins


class Meter(Protocol):
    """The figures of an allocator, in bytes."""

    def use(self) -> int: ...
    def peak(self) -> int: ...
    def refused(self) -> int:
        """How often it ran out of memory, caught or not."""


@dataclass
class MemoryLimit:
    """The part of a lease that its holder's allocators may take (MiB), and what they took.

    overhead_mib: the CUDA context's part. meter: None where nothing counts. scope: open while the step's body
    runs. modules: loaded ones.
    """

    lease_mib: int
    cap_mib: int
    overhead_mib: int = 0
    meter: Meter | None = None
    scope: AbstractContextManager[Any] = field(default_factory=nullcontext)
    modules: Mapping[str, Any] = field(default_factory=dict)
    _body_ran_out: bool = False

    def peak_mib(self) -> float:
        """Of the allocators without the context, as bounded by `cap_mib`. 0 where nothing counts."""
        return self.meter.peak() / MIB if self.meter else 0.0

    def use_mib(self) -> float:
        """Now, with the context, as bounded by `lease_mib`."""
        return (self.meter.use() / MIB if self.meter else 0.0) + self.overhead_mib

    @property
    def out_of_memory(self) -> bool:
        return self._body_ran_out or bool(self.meter and self.meter.refused())

    @property
    def hit_limit(self) -> bool:
        return self.out_of_memory or self.peak_mib() >= NEAR * self.cap_mib

    def uncapped(self) -> list[str]:
        """Loaded libraries that may take memory of the card past the cap."""
        limited = rmm.limited() is not None
        by_rmm = BY_RMM if limited and not {"cudf", "cuml"}.isdisjoint(self.modules) else set()
        names = [name for name in ALLOCATORS if name in self.modules and name not in by_rmm]
        return [*names, "rmm"] if "rmm" in self.modules and not limited else names

    def summary(self) -> dict[str, Any]:
        return {
            "cap_mib": self.cap_mib,
            "overhead_mib": self.overhead_mib,
            "peak_mib": self.peak_mib() if self.meter else None,
            "hit_limit": self.hit_limit,
            "out_of_memory": self.out_of_memory,
            "uncapped": tuple(self.uncapped()),
        }

    @contextmanager
    def body(self) -> Iterator[None]:
        """Run the step's body in here. Raises OutOfMemory with the lease and advice."""
        try:
            with self.scope:
                yield
        except Exception as error:
            if not is_out_of_memory(error) or is_host_memory(error):
                raise
            self._body_ran_out = True
            raise OutOfMemory(self.explain(error)) from error

    def overrun(self) -> str:
        """That it took more than its lease; empty when it did not."""
        return ""

    def explain(self, error: BaseException) -> str:
        context = f" after {self.overhead_mib} MiB for the CUDA context" if self.overhead_mib else ""
        peak = f"; they came to {self.peak_mib():.0f} MiB at most" if self.meter else ""
        return (
            f"{' '.join(str(error).split())[:300]} - the step holds {self.lease_mib} MiB of the card, which "
            f"leaves its tensors {self.cap_mib} MiB{context}{peak}. Lower `micro_batch` (the effective "
            "batch stays) or `batch`, or let the step ask for more (vram_mib)"
        )


class ProgramUse(MemoryLimit):
    """What a program and all that it starts take of the card, contexts included; nothing limits them.

    By the driver's list of processes; where it names none of them, by what the card holds more than before.
    """

    def __init__(self, lease_mib: int, card: Card, device: Device | None = None) -> None:
        super().__init__(lease_mib, card.budget_mib - overhead(card), overhead(card))
        self._card = card
        self._device = device or device_of(card)
        self._mark = os.environ.get(STEP_MARK, "")
        self._most = 0
        self._before = self._last = self._unreported()

    def use_mib(self) -> float:
        now = program_mib(self._card, self._mark, self._device)
        if now is None:
            before, self._last = self._last, self._unreported()
            now = max(0, min(before, self._last) - self._before)  # a neighbour's report is up to 0.3 s old
        self._most = max(self._most, now)
        return now

    def peak_mib(self) -> float:
        return max(0, self._most - self.overhead_mib)

    def summary(self) -> dict[str, Any]:
        return {
            "cap_mib": self.cap_mib,
            "overhead_mib": min(self.overhead_mib, self._most),
            "peak_mib": self.peak_mib(),
            "device_peak_mib": self._most,
            "uncapped": ("the program",),
        }

    def overrun(self) -> str:
        if self._most <= self.lease_mib:
            return ""
        return (
            f"took {self._most:,} MiB of the card and had asked for {self.lease_mib:,}: nothing caps a "
            "program, so others may have run out of memory; its next run asks for what it took"
        )

    def _unreported(self) -> int:
        held = [other for other in holders(self._card) if other.pid != os.getpid()]
        return self._device.used_mib(self._card, held) - sum(map(reported_mib, held))


def prepare(
    card: Card, leased: bool, environ: MutableMapping[str, str] = os.environ, kernel: str = ""
) -> None:
    """Before torch is imported: this process sees its card alone, or none without a lease.

    Asking whether CUDA is there then goes through NVML, which makes no context. Raises BadInput for settings
    of another allocator, which no lease can bound.
    """
    environ["CUDA_VISIBLE_DEVICES"] = card.uuid if leased and not card.virtual else ""
    environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    options = allocator_options(environ)
    if can_expand(card, kernel):
        options.setdefault("expandable_segments", "True")
    for variable in SETTINGS:
        environ.pop(variable, None)
    if options:
        environ[SETTINGS[0]] = ",".join(f"{name}:{value}" for name, value in options.items())


def expands(card: Card) -> bool:
    """Whether predictions may assume expandable segments: as the user says, else where they work."""
    asked = allocator_options(os.environ).get("expandable_segments", str(can_expand(card)))
    return card.virtual or asked == "True"


def allocator_options(environ: Mapping[str, str]) -> dict[str, str]:
    """What both variables say of torch's allocator, as torch reads them. Raises BadInput, see `prepare`."""
    found = dict[str, str]()
    for variable in SETTINGS:
        for option in re.findall(r"(?:\[[^]]*]|[^,[])+", environ.get(variable, "")):
            name, _, value = option.partition(":")
            found[name.strip()] = value.strip()
    if found.get("backend", "native") != "native":
        raise BadInput(f"{' or '.join(SETTINGS)}: backend:{found['backend']} cannot be limited; leave it out")
    if environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1":
        raise BadInput("PYTORCH_NO_CUDA_MEMORY_CACHING: without its cache torch cannot be limited; unset it")
    return found


def apply(
    lease_mib: int,
    card: Card,
    cuda: "ModuleType | Any" = None,
    used_mib: Callable[[], int] | None = None,
    warm: Callable[[], int] = cuda_context.warm_up,
) -> MemoryLimit:
    """Limit this process to its lease, before anything takes memory of the card.

    cuda: torch.cuda; used_mib, warm: of cuda_context.measure. Raises DoesNotFit when the CUDA context leaves
    nothing of the lease, ServiceError when torch cannot use the card.
    """
    if not card.virtual:
        used_mib = used_mib or (lambda: device_of(card).used_mib(card, []))
        return _limit_cuda(lease_mib, card, cuda, used_mib, warm)
    if not card.count:
        return MemoryLimit(lease_mib, lease_mib)
    from overnight.gpu.memory_counter import Counter

    counter = Counter(lease_mib * MIB)
    return MemoryLimit(lease_mib, lease_mib, meter=counter, scope=counter)


def _limit_cuda(
    lease_mib: int, card: Card, cuda: Any, used_mib: Callable[[], int], warm: Callable[[], int]
) -> MemoryLimit:
    if cuda is None:
        import torch

        cuda = torch.cuda
    if not cuda.is_available():
        raise ServiceError(
            f"NVML sees {card.name} (driver {card.driver}), and torch cannot use it: "
            "run `overnight doctor`, or use --cpu"
        )

    def warm_capped() -> int:
        set_limit(cuda, _cap_mib(lease_mib, card) * MIB)
        return warm()

    cuda_context.try_expanding(card, _cap_mib(lease_mib, card))
    cuda_context.measure(card, used_mib, warm_capped)
    cap_mib = _cap_mib(lease_mib, card)
    set_limit(cuda, cap_mib * MIB)
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    return MemoryLimit(lease_mib, cap_mib, overhead(card), meter=CudaMeter(cuda), modules=sys.modules)


def _cap_mib(lease_mib: int, card: Card) -> int:
    context_mib = overhead(card)
    if lease_mib <= context_mib:
        raise DoesNotFit(
            f"a lease of {lease_mib} MiB leaves nothing beside the CUDA context of {context_mib} MiB: "
            "ask for more (vram_mib)"
        )
    return lease_mib - context_mib


def set_limit(cuda: Any, limit: int) -> None:
    """Cap torch's allocator (bytes). The fraction is of CUDA's total, which is less than NVML's."""
    cuda.set_per_process_memory_fraction(min(1.0, limit / cuda.get_device_properties(0).total_memory), 0)


@dataclass
class CudaMeter:
    """Of torch's allocator and, where it is used, RMM's. cuda: torch.cuda."""

    cuda: Any

    def use(self) -> int:
        return int(self.cuda.memory_reserved(0)) + rmm.held()[0]

    def peak(self) -> int:
        return int(self.cuda.max_memory_reserved(0)) + rmm.held()[1]

    def refused(self) -> int:
        return int(self.cuda.memory_stats(0).get("num_ooms", 0))
