"""Readers: one file for each format on disk, found by its name; files that start with _ are shared."""

import difflib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from overnight.config import Values
from overnight.data.content import Content


class Reader(Protocol):
    """What a file of this folder offers.

    One whose files do not lie below the data folders also has `locate(options)`, the folder that holds them;
    `identity(options)`, what decides their content; and `source(options)`, what brings them, for messages.
    """

    Options: type[Values]

    def read(self, folder: Path, options: Any, kind: str) -> Content:
        """The set of that kind with verified files below *folder*; raises DataError that names the file."""


def names() -> list[str]:
    """Every format that can be read."""
    return sorted(p.stem for p in Path(__file__).parent.glob("[!_]*.py"))


def reader(name: str) -> Reader:
    """The reader of a format; raises ValueError with the nearest one."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown reader {name!r}{hint} (there are: {', '.join(names())})")
    return cast("Reader", import_module(f"overnight.data.readers.{name}"))


def locate(name: str, options: Mapping[str, Any]) -> Path | None:
    """The folder that a reader finds by itself; None when the files lie below the data folders."""
    return cast("Path | None", _own(name, "locate", options))


def identity(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """What decides the content of such files; empty when their digests do."""
    return cast("dict[str, str]", _own(name, "identity", options) or {})


def source(name: str, options: Mapping[str, Any]) -> str:
    """What brings such files; empty when they lie below the data folders."""
    return cast("str", _own(name, "source", options) or "")


def _own(name: str, function: str, options: Mapping[str, Any]) -> Any:
    found = getattr(reader(name), function, None)
    return found(options) if found else None
