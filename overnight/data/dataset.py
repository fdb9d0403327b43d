"""A data set: an entry of datasets/ (yaml), the reader of its format, and where its bytes are."""

import difflib
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from overnight.artifact import DataSpec
from overnight.config import Source, Values, read, validate
from overnight.data.content import Content, Handled
from overnight.errors import ConfigError, DataError
from overnight.paths import datasets, root, shown

if TYPE_CHECKING:
    from overnight.data.download import Progress

Kind = Literal["table", "images", "boxes", "graph", "text"]


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must be a path inside the set's folder")
    return path


def _known_reader(name: str) -> str:
    from overnight.data.readers import reader

    reader(name)
    return name


Url = Annotated[str, Field(pattern=r"^(https://|http://127\.0\.0\.1[:/])")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Inside = Annotated[str, AfterValidator(_inside)]


class DataFile(Values):
    """One file of a data set by its path inside the set's folder, or a whole folder when the path ends with /."""

    path: Inside
    url: Url | None = None
    sha256: Sha256 | list[Sha256] = Field(
        [], description="several: each will do. Of a folder: of what `sha256sum *` prints in it"
    )
    bytes: int | None = Field(None, ge=0)

    @property
    def digests(self) -> tuple[str, ...]:
        """What the file may have; empty when the entry does not say."""
        return (self.sha256,) if isinstance(self.sha256, str) else tuple(self.sha256)


class Archive(Values):
    """A tar or zip that brings the files that have no url of their own; a copy that lies in the set's folder is used instead."""

    url: Url
    sha256: Sha256 | None = None
    bytes: int | None = Field(None, ge=0)
    inside: str = Field(
        "", description="the folder of the archive that holds the files; * stands for any one name"
    )
    limit: int = Field(50 * 10**9, gt=0, description="bytes it may unpack to")

    @property
    def name(self) -> str:
        """What the file is called."""
        return PurePosixPath(self.url.partition("?")[0]).name

    @property
    def digests(self) -> tuple[str, ...]:
        """What it may have; empty when the entry does not say."""
        return (self.sha256,) if self.sha256 else ()


class Entry(Values):
    """What datasets/<name>.yaml says."""

    name: str
    kind: Kind
    reader: Annotated[str, AfterValidator(_known_reader)] = Field(
        description="a file of overnight/data/readers/"
    )
    folder: Inside = Field("", description="below $OVERNIGHT_DATA or datasets/; the name when left out")
    files: list[DataFile] = Field([], description="what must be there; empty: whatever is in the folder")
    archives: list[Archive] = []
    options: dict[str, Any] = Field({}, description="of the reader")
    splits: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        {}, description="fractions cut off the training part, in this order, where the set has no such split"
    )
    licence: str = ""
    homepage: str = ""
    about: str = ""
    expected: DataSpec = DataSpec()

    @model_validator(mode="after")
    def _archives_bring_files(self) -> Self:
        if self.archives and not self.files:
            raise ValueError(
                "archives need `files`: which files (or folders, with / at the end) of them belong to the set"
            )
        return self

    def load(self, progress: "Progress | None" = None) -> Content:
        """Find the files (or download them), verify and read them; raises DataError that says what is missing, damaged or odd."""
        from overnight.data.expected import check
        from overnight.data.readers import reader
        from overnight.data.splits import cut

        form = reader(self.reader)
        options = validate(form.Options, self.options, Source(datasets() / f"{self.name}.yaml"))
        content = cut(form.read(self.place(progress), options, self), self.splits)
        check(self.name, self.expected, content)
        return replace(content, handled=Handled(+content.handled))

    def homes(self) -> list[Path]:
        """Where the files may be, in the order of looking; the last is where downloads go."""
        if self.reader == "package":
            from overnight.data.readers.package import home

            return [home(self.options)]
        return [place / (self.folder or self.name) for place in (*shared(), datasets())]

    def found(self) -> list[Path]:
        """The folders that hold every file; nothing is verified."""
        return [h for h in self.homes() if h.is_dir() and all((h / f.path).exists() for f in self.files)]

    def place(self, progress: "Progress | None" = None) -> Path:
        """The first folder with every file as the entry says, after a download if need be; raises DataError when there is none."""
        problems = list[str]()
        for home in self.found():
            wrong = self.problems(home)
            if not wrong:
                return home
            problems = problems or wrong
        if problems:
            raise DataError(problems)
        from overnight.data.locate import obtain

        return obtain(self, progress)

    def problems(self, home: Path) -> list[str]:
        """What is not as the entry says: size first, digest when the size is right."""
        return [wrong for file in self.files if (wrong := self.problem(home, file))]

    def problem(self, home: Path, file: DataFile) -> str:
        """What is wrong with one file; empty when nothing is."""
        from overnight.data import digests

        path = home / file.path
        anew = (
            f"`overnight data fetch {self.name}` gets it anew" if file.url or self.archives else "get it anew"
        )
        if not path.exists():
            return f"{shown(path)}: there is no such file; {anew}"
        try:
            size = digests.size(path)
            if file.bytes is not None and size != file.bytes:
                return f"{shown(path)}: {size} bytes, expected {file.bytes}: cut short or changed; {anew}"
            if file.digests and (found := digests.sha256(path)) not in file.digests:
                return f"{shown(path)}: sha256 {found}, expected {' or '.join(file.digests)}: damaged or changed; {anew}"
        except OSError as error:
            return f"{shown(path)}: cannot be read: {error.strerror}; check its permissions and its disk"
        return ""

    def identity(self) -> dict[str, Any]:
        """What decides the content: how it is read and cut, and the digests of its files (of those here, when the entry names none)."""
        from overnight.data import digests

        how = self.model_dump(mode="json", include={"kind", "reader", "options", "splits"})
        if self.reader == "package":
            from overnight.data.readers.package import release

            return {**how, "package": release(self.options)}
        home = next(iter(self.found()), None)
        files = {
            f.path: next(iter(f.digests), None) or (home and digests.sha256(home / f.path))
            for f in self.files
        }
        return {**how, "files": files or {".": home and digests.sha256(home)}}


