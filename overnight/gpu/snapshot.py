"""A snapshot of the card for people and programs: who holds how much, who waits, what other processes use.

`overnight gpu --json` prints a Snapshot; its fields stay.
"""

import os
import time
from pathlib import Path

from pydantic import Field

from overnight.config import Values
from overnight.gpu.card import Card
from overnight.gpu.device_usage import (
    Device,
    device_of,
    other_processes,
    other_processes_mib,
    over_reserve_mib,
    printable,
)
from overnight.gpu.ledger import entries
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.ledger.metadata import amount

CLOCKS_S = 2.0  # what two ways to read the same moment may differ by


class OrphanedProcess(Values):
    """A process that keeps a lease alive after its owner has ended or released it."""

    pid: int
    command: str


class RequestRow(Values):
    """One request on the card's budget."""

    experiment: str
    step: str
    pid: int
    mib: int
    seconds: float = Field(description="since it holds, or waits")
    use_mib: float | None = Field(None, description="what the holder reports to use, CUDA context included")
    peak_mib: float | None = Field(None, description="the most it ever used")
    cap_mib: float | None = Field(None, description="the limit of its allocator")
    exclusive: bool = Field(False, description="no other may run beside it")
    stopped: bool = Field(False, description="its process is stopped (SIGSTOP, a debugger)")
    orphaned_processes: tuple[OrphanedProcess, ...] = Field(
        (), description="its owner has released it or ended; these hold its memory until they end"
    )
    ended: bool = Field(False, description="its owner has ended")


class OtherProcess(Values):
    """A process on the card without a lease. mib: None where the driver does not say."""

    name: str
    pid: int
    mib: int | None


class Snapshot(Values):
    """The card at one moment.

    Amounts in MiB; held + overuse + free is the budget, unless others came after a grant.
    """

    at: float = Field(description="seconds since 1970")
    card: Card
    budget_mib: int
    held_mib: int = Field(description="the sum of all leases")
    free_mib: int = Field(description="what could be granted now")
    used_mib: int = Field(description="on the whole card, by all processes")
    other_processes_mib: int = Field(description="used by processes without a lease")
    overuse_mib: int = Field(description="the part of it that exceeds the reserve, so it is of the budget")
    holders: tuple[RequestRow, ...]
    queue: tuple[RequestRow, ...] = Field(description="in its order")
    other_processes: tuple[OtherProcess, ...] = Field(
        description="without a lease, the largest first, as far as the driver names them"
    )
    problem: str = Field("", description="why the card does not say what it uses")


def snapshot(card: Card, device: Device | None = None) -> Snapshot:
    """Take a snapshot now."""
    device = device or device_of(card)
    requests = Ledger(card.folder, card.budget_mib).requests()
    held = [r for r in requests if r.holds]
    others_mib = other_processes_mib(card, held, device)
    overuse = over_reserve_mib(card, others_mib)
    held_mib = sum(r.mib for r in held)
    others = other_processes(card, held, device)
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
        other_processes=tuple(OtherProcess(name=p.name, pid=p.pid, mib=p.mib) for p in others),
        problem=device.problem,
    )


def _row(request: Request) -> RequestRow:
    owner = request.owner
    is_open = _has_open(request.pid, request.path)
    orphans = [] if is_open else [pid for pid in entries.open_in(request) if pid != request.pid]
    since_ns = amount(owner.get("granted_ns"), most=1 << 63) if request.holds else None
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
        stopped=is_open and _state(request.pid) in ("T", "t"),
        ended=not is_open and not _lives(request),
        orphaned_processes=tuple(OrphanedProcess(pid=pid, command=_command(pid)) for pid in sorted(orphans)),
    )


def _since(boot_ns: float) -> float:
    """Seconds since a moment on the clock that counts from boot, which no change of a clock touches."""
    return round(max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boot_ns) / 1e9, 1) if boot_ns else 0.0


def _lives(request: Request) -> bool:
    """Whether the process that made a request is still there, and no other with its number."""
    import psutil

    try:
        began = psutil.Process(request.pid).create_time() - psutil.boot_time()
    except psutil.Error:
        return False
    return bool(began <= request.ticket / 1e9 + CLOCKS_S)


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has its request's file open; its pid alone may have gone to another."""
    folder = f"/proc/{pid}/fd"
    try:
        links = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]  # noqa: PTH115, PTH208
    except FileNotFoundError:
        return False
    except OSError:  # it ends just now, or belongs to another user
        return True
    return any(link.removesuffix(entries.DELETED) == str(path) for link in links)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _command(pid: int) -> str:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(" ".join(argument.decode(errors="replace") for argument in arguments).split())[:200]
