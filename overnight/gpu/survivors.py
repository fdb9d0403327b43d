"""What the kernel's own list of locks knows and a ledger's folder does not: holders whose files were removed, and who keeps a lock alive."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from overnight.gpu.requests import Request

DELETED = " (deleted)"
_strangers: set[tuple[int, int]] = set()  # locks (pid, inode) that were found to be of another folder


def removed(folder: Path, mine: int, known: set[int]) -> list[Request]:
    """Holders of *folder* that live and have no file left. mine: the inode of a lock that this process has there."""
    locks = list(_locks())
    device = next((device for _, device, inode in locks if inode == mine), None)
    found = dict[str, Request]()
    for pid, at, inode in locks:
        if at != device or inode in known or (pid, inode) in _strangers:
            continue
        names = set(_deleted(folder, [str(pid)] if Path(f"/proc/{pid}").exists() else _pids()))
        requests = [r for name in names if (r := Request.parse(folder, name)) and r.holds]
        found |= {r.path.name: r for r in requests}
        if not requests:
            _strangers.add((pid, inode))
    return list(found.values())


def keepers(request: Request) -> list[int]:
    """The processes that have a request's file open: its owner, and what was forked from it."""
    wanted = {str(request.path), f"{request.path}{DELETED}"}
    return [int(pid) for pid in _pids() if wanted & set(_links(pid))]


def _locks() -> Iterator[tuple[int, str, int]]:
    """(pid, device, inode) of every exclusive flock that is held (proc_locks(5))."""
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[3] == "WRITE":
                device, _, inode = fields[5].rpartition(":")
                yield int(fields[4]), device, int(inode)


def _deleted(folder: Path, pids: list[str]) -> Iterator[str]:
    """Names of removed files of *folder* that those processes have open."""
    for pid in pids:
        for link in _links(pid):
            path = Path(link.removesuffix(DELETED))
            if link.endswith(DELETED) and path.parent == folder:
                yield path.name


def _links(pid: str) -> Iterator[str]:
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]
