"""Who holds although their files were removed: a name that the kernel knows as long as the holder lives, and that lies in no folder.

Before its grant a process binds a socket to a name in the abstract namespace (unix(7)): nobody can remove or rename it, and none is left
behind. It goes with the last process that has it, as the lock does. Reading the kernel's list of names takes a tenth of a millisecond.
Processes in containers with a network of their own do not see each other's; for them the ledger's files alone speak.
"""

import hashlib
import os
import socket
from functools import cache
from pathlib import Path

LIST = "/proc/net/unix"


def bind(folder: Path, name: str) -> socket.socket:
    """Show the kernel who holds something of a folder; until this is closed by every process that has it.

    Raises OSError, EADDRINUSE where another has that name.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        bound.bind(f"\0{_prefix(folder)}{name}")
    except OSError:
        bound.close()
        raise
    return bound


def bound(folder: Path) -> list[str]:
    """The names of all who hold something of a folder, or are about to claim it."""
    prefix = f"@{_prefix(folder)}".encode()
    return [
        line.rpartition(prefix)[2].decode(errors="replace")
        for line in _listed().split(b"\n")
        if prefix in line
    ]


def _listed() -> bytes:
    try:
        descriptor = os.open(LIST, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody can be told apart then; files and locks still count
        return b""
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    finally:
        os.close(descriptor)


@cache
def _prefix(folder: Path) -> str:
    """The folder by its path, whatever becomes of the folder itself."""
    return f"overnight-{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]}-"
