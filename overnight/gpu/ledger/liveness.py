"""Liveness tokens: kernel names that let a holder count although its files were removed.

Before its grant a process binds a socket to a name in the abstract namespace (unix(7)), which no other
process can remove or rename. The name goes with the last process that has the socket, like the file lock.
Reading the kernel's list of names takes a tenth of a millisecond. Processes in containers with a network of
their own do not see each other's tokens; there the ledger's files alone count.
"""

import hashlib
import os
import socket
from functools import cache
from pathlib import Path

LIST = "/proc/net/unix"


def bind(folder: Path, name: str) -> socket.socket:
    """Bind a token for a folder; it lives until every process that has the socket has closed it.

    Raises OSError; EADDRINUSE where another process has that name.
    """
    token = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        token.bind(f"\0{_prefix(folder)}{name}")
    except OSError:
        token.close()
        raise
    return token


def bound_names(folder: Path) -> list[str]:
    """The names of all tokens of a folder: its holders, and those about to claim."""
    prefix = f"@{_prefix(folder)}".encode()
    lines = _listed().split(b"\n")
    return [line.rpartition(prefix)[2].decode(errors="replace") for line in lines if prefix in line]


def _listed() -> bytes:
    try:
        descriptor = os.open(LIST, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # without the list, files and locks still count
        return b""
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    finally:
        os.close(descriptor)


@cache
def _prefix(folder: Path) -> str:
    """The folder by its path, whatever becomes of the folder itself."""
    return f"overnight-{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]}-"
