"""`overnight doctor`: what this machine has, and what stands in the way."""

import shutil
import sys

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
from overnight.paths import root

FREE_GIB = 5
Row = dict[str, str]


def checks() -> list[Row]:
    card = Card(uuid="virtual", name="virtual", total_mib=VIRTUAL_MIB, budget_mib=VIRTUAL_MIB)
    try:
        card = find()
        found = _row("card", True, f"{card}; torch is built for CUDA {torch_cuda()}")
    except ServiceError as error:
        found = _row("card", False, str(error))
    return [_python(), found, _ledger(card), _others(card), _overhead(card), _disk(), *_services()]


def _row(check: str, ok: bool, found: str) -> Row:
    return {"check": check, "": "ok" if ok else "PROBLEM", "found": found}


def _python() -> Row:
    version = ".".join(map(str, sys.version_info[:3]))
    return _row("python", (3, 11) <= sys.version_info < (3, 14), f"{version} in {sys.prefix}")


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
    device = device_of(card)
    used_mib = other_processes_mib(card, held, device)
    if device.problem:
        return _row("other programs", False, f"the card does not say what it uses: {device.problem}")
    if not used_mib:
        return _row("other programs", True, "use nothing of the card")
    names = ", ".join(describe_other_processes(other_processes(card, held, device), used_mib))
    overuse_mib = over_reserve_mib(card, used_mib)
    beyond = f"; {overuse_mib:,} MiB of it of the budget" if overuse_mib and not card.virtual else ""
    return _row("other programs", True, names + beyond)


def _overhead(card: Card) -> Row:
    if card.virtual:
        return _row("CUDA context", True, "none on the virtual card")
    known = cuda_context.measured(card)
    source = "measured on this machine" if known else "until the first steps have measured it"
    return _row("CUDA context", True, f"takes {cuda_context.overhead(card)} MiB of every lease, {source}")


def _disk() -> Row:
    free = shutil.disk_usage(root()).free / 2**30
    problem = "" if free > FREE_GIB else f"; fewer than {FREE_GIB}: runs may not fit"
    return _row("disk", not problem, f"{free:.0f} GiB free{problem}")


def _services() -> list[Row]:
    from overnight.services import status

    return [
        _row(str(row["service"]), True, f"{row['state']} {row.get('address') or ''}".strip())
        for row in status()
    ]
