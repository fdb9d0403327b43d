"""Processes by pid *and* start, so that a pid that was given to somebody else is never taken for ours."""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Process:
    """One process that was started by us."""

    pid: int
    started: str  # boot and clock ticks since then: a wall clock that is set or sleeps does not change it

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has this pid now."""
        stat = _stat(pid)
        return cls(pid, stat[1]) if stat else None

    def alive(self) -> bool:
        """Whether it is this one, and not a zombie."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.started and stat[0] not in "ZX"

    def signal(self, number: int) -> None:
        """To it alone, when it still lives: a run that the worker has started outlives a new start of the worker."""
        if self.alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def parent(self) -> "Process | None":
        """Who started it; whoever adopts orphans, when that one is gone."""
        try:
            return Process.of(psutil.Process(self.pid).ppid()) if self.alive() else None
        except psutil.NoSuchProcess:
            return None

    def children(self) -> "list[Process]":
        """Those that it has started."""
        try:
            found = [Process.of(p.pid) for p in psutil.Process(self.pid).children()] if self.alive() else []
        except psutil.NoSuchProcess:
            return []
        return [p for p in found if p]


def _stat(pid: int) -> tuple[str, str] | None:
    """(state, start) of a process, None when there is none (proc(5): the fields after the name in brackets)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], f"{boot()} {fields[19]}"


@cache
def boot() -> str:
    """Another one after every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stop(processes: Sequence[Process], grace_s: float, tick: Callable[[], object] = lambda: None) -> None:
    """TERM to all, KILL to those that are there after the grace; `tick` is called while waiting (to reap children)."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for process in processes:
            process.signal(number)
        until = time.monotonic() + wait_s
        while any(p.alive() for p in processes) and time.monotonic() < until:
            time.sleep(0.05)
            tick()


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with(parent: int) -> Callable[[], None]:
    """To be called in a new child: TERM comes when the parent ends, even by kill -9."""

    def prepare() -> None:
        if _libc is not None:
            _libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)

    return prepare


def free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listener(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        found = [
            c
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr.port == port
        ]
        pid = next((c.pid for c in found if c.pid), None)
        if pid is not None:
            return f"pid {pid}: {' '.join(psutil.Process(pid).cmdline())[:120]}"
    except (psutil.Error, OSError):
        pass
    return "a process of another user, or one that cannot be read"
