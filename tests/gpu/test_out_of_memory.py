"""What is out of memory, by class and by message.

And that a step which meets it outside a training ends with exit code 11.
"""

import pytest
import torch

from overnight.errors import DoesNotFit, OutOfMemory
from overnight.gpu.card import Card
from overnight.gpu.out_of_memory import is_host_memory, is_out_of_memory
from overnight.orchestration.child import _reason
from tests.support.steps_leased import OUT_OF_MEMORY, result, start

VIRTUAL = Card(uuid="virtual", name="virtual", total_mib=4096, budget_mib=4096, count=True)


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


CARD = [
    torch.OutOfMemoryError("x"),
    OutOfMemoryError("Out of memory allocating 512 bytes"),
    OutOfMemory("x"),
    MemoryError("std::bad_alloc: out_of_memory: RMM failure at: ..."),
    *map(RuntimeError, [
        "out of memory",
        "CUDA out of memory. Tried to allocate 2.00 GiB (made up)",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA driver error: out of memory",
        "CUDA error (/src/launch.h:123): out of memory",
        "Triton Error [CUDA]: out of memory",
        "MPS backend out of memory (MPS allocated: 1 GB)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "NCCL error: unhandled cuda error, Last error:\nCuda failure 2 'out of memory'",
        "std::bad_alloc: out_of_memory: CUDA error at: cuda_memory_resource.hpp:62: cudaErrorMemoryAllocation out of memory",
        "CUDA_ERROR_OUT_OF_MEMORY",
    ]),
]  # fmt: skip
HOST = [
    MemoryError(),
    MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)"),
    *map(RuntimeError, [
        "std::bad_alloc",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "unable to mmap 1024 bytes from file </model>: Cannot allocate memory (12)",
    ]),
]  # fmt: skip
OTHERS = [
    RuntimeError('table "out of memory jobs" not found'),
    RuntimeError("the queue ran out of memory cards"),
    RuntimeError("shapes do not match"),
    ValueError("CUDA out of memory"),
    OSError("CUDA out of memory"),
    DoesNotFit("out of memory"),
]


@pytest.mark.parametrize("error", CARD, ids=repr)
def test_the_card_is_out_of_memory(error):
    assert is_out_of_memory(error)
    assert not is_host_memory(error)


@pytest.mark.parametrize("error", HOST, ids=repr)
def test_the_host_is_out_of_memory(error):
    assert is_out_of_memory(error)
    assert is_host_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_an_error_that_only_mentions_it_is_another_error(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", [e for e in CARD + HOST if not isinstance(e, OutOfMemory)], ids=repr)
def test_without_a_lease_the_child_ends_with_the_same_code(error):
    assert _reason(error).code == OutOfMemory.child_code
    assert _reason(RuntimeError("shapes do not match")).code == 1


@pytest.mark.parametrize("number", range(len(OUT_OF_MEMORY)))
def test_a_body_that_meets_it_outside_a_training_ends_with_code_11(checkout, tmp_path, monkeypatch, number):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "cards"))
    (tmp_path / "cards" / "virtual").mkdir(parents=True)
    assert start(tmp_path / "step", VIRTUAL, "refused", 100, mib=number).wait(100) == 11
    found = result(tmp_path / "step")
    assert OUT_OF_MEMORY[number] in found.error
    assert found.out_of_memory
    assert "holds 100 MiB of the card" in found.error
