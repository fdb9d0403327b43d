"""Readers: one file for each format on disk, found by its name; a file that starts with _ is shared by them."""

import difflib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from overnight.config import Values
from overnight.data.content import Content

if TYPE_CHECKING:
    from overnight.data.dataset import Entry


class Reader(Protocol):
    """What a file of this folder offers."""

    Options: type[Values]

    def read(self, folder: Path, options: Any, entry: "Entry") -> Content:
        """The set whose verified files lie below *folder*; raises DataError that names the file."""


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
