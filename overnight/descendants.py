"""What the processes of a step have started: found by a mark in their environment, wherever they went (setsid, a new group)."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from overnight.paths import steps
from overnight.processes import Process

MARK = "OVERNIGHT_STEP"


@dataclass(frozen=True)
class Owner:
    """The step that a process belongs to: who runs it, and its folder."""

    pid: int
    started: str
    folder: str

    def alive(self) -> bool:
        """Whether the process that runs the step is there."""
        return Process(self.pid, self.started).alive()


def mark(folder: Path) -> str:
    """The value of MARK for a step of this process."""
    me = Process.of(os.getpid())
    return f"{os.getpid()}|{me.started if me else ''}|{folder}"


def end(whose: Callable[[Owner], bool]) -> list[int]:
    """Kill every process of a step of this checkout whose owner is meant; their pids."""
    killed = []
    for process in psutil.process_iter():
        owner = _owner(process.pid)
        if (
            owner
            and process.pid != os.getpid()
            and Path(owner.folder).is_relative_to(steps())
            and whose(owner)
        ):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
    return killed


def _owner(pid: int) -> Owner | None:
    """From the environment that the process began with; None for a process of somebody else."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    value = next(
        (v.decode(errors="replace") for v in variables if v.startswith(f"{MARK}=".encode())), ""
    ).partition("=")[2]
    number, started, folder = (*value.split("|", 2), "", "")[:3]
    return Owner(int(number), started, folder) if number.isdigit() and folder else None
