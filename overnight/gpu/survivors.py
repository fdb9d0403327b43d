"""What the kernel's own list of locks knows and a ledger's folder does not: holders whose files were removed, and who keeps a lock alive."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from overnight.gpu.requests import Request

DELETED = " (deleted)"
READS = 6  # of the kernel's list, at most
_strangers: dict[tuple[int, int], dict[str, str]] = {}  # locks (pid, inode) of files elsewhere: who has them open, and as what


def removed(folder: Path, mine: int, known: set[int]) -> list[Request]:
    """Holders of *folder* that live and have no file left. mine: the inode of a lock that this process has there."""
    locks = _locks()
    device = next((device for pid, device, inode in locks if inode == mine and pid == os.getpid()), None)
    found = dict[str, Request]()
    for pid, at, inode in locks:
        if at != device or inode in known or _elsewhere(pid, inode) or _of_another(pid):
            continue
        links = _opened(str(pid), inode) or {fd: path for other in _pids() for fd, path in _opened(other, inode).items()}
        ours = [Path(path) for path in links.values() if Path(path).parent == folder]
        if links and not ours:
            _strangers[pid, inode] = links
        names = {path.name.removesuffix(DELETED) for path in ours if path.name.endswith(DELETED)}
        found |= {name: r for name in names if (r := Request.parse(folder, name)) and r.holds}
    return list(found.values())


def _elsewhere(pid: int, inode: int) -> bool:
    """Whether a lock is still the one that was found to be of another folder: numbers of files and processes are used again."""
    links = _strangers.get((pid, inode), {})
    try:
        return bool(links) and all(os.stat(fd).st_ino == inode and os.readlink(fd) == path for fd, path in links.items())
    except OSError:
        del _strangers[pid, inode]
        return False


def _of_another(pid: int) -> bool:
    """Whether it is a process of another user, who has a ledger of their own."""
    try:
        return os.geteuid() != 0 and os.stat(f"/proc/{pid}").st_uid != os.geteuid()
    except OSError:
        return False  # it has ended, and what it forked keeps the lock


def _opened(pid: str, inode: int) -> dict[str, str]:
    """The descriptors of a process that are of this inode, and their paths."""
    found = {}
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                at = f"/proc/{pid}/fd/{descriptor}"
                if os.stat(at).st_ino == inode:
                    found[at] = os.readlink(at)
    return found


def keepers(request: Request) -> list[int]:
    """The processes that have a request's file open: its owner, and what was forked from it."""
    wanted = {str(request.path), f"{request.path}{DELETED}"}
    return [int(pid) for pid in _pids() if wanted & set(_links(pid))]


def _locks() -> set[tuple[int, str, int]]:
    """(pid, device, inode) of every exclusive flock that is held (proc_locks(5)).

    The kernel gives the list a page at a time, and what moves up between two pages is in neither: it is read until nothing more is found.
    """
    found, before = set[tuple[int, str, int]](), None
    for _ in range(READS):
        now = set(_listed())
        found |= now
        if now == before:
            break
        before = now
    return found


def _listed() -> Iterator[tuple[int, str, int]]:
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[3] == "WRITE":
                device, _, inode = fields[5].rpartition(":")
                yield int(fields[4]), device, int(inode)


def _links(pid: str) -> Iterator[str]:
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]
