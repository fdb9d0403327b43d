"""What the files of a card's folder say of themselves, as JSON."""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST = 1 << 16  # bytes that are read
ROOM = 1 << 10  # bytes; a text is filled up to it, so that people see nothing of a longer one before it
_TEXT = json.JSONEncoder(default=str).encode  # made once: a holder speaks several times a second
_FIRST = json.JSONDecoder().raw_decode


def write(descriptor: int, facts: Mapping[str, Any]) -> None:
    """Replace what a file says, without its longest parts where that is too much. A full disk is no reason to stop."""
    text = _TEXT(facts).encode()
    if len(text) > MOST:
        text = _TEXT({name: value for name, value in facts.items() if len(_TEXT(value)) <= ROOM}).encode()
    with suppress(OSError):
        os.pwrite(descriptor, text.ljust(ROOM), 0)


def amount(said: Any, most: float = 1e12) -> float | None:
    """A number that somebody said, from 0 to `most`; None for what is none: infinity, text, a thousand digits."""
    return (
        said if isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= most else None
    )


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
        text = os.read(descriptor, MOST)
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
