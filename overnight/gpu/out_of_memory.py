"""Which errors mean that memory ran out; it imports no torch."""

import platform
import re
import sys

from overnight.errors import OutOfMemory

# of torch, Triton, cuBLAS, cuDNN, NCCL, CuPy, RMM and C++; a mere mention of memory does not match
MESSAGES = re.compile(
    r"\b(cuda|hip|mps|xpu|nvrtc|nccl|c10|gpu)\b.{0,120}out of memory"
    r"|out of memory on the virtual card|^out of memory\b|OUT_OF_MEMORY"
    r"|ALLOC_FAILED|ALLOCATION_FAILED|MemoryAllocation|NOT_ENOUGH_MEMORY|bad_alloc"
    r"|Cannot allocate memory \(12\)|DefaultCPUAllocator: (can't allocate|not enough) memory",
    re.IGNORECASE,
)
# with other causes, too (a convolution in bf16 on an old card): memory where the card is short of it
AMBIGUOUS = re.compile(
    r"unable to find an engine to execute|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_NOT_INITIALIZED"
    r"|CUSPARSE_STATUS_INSUFFICIENT_RESOURCES"
)
# of WSL2's driver when it can no longer page; the context is of no use after that (microsoft/WSL issue 41176)
PAGING = re.compile(r"CUDA (driver )?error: (device not ready|unknown error)", re.IGNORECASE)
PAGING_FAILED = (
    "with WSL2 that is mostly memory which Windows' driver could not page: close programs that use the card, "
    "or keep more for them with OVERNIGHT_RESERVE_MIB"
)
NEAR = 0.95  # of the cap: a peak above it may have been held down by the cap
HOST_MESSAGES = re.compile(r"DefaultCPUAllocator|Cannot allocate memory \(12\)|bad_alloc$", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the card's or the host's."""
    if isinstance(error, OutOfMemory | MemoryError) or _has_own_class(error):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = _text(error)
    return MESSAGES.search(text) is not None or (AMBIGUOUS.search(text) is not None and _card_is_short())


def is_paging(error: BaseException) -> bool:
    """Whether an error says that WSL2's driver failed to page: only a fresh process can go on, with less."""
    return isinstance(error, RuntimeError) and PAGING.search(_text(error)) is not None and on_wsl()


def on_wsl(kernel: str = "") -> bool:
    """Whether this is WSL2, where Windows' driver pages memory of a full card to the host."""
    return "microsoft" in (kernel or platform.release()).lower()


def _card_is_short() -> bool:
    """Whether torch's allocator has been refused memory in this process, or is near its cap."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return False
    if cuda.memory_stats(0).get("num_ooms", 0):
        return True
    cap = cuda.get_per_process_memory_fraction(0) * cuda.get_device_properties(0).total_memory
    return bool(cuda.memory_reserved(0) >= NEAR * cap)


def is_host_memory(error: BaseException) -> bool:
    """Whether it was the host's memory: a larger lease would not help."""
    if isinstance(error, MemoryError):
        return not _has_own_class(error) and not re.search("rmm|cuda", _text(error), re.IGNORECASE)
    return HOST_MESSAGES.search(_text(error)) is not None


def _has_own_class(error: BaseException) -> bool:
    """Torch and CuPy each call theirs OutOfMemoryError."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())
