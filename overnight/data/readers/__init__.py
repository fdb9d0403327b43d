"""Readers: one file for each format on disk, found by its name; files that start with _ are shared."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from overnight.config import Values
from overnight.data.content import Content
from overnight.errors import did_you_mean

if TYPE_CHECKING:
    import polars as pl

    from overnight.data.file_set import Package


class Reader(Protocol):
    """A file of this folder; `package(options)` too, if its files do not lie below the data folders.

    `schemas(folder, options)` too, if the columns of tables are known before they are read.
    """

    Options: type[Values]

    def read(self, folder: Path, options: Any, kind: str) -> Content:
        """The set of that kind below *folder*; raises DataError that names the file."""


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("[!_]*.py"))


def reader(name: str) -> Reader:
    """Raises ValueError with the nearest one."""
    if name not in names():
        hint = did_you_mean(name, names())
        raise ValueError(f"unknown reader {name!r}{hint} (there are: {', '.join(names())})")
    return cast("Reader", import_module(f"overnight.data.readers.{name}"))


def schemas_of(name: str, folder: Path, options: Any) -> "dict[str, tuple[pl.Schema, bool]]":
    """{table: (its columns, whether their types are certain)}; empty where only reading tells."""
    found = getattr(reader(name), "schemas", None)
    return found(folder, options) if found else {}


def package_of(name: str, options: Mapping[str, Any]) -> "Package | None":
    found = getattr(reader(name), "package", None)
    return found(options) if found else None
