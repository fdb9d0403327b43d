"""The JSON in the files of a card's folder."""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 16  # that are read
PAD_BYTES = 1 << 10  # a shorter text is padded to it, so that nothing remains of a longer one before it
_encode = json.JSONEncoder(default=str).encode  # made once: a holder writes several times a second
_decode = json.JSONDecoder().raw_decode


def write(descriptor: int, values: Mapping[str, Any]) -> None:
    """Replace the content of a file, without its longest values where it is too long.

    A full disk is no error.
    """
    text = _encode(values).encode()
    if len(text) > MAX_BYTES:
        short = {name: value for name, value in values.items() if len(_encode(value)) <= PAD_BYTES}
        text = _encode(short).encode()
    with suppress(OSError):
        os.pwrite(descriptor, text.ljust(PAD_BYTES), 0)


def amount(value: Any, most: float = 1e12) -> float | None:
    """A number from 0 to `most`; None for anything else: infinity, text, a thousand digits."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= most else None


def read(path: Path | str) -> dict[str, Any]:
    """The content of a file; empty when it is torn or gone."""
    return read_if_any(path) or {}


def read_if_any(path: Path | str) -> dict[str, Any] | None:
    """The same; None where there is no such file, or something else of that name: a folder, a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        text = os.read(descriptor, MAX_BYTES)
        if not text and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        values, _ = _decode(text.decode())
    except (IsADirectoryError, BlockingIOError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(descriptor)
    return values if isinstance(values, dict) else {}
