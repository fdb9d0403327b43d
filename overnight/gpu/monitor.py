"""What a step uses while it runs, under the names that MLflow's page of system metrics knows."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from overnight.gpu.device import Card
from overnight.run import Run

EVERY_S = 5.0


@contextmanager
def watch(run: Run, card: Card) -> Iterator[None]:
    """Log system/* metrics every 5 s while the block runs, and once at its start."""
    done = threading.Event()
    thread = threading.Thread(target=_sample, args=(run, card, done), daemon=True, name="monitor")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _sample(run: Run, card: Card, done: threading.Event) -> None:
    import psutil

    process, step = psutil.Process(), 0
    process.cpu_percent()
    psutil.cpu_percent()
    while not done.wait(EVERY_S if step else 0.5):
        memory = psutil.virtual_memory()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_cpu_percentage": process.cpu_percent(),
            "system/process_memory_megabytes": process.memory_info().rss / 1e6,
        }
        run.metrics({**values, **({} if card.virtual else _card(card))}, step)
        step += 1


def _card(card: Card) -> dict[str, float]:
    import pynvml as nvml

    with suppress(nvml.NVMLError):
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(card.uuid)
        memory, load = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetUtilizationRates(handle)
        return {
            f"system/gpu_{card.index}_memory_usage_megabytes": memory.used / 1e6,
            f"system/gpu_{card.index}_memory_usage_percentage": 100 * memory.used / memory.total,
            f"system/gpu_{card.index}_utilization_percentage": float(load.gpu),
        }
    return {}


def peaks() -> dict[str, Any]:
    """The most memory this process ever held: its own on the host, and what torch reserved on the card (MiB)."""
    import sys

    found: dict[str, Any] = {"host_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "peak_mib": None}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["peak_mib"] = torch.cuda.max_memory_reserved() / 2**20
    return found
