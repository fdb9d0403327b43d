"""Who keeps a lock alive: the processes that have a request's file open."""

import os
from collections.abc import Iterator
from contextlib import suppress

from overnight.gpu.ledger.entries import Request

DELETED = " (deleted)"


def keepers(request: Request) -> list[int]:
    """The processes that have a request's file open: its owner, and what was forked from it."""
    wanted = {str(request.path), f"{request.path}{DELETED}"}
    return [int(pid) for pid in _pids() if wanted & set(_links(pid))]


def _links(pid: str) -> Iterator[str]:
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]
