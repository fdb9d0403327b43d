"""The driver's C library, played from a recording, behind the real pynvml module.

A recording is what `overnight doctor --record` writes: {"wsl2", "init", "driver", "cards": [...]}. In place of any
value stands the number of an NVML error where the driver gave one.
"""

import ctypes
import json
from contextlib import suppress
from pathlib import Path

import pynvml

FOLDER = Path(__file__).resolve().parents[1] / "no_card" / "nvml"
UNKNOWN_BYTES = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value


def recording(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


class CLibrary:
    """libnvidia-ml.so as pynvml calls it; a function that the recording lacks is missing, as in an old driver."""

    def __init__(self, found):
        self.found = found

    def __getattr__(self, name):
        function = FUNCTIONS.get(name)
        missing = {
            "nvmlDeviceGetMemoryInfo_v2": any("memory" not in card for card in self.found.get("cards", []))
        }
        if function is None or missing.get(name):
            raise AttributeError(name)
        return lambda *arguments: function(self, *arguments)

    def card(self, handle):
        return self.found["cards"][(handle.value or 1) - 1]


def value(call):
    """The code of an NVML error where the recording has one, else what `call` did with the value."""

    def wrapped(library, *arguments):
        return call(library, *arguments) or pynvml.NVML_SUCCESS

    return wrapped


def target(pointer):
    return pointer._obj


@value
def init(library, _flags):
    return library.found.get("init", 0)


@value
def count(library, out):
    target(out).value = len(library.found["cards"])


@value
def by_index(library, index, out):
    target(out).value = index.value + 1
    return library.found["cards"][index.value].get("lost", 0)


@value
def by_uuid(library, uuid, out):
    names = [card["uuid"].encode() for card in library.found["cards"]]
    target(out).value = names.index(uuid.value) + 1


def text(name):
    @value
    def call(library, handle, buffer, _size):
        found = library.card(handle)[name]
        if isinstance(found, int):
            return found
        buffer.value = found.encode()
        return 0

    return call


@value
def driver(library, buffer, _size):
    buffer.value = library.found["driver"].encode()


def amounts(name):
    @value
    def call(library, handle, out):
        found = library.card(handle)[name]
        if isinstance(found, int):
            return found
        for field, amount in found.items():
            setattr(target(out), field, amount)
        return 0

    return call


@value
def capability(library, handle, major, minor):
    found = library.card(handle)["capability"]
    if isinstance(found, int):
        return found
    target(major).value, target(minor).value = found
    return 0


def number(name):
    @value
    def call(library, handle, *rest):
        found = library.card(handle)[name]
        if found is None:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        target(rest[-1]).value = found
        return 0

    return call


def processes(name):
    @value
    def call(library, handle, size, array):
        found = library.card(handle)[name]
        if isinstance(found, int):
            return found
        if array is None:
            target(size).value = len(found)
            return pynvml.NVML_ERROR_INSUFFICIENT_SIZE if found else 0
        target(size).value = len(found)
        for place, (pid, used) in zip(array, found, strict=False):
            place.pid = pid
            place.usedGpuMemory = UNKNOWN_BYTES if used is None else used
        return 0

    return call


class ErrorString:
    """The text of an error that pynvml does not know, as a bound C function."""

    restype = ctypes.c_char_p

    def __call__(self, _library, code):
        return f"error {code}".encode()


FUNCTIONS = {
    "nvmlInitWithFlags": init,
    "nvmlShutdown": value(lambda _library: 0),
    "nvmlSystemGetDriverVersion": driver,
    "nvmlDeviceGetCount_v2": count,
    "nvmlDeviceGetHandleByIndex_v2": by_index,
    "nvmlDeviceGetHandleByUUID": by_uuid,
    "nvmlDeviceGetUUID": text("uuid"),
    "nvmlDeviceGetName": text("name"),
    "nvmlDeviceGetMemoryInfo_v2": amounts("memory"),
    "nvmlDeviceGetMemoryInfo": amounts("memory_v1"),
    "nvmlDeviceGetCudaComputeCapability": capability,
    "nvmlDeviceGetNumGpuCores": number("cores"),
    "nvmlDeviceGetMaxClockInfo": number("clock"),
    "nvmlDeviceGetUtilizationRates": amounts("utilization"),
    "nvmlDeviceGetComputeRunningProcesses_v3": processes("compute"),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": processes("graphics"),
}


def play(monkeypatch, found):
    """Put the recording behind pynvml for one test; returns the library, whose recording may change."""
    library = CLibrary(recording(found) if isinstance(found, str) else found)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    release = "6.6.87.2-microsoft-standard-WSL2" if library.found.get("wsl2") else "6.8.0-generic"
    monkeypatch.setattr("platform.release", lambda: release)
    with suppress(AttributeError):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library
