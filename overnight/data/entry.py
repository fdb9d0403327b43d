"""The entry of a data set, datasets/<name>.yaml: its reader, its files and where they are looked for."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from overnight.artifact import DataSpec
from overnight.config import Values
from overnight.data import digests, readers
from overnight.data.rules import TableRules
from overnight.errors import DataError
from overnight.paths import datasets, root, shown

if TYPE_CHECKING:
    from overnight.data.readers._common import Package

Kind = Literal["table", "images", "boxes", "graph", "text"]


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must be a path inside the set's folder")
    return path


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def _known_reader(name: str) -> str:
    readers.reader(name)
    return name


Url = Annotated[str, Field(pattern=r"^(https://|http://127\.0\.0\.1[:/])")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Inside = Annotated[str, AfterValidator(_inside)]


class _Known(Values):
    # several: each will do. Of a folder: of what `sha256sum *` prints in it
    sha256: Sha256 | list[Sha256] = []
    bytes: int | None = Field(None, ge=0)

    @property
    def digests(self) -> tuple[str, ...]:
        return (self.sha256,) if isinstance(self.sha256, str) else tuple(self.sha256)


class DataFile(_Known):
    """A file of the set, or a whole folder when its path ends with /."""

    path: Inside
    url: Url | None = None


class Archive(_Known):
    """A tar or zip that brings the files that have no url of their own.

    A copy that lies in the set's folder is used instead.
    """

    url: Url
    inside: str = ""  # the folder of the archive that holds the files; * stands for any one name
    limit: int = Field(50 * 10**9, gt=0)  # bytes it may unpack to

    @property
    def name(self) -> str:
        return PurePosixPath(self.url.partition("?")[0]).name


class Entry(Values):
    name: str
    kind: Kind
    reader: Annotated[str, AfterValidator(_known_reader)]  # a file of overnight/data/readers/
    folder: Inside = ""  # below $OVERNIGHT_DATA or datasets/; the name when left out
    files: list[DataFile] = []  # what must be there; empty: whatever is in the folder
    archives: list[Archive] = []
    options: dict[str, Any] = {}  # of the reader
    # fractions cut off the training part, in this order, where the set has no such split; off: it has none
    splits: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    # a regular expression: samples in whose names it finds the same (in its first bracket) stay in one split
    groups: Annotated[str, AfterValidator(_pattern)] = ""
    strict: bool = False  # refuse what a rule would repair or drop
    rules: dict[str, TableRules] = {}  # by table: what its rows must be like
    # whether a table that differs from the last good one is reported (warn) or refused (stop)
    drift: Literal["off", "warn", "stop"] = "off"
    licence: str = ""
    homepage: str = ""
    about: str = ""
    expected: DataSpec = DataSpec()

    @model_validator(mode="after")
    def _archives_bring_files(self) -> "Entry":
        if self.archives and not self.files:
            raise ValueError(
                "archives need `files`: which files (or folders, with / at the end) of them belong to the set"
            )
        return self

    @model_validator(mode="after")
    def _rules_of_tables(self) -> "Entry":
        if self.kind != "table" and (self.rules or self.drift != "off"):
            raise ValueError(f"rules and drift are of tables; this set is of kind {self.kind!r}")
        return self

    def search_paths(self) -> list[Path]:
        """Where the files may be, in the order of looking; the last is where downloads go."""
        package = self.package
        if package:
            return [package.folder()]
        return [place / (self.folder or self.name) for place in (*shared(), datasets())]

    @property
    def package(self) -> "Package | None":
        """The installed package that brings the files; None where they lie below the data folders."""
        return readers.package_of(self.reader, self.options)

    def found(self) -> list[Path]:
        """The folders that hold every file; nothing is verified."""
        return [
            folder
            for folder in self.search_paths()
            if folder.is_dir() and all((folder / file.path).exists() for file in self.files)
        ]

    def problems(self, folder: Path) -> list[str]:
        """What differs from the entry in this folder."""
        return [wrong for wrong in (self.problem(folder, file) for file in self.files) if wrong]

    def problem(self, folder: Path, file: DataFile) -> str:
        """Empty when nothing is wrong."""
        path = folder / file.path
        can_fetch = file.url or self.archives
        anew = f"`overnight data fetch {self.name}` gets it anew" if can_fetch else "get it anew"
        if not path.exists():
            return f"{shown(path)}: there is no such file; {anew}"
        try:
            size = digests.size(path)
            if file.bytes is not None and size != file.bytes:
                return f"{shown(path)}: {size} bytes, expected {file.bytes}: cut short or changed; {anew}"
            if not file.digests:
                return ""
            digest = digests.sha256(path)
        except OSError as error:
            return f"{shown(path)}: cannot be read: {error.strerror}; check its permissions and its disk"
        if digest in file.digests:
            return ""
        expected = " or ".join(file.digests)
        return f"{shown(path)}: sha256 {digest}, expected {expected}: damaged or changed; {anew}"

    def identity(self) -> dict[str, Any]:
        """How it is read and cut, and digests of the files here; of the entry where they are not here."""
        how = self.model_dump(mode="json", include={"kind", "reader", "options", "splits"})
        how |= {"groups": self.groups} if self.groups else {}
        how |= self.model_dump(mode="json", include={"rules"}) if self.rules else {}
        how |= {"strict": True} if self.strict else {}  # whether it is refused is part of the result
        if self.package:
            return {**how, "package": self.package.version()}
        folder = next(iter(self.found()), None)
        if folder is None:
            return {**how, "files": {file.path: next(iter(file.digests), None) for file in self.files}}
        names = [file.path for file in self.files] or ["."]
        return {**how, "files": {name: _digest(folder / name) for name in names}}


def _digest(path: Path) -> str:
    try:
        return digests.sha256(path)
    except OSError as error:  # the step that reads it says so
        return f"cannot be read: {error.strerror}"


def shared() -> list[Path]:
    """The folder $OVERNIGHT_DATA names, if it is set, from here or the checkout. Raises DataError."""
    given = os.environ.get("OVERNIGHT_DATA")
    if not given:
        return []
    found = [place for place in (Path(given), root() / given) if place.is_dir()]
    if not found:
        raise DataError(
            f"OVERNIGHT_DATA={given}: there is no such folder; name the one that holds the folders of the "
            "sets, or unset it"
        )
    return found[:1]
