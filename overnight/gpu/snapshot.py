"""A snapshot of the card: who holds how much, who waits, what other processes use.

`overnight gpu --json` prints a Snapshot; its fields stay.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from overnight.config import Values
from overnight.errors import one_line
from overnight.gpu.card import Card
from overnight.gpu.device_usage import (
    Program,
    device_of,
    other_processes,
    other_processes_mib,
    over_reserve_mib,
    printable,
)
from overnight.gpu.ledger.entries import Request, amount
from overnight.gpu.ledger.ledger import Ledger

CLOCKS_S = 2.0  # what two ways to read the same moment may differ by


class OrphanedProcess(Values):
    """A process that keeps a lease alive after its owner has ended or released it."""

    pid: int
    command: str


class RequestRow(Values):
    experiment: str
    step: str
    pid: int
    mib: int
    seconds: float  # since it holds, or waits
    use_mib: float | None = None  # what the holder reports to use, CUDA context included
    peak_mib: float | None = None  # the most it ever used
    cap_mib: float | None = None  # the limit of its allocator
    exclusive: bool = False  # no other may run beside it
    stopped: bool = False  # its process is stopped (SIGSTOP, a debugger)
    # its owner has released it or ended; these hold its memory until they end
    orphaned_processes: tuple[OrphanedProcess, ...] = ()
    ended: bool = False  # its owner has ended


class Snapshot(Values):
    """The card at one moment. held + overuse + free is the budget, unless others came after a grant."""

    at: float  # seconds since 1970
    card: Card
    budget_mib: int
    held_mib: int  # the sum of all leases
    free_mib: int  # what could be granted now
    used_mib: int  # on the whole card, by all processes
    other_processes_mib: int  # used by processes without a lease
    overuse_mib: int  # the part of it that exceeds the reserve, so it is of the budget
    holders: tuple[RequestRow, ...]
    queue: tuple[RequestRow, ...]  # in its order
    # without a lease, the largest first, as far as the driver names them
    other_processes: tuple[Program, ...]
    problem: str = ""  # why the card does not say what it uses


def snapshot(card: Card) -> Snapshot:
    device = device_of(card)
    requests = Ledger(card.folder, card.budget_mib).requests()
    held = [r for r in requests if r.holds]
    others_mib = other_processes_mib(card, held)
    overuse = over_reserve_mib(card, others_mib)
    held_mib = sum(r.mib for r in held)
    return Snapshot(
        at=round(time.time(), 3),
        card=card,
        budget_mib=card.budget_mib,
        held_mib=held_mib,
        free_mib=max(0, card.budget_mib - held_mib - overuse),
        used_mib=device.used_mib(card, held),
        other_processes_mib=others_mib,
        overuse_mib=overuse,
        holders=tuple(map(_row, held)),
        queue=tuple(_row(r) for r in requests if not r.holds),
        other_processes=tuple(other_processes(card, held)),
        problem=device.problem,
    )


def _row(request: Request) -> RequestRow:
    owner = request.owner
    since_ns = amount(owner.get("granted_ns"), most=1 << 63) if request.holds else None
    process = _process(request)
    is_owned = process is not None and _has_open(request.pid, request.path)
    return RequestRow(
        experiment=printable(str(owner.get("experiment", ""))),
        step=printable(str(owner.get("step", ""))),
        pid=request.pid,
        mib=request.mib,
        seconds=_since(request.ticket if since_ns is None else since_ns),
        use_mib=amount(owner.get("use_mib")),
        peak_mib=amount(owner.get("peak_mib")),
        cap_mib=amount(owner.get("cap_mib")),
        exclusive=request.exclusive,
        stopped=is_owned and _is_stopped(process),
        ended=process is None,
        orphaned_processes=() if is_owned else _orphaned_processes(request),
    )


def _since(boot_ns: float) -> float:
    """Seconds since a moment on the clock that counts from boot."""
    return round(max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boot_ns) / 1e9, 1) if boot_ns else 0.0


def _process(request: Request) -> Any:
    """The process that made a request (psutil); None when it has ended."""
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(request.pid)
        if process.create_time() - psutil.boot_time() <= request.ticket / 1e9 + CLOCKS_S:
            return process
    return None


def _has_open(pid: int, path: Path) -> bool:
    with suppress(OSError):  # the process or the file is gone, or it belongs to another user
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if descriptor.samefile(path):
                    return True
    return False


def _is_stopped(process: Any) -> bool:
    import psutil

    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def _orphaned_processes(request: Request) -> tuple[OrphanedProcess, ...]:
    import psutil

    found = list[OrphanedProcess]()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != request.pid and _has_open(process.pid, request.path):
                command = one_line(" ".join(process.cmdline()))
                found.append(OrphanedProcess(pid=process.pid, command=command))
    return tuple(found)
