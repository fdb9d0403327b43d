"""The driver's C library, played from a recording, behind the real pynvml module.

A recording is what `overnight doctor --record` writes: {"wsl2", "init", "driver", "cards": [...]}. In place of any
value stands {"error": number} where the driver gave one; what it lacks is a function that the driver does not have.
"""

import json
from pathlib import Path

import pynvml

FOLDER = Path(__file__).resolve().parents[1] / "no_card" / "nvml"
UNKNOWN_BYTES = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
ABSENT = {"error": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}


def recording(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


class CLibrary:
    """libnvidia-ml.so as pynvml calls it."""

    def __init__(self, found):
        self.found = found

    def __getattr__(self, name):
        if name not in FUNCTIONS:
            raise AttributeError(name)
        return lambda *arguments: FUNCTIONS[name](self, *arguments)

    def card(self, handle):
        return self.found["cards"][(handle.value or 1) - 1]


def put_number(found, *rest):
    rest[-1]._obj.value = found
    return pynvml.NVML_SUCCESS


def put_pair(found, first, second):
    first._obj.value, second._obj.value = found
    return pynvml.NVML_SUCCESS


def put_text(found, buffer, _size):
    buffer.value = found.encode()
    return pynvml.NVML_SUCCESS


def put_fields(found, out):
    for field, amount in found.items():
        setattr(out._obj, field, amount)
    return pynvml.NVML_SUCCESS


def put_processes(found, size, array):
    size._obj.value = len(found)
    if array is None and found:
        return pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    for place, (pid, used) in zip(array or (), found, strict=False):
        place.pid = pid
        place.usedGpuMemory = UNKNOWN_BYTES if used is None else used
    return pynvml.NVML_SUCCESS


def put_nothing(_found, *_rest):
    return pynvml.NVML_SUCCESS


def given(found, put, *rest):
    return found["error"] if isinstance(found, dict) and "error" in found else put(found, *rest)


def of_driver(name, put):
    return lambda library, *rest: given(library.found[name], put, *rest)


def of_card(name, put):
    """A function whose first argument is a card's handle."""
    return lambda library, handle, *rest: given(library.card(handle).get(name, ABSENT), put, *rest)


def handle_of(number):
    """A function that gives the handle of the card with this number, counted from 0."""

    def call(library, given, out):
        index = number(library, given.value)
        out._obj.value = index + 1
        return library.found["cards"][index].get("error", pynvml.NVML_SUCCESS)

    return call


def by_uuid(library, uuid):
    return [card.get("uuid", "").encode() for card in library.found["cards"]].index(uuid)


FUNCTIONS = {
    "nvmlInitWithFlags": of_driver("init", put_nothing),
    "nvmlShutdown": lambda _library: pynvml.NVML_SUCCESS,
    "nvmlSystemGetDriverVersion": of_driver("driver", put_text),
    "nvmlDeviceGetCount_v2": lambda library, out: put_number(len(library.found["cards"]), out),
    "nvmlDeviceGetHandleByIndex_v2": handle_of(lambda _library, index: index),
    "nvmlDeviceGetHandleByUUID": handle_of(by_uuid),
    "nvmlDeviceGetUUID": of_card("uuid", put_text),
    "nvmlDeviceGetName": of_card("name", put_text),
    "nvmlDeviceGetMemoryInfo_v2": of_card("memory", put_fields),
    "nvmlDeviceGetMemoryInfo": of_card("memory_v1", put_fields),
    "nvmlDeviceGetCudaComputeCapability": of_card("capability", put_pair),
    "nvmlDeviceGetNumGpuCores": of_card("cores", put_number),
    "nvmlDeviceGetMaxClockInfo": of_card("clock", put_number),
    "nvmlDeviceGetUtilizationRates": of_card("utilization", put_fields),
    "nvmlDeviceGetTotalEnergyConsumption": of_card("energy_mj", put_number),
    "nvmlDeviceGetPowerUsage": of_card("power_mw", put_number),
    "nvmlDeviceGetComputeRunningProcesses_v3": of_card("compute", put_processes),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": of_card("graphics", put_processes),
}


def play(monkeypatch, found):
    """Put the recording behind pynvml for one test; returns the library, whose recording may change."""
    library = CLibrary(recording(found) if isinstance(found, str) else found)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    release = "6.6.87.2-microsoft-standard-WSL2" if library.found.get("wsl2") else "6.8.0-generic"
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library
