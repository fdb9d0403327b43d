"""Files that an entry names: where they are looked for, what they must be, and their digests."""

import os
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from overnight.config import Values
from overnight.data import digests
from overnight.errors import DataError
from overnight.paths import root, shown


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must be a path inside the set's folder")
    return path


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


class Package:
    """Files of an installed package, found without importing it (some take seconds)."""

    def __init__(self, module: str, below: str) -> None:
        self.name = f"package {module}"
        self.module = module
        self.top = module.partition(".")[0]
        self.below = below

    def folder(self) -> Path:
        """Raises DataError when it is not installed."""
        spec = find_spec(self.top)
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places:
            raise DataError(
                f"package {self.module!r} is not installed here; `pip install` the package that brings it"
            )
        return Path(places[0]) / self.below

    def version(self) -> str:
        names = packages_distributions().get(self.top, [])
        return " ".join(f"{name} {version(name)}" for name in sorted(set(names))) or self.top


class FileSet(Values):
    """What entries of data sets and of weights have in common. KIND: in words; COMMAND: that fetches it."""

    KIND: ClassVar[str]
    COMMAND: ClassVar[str]

    name: str
    folder: Inside = ""  # below $OVERNIGHT_DATA or the entry's own folder; the name when left out
    files: list[DataFile] = []  # what must be there; empty: whatever is in the folder
    archives: list[Archive] = []
    licence: str = ""
    homepage: str = ""
    about: str = ""

    @model_validator(mode="after")
    def _archives_bring_files(self) -> "FileSet":
        if self.archives and not self.files:
            raise ValueError(
                "archives need `files`: which files (or folders, with / at the end) of them belong to the set"
            )
        return self

    @classmethod
    def home(cls) -> Path:
        """The folder of the entries."""
        raise NotImplementedError

    @property
    def installed(self) -> Package | None:
        """The installed package that brings the files; None where they lie below the folders."""
        raise NotImplementedError

    @property
    def called(self) -> str:
        """Kind and name, for messages."""
        return f"{self.KIND} {self.name!r}"

    def search_paths(self) -> list[Path]:
        """Where the files may be, in the order of looking; the last is where downloads go."""
        if self.installed:
            return [self.installed.folder()]
        return [place / (self.folder or self.name) for place in (*shared(), self.home())]

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
        anew = f"`overnight {self.COMMAND} fetch {self.name}` gets it anew" if can_fetch else "get it anew"
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

    def file_digests(self) -> dict[str, Any]:
        """Of the files here, by path; of the entry where they are not here; a package's version."""
        if self.installed:
            return {"package": self.installed.version()}
        folder = next(iter(self.found()), None)
        if folder is None:
            return {"files": {file.path: next(iter(file.digests), None) for file in self.files}}
        names = [file.path for file in self.files] or ["."]
        return {"files": {name: _digest(folder / name) for name in names}}

    def identity(self) -> dict[str, Any]:
        """What a result that was made of it depends on: digests, and how it is read."""
        raise NotImplementedError

    def shape(self) -> dict[str, Any]:
        """What decides the memory of a step that is given it."""
        raise NotImplementedError


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
