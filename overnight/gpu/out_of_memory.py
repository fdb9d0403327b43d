"""Which errors mean that memory ran out; it imports no torch."""

import re

from overnight.errors import OutOfMemory

# of torch, Triton, cuBLAS, cuDNN, NCCL, CuPy, RMM and C++; a mere mention of memory does not match
MESSAGES = re.compile(
    r"\b(cuda|hip|mps|xpu|nvrtc|nccl|c10|gpu)\b.{0,120}out of memory"
    r"|out of memory on the virtual card|^out of memory\b|OUT_OF_MEMORY"
    r"|ALLOC_FAILED|ALLOCATION_FAILED|MemoryAllocation|NOT_ENOUGH_MEMORY|bad_alloc"
    r"|Cannot allocate memory \(12\)|DefaultCPUAllocator: (can't allocate|not enough) memory",
    re.IGNORECASE,
)
HOST_MESSAGES = re.compile(r"DefaultCPUAllocator|Cannot allocate memory \(12\)|bad_alloc$", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the card's or the host's."""
    if isinstance(error, OutOfMemory | MemoryError) or _has_own_class(error):
        return True
    return isinstance(error, RuntimeError) and MESSAGES.search(_text(error)) is not None


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
