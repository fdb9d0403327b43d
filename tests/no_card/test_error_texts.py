"""What an error means by its text, and that the installed libraries still have these texts."""

import importlib.util
import mmap
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from overnight.errors import OutOfMemory
from overnight.gpu import memory_limit, out_of_memory
from overnight.gpu.out_of_memory import is_out_of_memory, is_paging
from overnight.orchestration.child import _reason
from overnight.training import acceleration

CUDA, C10, LINALG, CPU = "libtorch_cuda.so", "libc10_cuda.so", "libtorch_cuda_linalg.so", "libtorch_cpu.so"
OTHER = ""  # a library that is not installed here: cuDNN, cuSPARSE and the driver name their own codes
MEMORY = [  # (text, the part that the library holds, the library): always memory
    ("CUDA out of memory. Tried to allocate 2.00 GiB.", "CUDA out of memory. Tried to allocate ", C10),
    ("CUDA out of memory. Allocation was preemptively rejected because it would exceed", "CUDA out of memory. Allocation was preemptively rejected", C10),
    ("\nCUDA ran out of memory outside PyTorch's allocator.", "CUDA ran out of memory outside PyTorch's", CUDA),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUBLAS_STATUS_ALLOC_FAILED", CUDA),
    ("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED", CUDA),
    ("CUDA error: out of memory", "CUDA error: ", CUDA),
    ("CUDA driver error: out of memory", "CUDA driver error: ", C10),
    ("CUDA runtime error: out of memory (2)", "out of memory", LINALG),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "cuDNN error: ", CUDA),
    ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.", "DefaultCPUAllocator: can't allocate memory", "libc10.so"),
]  # fmt: skip
AMBIGUOUS = [  # memory only where the card is short of it
    (
        "GET was unable to find an engine to execute this computation",
        "GET was unable to find an engine to execute this computation",
        CUDA,
    ),
    (
        "FIND was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        CUDA,
    ),
    ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "CUBLAS_STATUS_NOT_INITIALIZED", CUDA),
    ("cusolver error: CUSOLVER_STATUS_NOT_INITIALIZED", "CUSOLVER_STATUS_NOT_INITIALIZED", CUDA),
    ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "cuDNN error: ", CUDA),
    ("CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES when calling `cusparseSpMM`", "cusparseGetErrorString", CUDA),
]  # fmt: skip
PAGING = [("CUDA driver error: device not ready", "CUDA driver error: ", C10), ("CUDA driver error: unknown error", "CUDA driver error: unknown error", C10)]  # fmt: skip
TEXTS = MEMORY + AMBIGUOUS + PAGING


@pytest.mark.parametrize("library", [CUDA, C10, LINALG, "libc10.so"])
def test_the_installed_library_still_has_the_texts(library):
    path = Path(torch.__file__).parent / "lib" / library
    if not path.is_file():
        pytest.skip(f"this torch has no {library}: it was built without CUDA")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert [part for _, part, held in TEXTS if held == library and content.find(part.encode()) < 0] == []


@pytest.fixture
def card(monkeypatch):
    """A torch.cuda of 1000 bytes, capped at half of them; `reserved` and `ooms` may be set."""
    found = SimpleNamespace(reserved=0, ooms=0)
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        memory_stats=lambda _index: {"num_ooms": found.ooms},
        memory_reserved=lambda _index: found.reserved,
        get_per_process_memory_fraction=lambda _index: 0.5,
        get_device_properties=lambda _index: SimpleNamespace(total_memory=1000),
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    return found


@pytest.mark.parametrize("text", [text for text, _, _ in MEMORY])
@pytest.mark.parametrize("kind", [RuntimeError, getattr(torch, "AcceleratorError", RuntimeError)])
def test_memory_is_recognised_by_its_text(text, kind):
    assert is_out_of_memory(kind(text))
    assert _reason(kind(text)).code == OutOfMemory.child_code


@pytest.mark.parametrize("text", [text for text, _, _ in AMBIGUOUS])
@pytest.mark.parametrize(("reserved", "ooms", "memory"), [(470, 0, False), (475, 0, True), (10, 1, True)])
def test_a_text_with_several_causes_is_memory_where_the_card_is_short_of_it(
    card, text, reserved, ooms, memory
):
    card.reserved, card.ooms = reserved, ooms
    assert is_out_of_memory(RuntimeError(text)) is memory
    assert _reason(RuntimeError(text)).code == (OutOfMemory.child_code if memory else 1)


def test_without_torch_such_a_text_is_no_memory(monkeypatch):
    monkeypatch.setattr(out_of_memory, "sys", SimpleNamespace(modules={}))
    assert not is_out_of_memory(RuntimeError(AMBIGUOUS[0][0]))


@pytest.mark.parametrize("text", [text for text, _, _ in MEMORY if "CPU" not in text])
def test_the_limit_of_a_step_recognises_the_same(text):
    limit = memory_limit.MemoryLimit(2000, 1500, 500)
    with pytest.raises(OutOfMemory, match="holds 2000 MiB of the card"), limit.body():
        raise RuntimeError(text)
    assert limit.out_of_memory


@pytest.mark.parametrize("text", [text for text, _, _ in PAGING])
@pytest.mark.parametrize(("release", "found"), [("6.6.87.2-microsoft-standard-WSL2", True), ("6.8.0", False)])
def test_paging_that_fails_is_known_on_wsl2_alone(monkeypatch, text, release, found):
    monkeypatch.setattr("platform.release", lambda: release)
    assert is_paging(RuntimeError(text)) is found
    assert not is_out_of_memory(RuntimeError(text))
    ended = _reason(RuntimeError(text))  # outside a training, which would go on with less
    assert ended.code == (OutOfMemory.child_code if found else 1)
    assert ("OVERNIGHT_RESERVE_MIB" in ended.error) == found
    assert not ended.out_of_memory  # its lease was not too small


def test_errors_of_compilers_are_caught_by_their_own_classes(monkeypatch):
    """The files of the installed libraries have these classes; importing Triton takes seconds."""
    for module, name in acceleration.COMPILERS:
        root, *inner = module.split(".")
        file = Path(importlib.util.find_spec(root).origin).parent.joinpath(*inner).with_suffix(".py")
        assert f"class {name}(Exception)" in file.read_text()
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: type(name, (Exception,), {})}))
        kind = getattr(sys.modules[module], name)
        assert issubclass(kind, acceleration.failures())
        assert not issubclass(kind, acceleration.FAILURES)
    assert issubclass(subprocess.CalledProcessError, acceleration.failures())
    assert not issubclass(KeyboardInterrupt, acceleration.failures())
