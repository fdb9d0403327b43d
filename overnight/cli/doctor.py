"""`overnight doctor`: what this machine has, and what stands in the way."""

import platform
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from overnight.cli.service import night_problems
from overnight.errors import OvernightError, ServiceError
from overnight.gpu import cuda_context
from overnight.gpu.card import VIRTUAL_MIB, Card, find, torch_cuda
from overnight.gpu.device_usage import (
    device_of,
    holders,
    other_processes,
    other_processes_mib,
    over_reserve_mib,
)
from overnight.gpu.ledger.filesystem import check_ledger, check_slots, file_system_type
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.messages import describe_other_processes
from overnight.gpu.out_of_memory import on_wsl
from overnight.paths import root

FREE_GIB = 5
Row = dict[str, str]
RAPIDS = {"cudf_polars": "ETL", "cuml": "linear models of large tables"}
QUESTIONS = {  # about a card: NVML's function, and what of its answer
    "name": "Name",
    "capability": "CudaComputeCapability",
    "cores": "NumGpuCores",
    "utilization": "UtilizationRates",
    "energy_mj": "TotalEnergyConsumption",
    "power_mw": "PowerUsage",
    "compute": "ComputeRunningProcesses",
    "graphics": "GraphicsRunningProcesses",
    "memory_v1": "MemoryInfo",
}


def checks() -> list[Row]:
    card = Card(uuid="virtual", name="virtual", total_mib=VIRTUAL_MIB, budget_mib=VIRTUAL_MIB)
    try:
        card = find()
        found = _row("card", True, f"{card}; torch is built for CUDA {torch_cuda()}")
    except ServiceError as error:
        found = _row("card", False, str(error))
    return [
        _row("python", (3, 11) <= sys.version_info < (3, 14), f"{platform.python_version()} in {sys.prefix}"),
        found,
        _ledger(card),
        _others(card),
        _overhead(card),
        *_libraries(card),
        _disk(),
        *_services(),
    ]


def _row(check: str, ok: bool, found: str) -> Row:
    return {"check": check, "": "ok" if ok else "PROBLEM", "found": found}


def _ledger(card: Card) -> Row:
    kind = file_system_type(card.folder) or "unknown"
    try:
        check_ledger(card)
        check_slots()
        held = Ledger(card.folder, card.budget_mib).held_mib()
    except OvernightError as error:
        return _row("ledger", False, str(error))
    return _row("ledger", True, f"{card.folder} ({kind}): {held} of {card.budget_mib} MiB held")


def _others(card: Card) -> Row:
    held = holders(card)
    used_mib = other_processes_mib(card, held)
    problem = device_of(card).problem
    if problem:
        return _row("other programs", False, f"the card does not say what it uses: {problem}")
    if not used_mib:
        return _row("other programs", True, "use nothing of the card")
    names = ", ".join(describe_other_processes(other_processes(card, held), used_mib))
    overuse_mib = over_reserve_mib(card, used_mib)
    beyond = f"; {overuse_mib:,} MiB of it of the budget" if overuse_mib and not card.virtual else ""
    return _row("other programs", True, names + beyond)


def _overhead(card: Card) -> Row:
    if card.virtual:
        return _row("CUDA context", True, "none on the virtual card")
    known = cuda_context.measured(card)
    source = "measured on this machine" if known else "until the first steps have measured it"
    return _row("CUDA context", True, f"takes {cuda_context.overhead(card)} MiB of every lease, {source}")


def _libraries(card: Card) -> list[Row]:
    """What runs on the card besides torch, and what torch.compile needs."""
    said = []
    for package, what in RAPIDS.items():
        why = "there is no card" if card.virtual else f"{package} is not installed"
        usable = not card.virtual and find_spec(package)
        said.append(f"{what}: on the {'card' if usable else f'processor, {why}'}")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = [] if shutil.which("gcc") or shutil.which("cc") else ["a C compiler"]
    missing += [] if header.is_file() else [str(header)]
    why = "torch.compile can be used" if not missing else f"torch.compile needs {' and '.join(missing)}"
    return [_row("RAPIDS", True, "; ".join(said)), _row("compiler", card.virtual or not missing, why)]


def recording() -> dict[str, Any]:
    """What NVML says of every card, for tests/no_card to play; {"error": code} where it refuses.

    Without what names this machine: UUIDs are made up, of processes only ids and amounts are kept.
    """
    import pynvml as nvml

    def ask(name: str, *arguments: Any, **options: Any) -> Any:
        try:
            found = getattr(nvml, f"nvml{name}")(*arguments, **options)
        except nvml.NVMLError as error:
            return {"error": error.value}
        if isinstance(found, list):
            return [[process.pid, process.usedGpuMemory] for process in found]
        fields = getattr(found, "_fields_", None)
        return {field[0]: getattr(found, field[0]) for field in fields} if fields else found

    def card(index: int) -> Any:
        handle = ask("DeviceGetHandleByIndex", index)
        if isinstance(handle, dict):
            return handle
        answers = {name: ask(f"DeviceGet{question}", handle) for name, question in QUESTIONS.items()}
        answers["clock"] = ask("DeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM)
        answers["memory"] = ask("DeviceGetMemoryInfo", handle, version=nvml.nvmlMemory_v2)
        return {"uuid": f"GPU-00000000-0000-0000-0000-{index + 1:012}", **answers}

    started = ask("Init")
    count = ask("DeviceGetCount")
    cards = [card(index) for index in range(count)] if isinstance(count, int) else []
    return {"wsl2": on_wsl(), "init": started, "driver": ask("SystemGetDriverVersion"), "cards": cards}


def _disk() -> Row:
    free = shutil.disk_usage(root()).free / 2**30
    problem = "" if free > FREE_GIB else f"; fewer than {FREE_GIB}: runs may not fit"
    return _row("disk", not problem, f"{free:.0f} GiB free{problem}")


def _services() -> list[Row]:
    from overnight.services import status
    from overnight.services.commands import PROBLEMS

    rows = []
    found = status()
    for row in found:
        if row["service"] == "user":
            rows.append(_row("in use", True, f"by {row['note']}"))
            continue
        words = (row["state"], row["address"], row["note"])
        rows.append(_row(row["service"], row["state"] not in PROBLEMS, " ".join(filter(None, words))))
    are_up = any(row["service"] == "worker" and row["state"] == "ready" for row in found)
    problems = [*night_problems(are_up, shutil.disk_usage(root()).free / 2**30)]
    return [
        *rows,
        {"check": "next night", "": "NOTE" if problems else "ok", "found": "; ".join(problems) or "runs"},
    ]