# ------------------------------------------------------------------------------------------------ entries by name


def shared() -> list[Path]:
    """The folder $OVERNIGHT_DATA names, if it is set; relative: to here, else to the checkout. Raises DataError."""
    given = os.environ.get("OVERNIGHT_DATA")
    if not given:
        return []
    found = [place for place in (Path(given), root() / given) if place.is_dir()]
    if not found:
        raise DataError(
            f"OVERNIGHT_DATA={given}: there is no such folder; name the one that holds the folders of the sets, or unset it"
        )
    return found[:1]


def names() -> list[str]:
    """Every data set that has an entry."""
    return sorted(p.stem for p in datasets().glob("*.yaml"))


def entry(name: Any) -> Any:
    """The entry of that name; raises ValueError with the nearest one. An Entry, or its values, passes through."""
    if not isinstance(name, str):
        return name
    try:
        return load_entry(name)
    except ConfigError as error:
        raise ValueError("; ".join(error.problems)) from None


def load_entry(name: str) -> Entry:
    """The entry of that name, its reader's options checked too; raises ConfigError with every mistake, or with the nearest name."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"unknown data set {name!r}{hint} (`overnight data ls` lists them; a new one is datasets/{name}.yaml)"
        )
    values, source = read(datasets() / f"{name}.yaml")
    problems, found = list[str](), None
    try:
        found = validate(Entry, {"name": name, **values}, source)
    except ConfigError as error:
        problems += error.problems
    problems += _option_problems(values, source)
    if problems or found is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return found


def _option_problems(values: dict[str, Any], source: Source) -> list[str]:
    """Mistakes in the options, each with its line, as the reader of the entry sees them."""
    from overnight.data import readers

    options = values.get("options") or {}
    if values.get("reader") not in readers.names() or not isinstance(options, dict):
        return []
    inner = Source(source.path)
    inner.places = {
        key.removeprefix("options."): place
        for key, place in source.places.items()
        if key.startswith("options.")
    }
    inner.places[""] = source.at(("options",))
    try:
        validate(readers.reader(values["reader"]).Options, options, inner)
    except ConfigError as error:
        return error.problems
    return []


Dataset = Annotated[Entry, BeforeValidator(entry)]
"""A config names a data set; the experiment holds its entry."""


# ------------------------------------------------------------------------------------------------ for the command line


def listing() -> list[dict[str, Any]]:
    """A row for each entry: name, kind, reader, where its files are, MB, licence. Hashes nothing."""
    return [_row(name) for name in names()]


def _row(name: str) -> dict[str, Any]:
    from overnight.data import digests

    try:
        found = load_entry(name)
    except ConfigError as error:
        return {
            "name": name,
            "kind": "",
            "reader": "",
            "where": f"the entry is wrong: {error.problems[0]}",
            "MB": None,
            "licence": "",
        }
    try:
        home = next(iter(found.found()), None)
    except DataError as error:
        home, where = None, str(error)
    else:
        where = (
            f"package {found.options['module']}"
            if found.reader == "package"
            else shown(home)
            if home
            else "not here"
        )
    known = sum(f.bytes or 0 for f in found.files)
    here = sum(digests.size(home / f.path) for f in found.files) if home else 0
    mb = round((here or known) / 1e6, 1) or None
    return {
        "name": name,
        "kind": found.kind,
        "reader": found.reader,
        "where": where,
        "MB": mb,
        "licence": found.licence,
    }


def fetch(name: str, progress: "Progress | None" = None) -> str:
    """Download what is missing or damaged, verify everything; where it is. Raises DataError."""
    from overnight.data.locate import obtain

    found = load_entry(name)
    for home in found.found():
        if not found.problems(home):
            return shown(home)
    return shown(obtain(found, progress))


def verify(name: str) -> list[str]:
    """Every file hashed anew against the entry, and the set read once; what is wrong, or nothing."""
    from overnight.data import digests

    found = load_entry(name)
    try:
        if not found.found():
            return [f"not here; `overnight data fetch {name}`"]
        for file in found.files:
            digests.forget(found.found()[0] / file.path)
        found.load()
    except (DataError, ConfigError) as error:
        return error.problems
    return []
