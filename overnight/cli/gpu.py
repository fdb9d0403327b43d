"""`overnight gpu`: who holds how much of the card, who waits, what other programs use.

`--json` prints a Snapshot; its fields stay. With `--watch` it is one line for each change.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from overnight.config import Values
from overnight.gpu.card import Card
from overnight.gpu.device_usage import Gauge, foreign_mib, gauge, of_budget, outsiders, printable
from overnight.gpu.ledger import holders
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.ledger.metadata import amount

EVERY_S = 1.0
CLOCKS_S = 2.0  # what two ways to tell the same moment may differ by
WIDTH = 110


class Process(Values):
    """A process that keeps a lease alive whose owner has ended."""

    pid: int
    command: str


class Row(Values):
    """One request on the card's budget."""

    experiment: str
    step: str
    pid: int
    mib: int
    seconds: float = Field(description="since it holds, or waits")
    use_mib: float | None = Field(
        None, description="what the holder says it uses now, its CUDA context included"
    )
    peak_mib: float | None = Field(None, description="the most it ever used")
    cap_mib: float | None = Field(None, description="what its allocator is held to")
    exclusive: bool = Field(False, description="nobody may run beside it")
    stopped: bool = Field(False, description="its process is stopped (SIGSTOP, a debugger)")
    survivors: tuple[Process, ...] = Field(
        (), description="its owner has given it back or ended; these still hold its memory until they end"
    )
    ended: bool = Field(False, description="its owner has ended")


class Outsider(Values):
    """A program on the card without a lease. mib: None where the driver does not say."""

    name: str
    pid: int
    mib: int | None


class Snapshot(Values):
    """The card at one moment. All amounts in MiB; held + taken + free is the budget, unless others came after a grant."""

    at: float = Field(description="seconds since 1970")
    card: Card
    budget_mib: int
    held_mib: int = Field(description="the sum of all leases")
    free_mib: int = Field(description="what could be granted now")
    used_mib: int = Field(description="on the whole card, by everybody")
    foreign_mib: int = Field(description="by programs without a lease")
    taken_mib: int = Field(description="of the budget, by programs without a lease: what exceeds the reserve")
    holders: tuple[Row, ...]
    queue: tuple[Row, ...] = Field(description="in its order")
    outside: tuple[Outsider, ...] = Field(
        description="programs without a lease, the largest first, as far as the driver names them"
    )
    problem: str = Field("", description="why the card does not say what it uses")


def snapshot(card: Card, by: Gauge | None = None) -> Snapshot:
    """Look once."""
    by = by or gauge(card)
    requests = Ledger(card.folder, card.budget_mib).requests()
    held, queue = [r for r in requests if r.holds], [r for r in requests if not r.holds]
    foreign = foreign_mib(card, held, by)
    taken, granted = of_budget(card, foreign), sum(r.mib for r in held)
    return Snapshot(
        at=round(time.time(), 3),
        card=card,
        budget_mib=card.budget_mib,
        held_mib=granted,
        free_mib=max(0, card.budget_mib - granted - taken),
        used_mib=by.used_mib(card, held),
        foreign_mib=foreign,
        taken_mib=taken,
        holders=tuple(map(_row, held)),
        queue=tuple(map(_row, queue)),
        outside=tuple(Outsider(name=p.name, pid=p.pid, mib=p.mib) for p in outsiders(card, held, by)),
        problem=by.problem,
    )


def _row(request: Request) -> Row:
    who, owner = request.who, _has_open(request.pid, request.path)
    keepers = [] if owner else [pid for pid in holders.keepers(request) if pid != request.pid]
    since_ns = amount(who.get("granted_ns"), most=1 << 63) if request.holds else None
    return Row(
        experiment=printable(str(who.get("experiment", ""))),
        step=printable(str(who.get("step", ""))),
        pid=request.pid,
        mib=request.mib,
        seconds=_since(request.ticket if since_ns is None else since_ns),
        **{
            name: value
            for name in ("use_mib", "peak_mib", "cap_mib")
            if (value := amount(who.get(name))) is not None
        },
        exclusive=request.exclusive,
        stopped=owner and _state(request.pid) in ("T", "t"),
        ended=not owner and not _lives(request),
        survivors=tuple(Process(pid=pid, command=_command(pid)) for pid in sorted(keepers)),
    )


def _since(boot_ns: float) -> float:
    """Seconds since a moment on the clock that counts from boot and that nobody sets."""
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
    """Whether a process still has its request's file; its number alone may have gone to another."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        links = [os.readlink(folder / name) for name in os.listdir(folder)]  # noqa: PTH115, PTH208 - many, and read once a second
    except FileNotFoundError:
        return False
    except OSError:  # it ends just now, or belongs to somebody else
        return True
    return any(link.removesuffix(" (deleted)") == str(path) for link in links)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(" ".join(word.decode(errors="replace") for word in words).split())[:200]


# ------------------------------------------------------------------------------------------------ the command


def show(card: Card, as_json: bool, watching: bool, pause: Callable[[float], None] = time.sleep) -> None:
    """Print the card once, or until Ctrl-C."""
    try:
        if not watching:
            _once(snapshot(card), as_json)
        elif as_json or not sys.stdout.isatty():
            _lines(card, as_json, pause)
        else:
            _live(card, pause)
        sys.stdout.flush()
    except KeyboardInterrupt:
        if not watching:
            raise
    except BrokenPipeError:  # `| head -1` has seen enough; what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _once(now: Snapshot, as_json: bool) -> None:
    if as_json:
        print(now.model_dump_json(indent=1))
        return
    from rich.console import Console

    from overnight.cli.gpu_table import panel

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)  # a file has no edge
    console.print(panel(now, min(console.width, WIDTH)))


def _lines(card: Card, as_json: bool, pause: Callable[[float], None]) -> None:
    """A line for each change, for files and programs."""
    from overnight.cli.gpu_table import line

    last = ""
    while True:
        now = snapshot(card)
        news = line(now)
        if news != last:
            print(now.model_dump_json() if as_json else f"{time.strftime('%H:%M:%S')}  {news}", flush=True)
        last = news
        pause(EVERY_S)


def _live(card: Card, pause: Callable[[float], None]) -> None:
    """The picture, drawn anew each second on a screen of its own, so that the terminal is afterwards as it was before."""
    from rich.console import Console
    from rich.live import Live

    from overnight.cli.gpu_table import panel

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(panel(snapshot(card), min(console.width, WIDTH), clock=True), refresh=True)
            pause(EVERY_S)
