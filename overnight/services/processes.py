"""Processes by pid *and* start time, so that a pid that was given to somebody else is never taken for ours."""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from overnight.services.settings import HOST


@dataclass(frozen=True)
class Process:
    """One process that was started by us."""

    pid: int
    started: float  # psutil's creation time

    @classmethod
    def of(cls, pid: int) -> "Process":
        """The process that has this pid now."""
        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        """Whether it is this one, and not a zombie."""
        try:
            process = psutil.Process(self.pid)
            return bool(abs(process.create_time() - self.started) < 1) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def signal(self, number: int) -> None:
        """To it alone, when it still lives: a run that the worker has started outlives a new start of the worker."""
        if self.alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def children(self) -> "list[Process]":
        """Those that it has started."""
        try:
            return [Process(p.pid, p.create_time()) for p in psutil.Process(self.pid).children()] if self.alive() else []
        except psutil.NoSuchProcess:
            return []


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
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def listener(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        found = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
        pid = next((c.pid for c in found if c.pid), None)
        if pid is not None:
            return f"pid {pid}: {' '.join(psutil.Process(pid).cmdline())[:120]}"
    except (psutil.Error, OSError):
        pass
    return "a process of another user, or one that cannot be read"
