"""What the files of a card's folder say of themselves, as JSON."""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOM = 1 << 10  # bytes; a text is filled up to it, so that people see nothing of a longer one before it
_TEXT = json.JSONEncoder(default=str).encode  # made once: a holder speaks several times a second
_FIRST = json.JSONDecoder().raw_decode


def write(descriptor: int, facts: Mapping[str, Any]) -> None:
    """Replace what a file says. A full disk is no reason to stop."""
    with suppress(OSError):
        os.pwrite(descriptor, _TEXT(facts).encode().ljust(ROOM), 0)


def read(path: Path | str) -> dict[str, Any]:
    """What a request, or another file of a card's folder, says of itself; nothing when that is torn or gone."""
    return read_if_any(path) or {}


def read_if_any(path: Path | str) -> dict[str, Any] | None:
    """The same; None where there is no such file, or something else of that name: a folder, a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        text = os.read(descriptor, 1 << 16)
        if not text and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        values, _ = _FIRST(text.decode())
    except (IsADirectoryError, BlockingIOError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(descriptor)
    return values if isinstance(values, dict) else {}
