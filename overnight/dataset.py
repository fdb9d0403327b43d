"""A data set: an entry of datasets/ (yaml), the reader of its format, and where its bytes are."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from overnight.artifact import DataSpec
from overnight.config import Values
from overnight.content import Content
from overnight.errors import ConfigError, DataError
from overnight.paths import datasets, shown

Kind = Literal["table", "images", "boxes", "graph", "text"]


class DataFile(Values):
    """One file of a data set, by its path inside the set's folder."""

    path: str
    url: str | None = Field(None, pattern=r"^https://")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    bytes: int | None = Field(None, ge=0)


class Entry(Values):
    """What datasets/<name>.yaml says."""

    name: str
    kind: Kind
    reader: str = Field(description="a file of overnight/readers/")
    folder: str = Field("", description="below $OVERNIGHT_DATA or datasets/; the name when left out")
    files: list[DataFile] = []
    options: dict[str, Any] = Field({}, description="of the reader")
    licence: str = ""
    homepage: str = ""
    about: str = ""
    splits: dict[str, float] = Field({}, description="fractions cut off the training part, in order, where the set has no such split")
    expected: DataSpec = DataSpec()

    def load(self) -> Content:
        """Find, verify and read the files; raises DataError that says what is missing, damaged or odd."""
        from overnight.readers import reader
        from overnight.splits import cut

        form = reader(self.reader)
        content = form.read(self.place(), form.Options.model_validate(self.options), self)
        return cut(content, self.splits)

    def place(self) -> Path:
        """The folder that holds every file of the set."""
        tried = [Path(p) / (self.folder or self.name) for p in (os.environ.get("OVERNIGHT_DATA"), datasets()) if p]
        for folder in tried:
            if self.reader == "package" or (folder.is_dir() and all((folder / f.path).exists() for f in self.files)):
                return folder
        raise DataError(f"data set {self.name!r}: not in {' or '.join(map(shown, tried))}; `overnight data fetch {self.name}`")


def names() -> list[str]:
    """Every data set that has an entry."""
    return sorted(p.stem for p in datasets().glob("*.yaml"))


def entry(name: Any) -> Any:
    """The entry of that name, or ConfigError with the nearest one. An Entry, or its values, passes through."""
    if not isinstance(name, str):
        return name
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown data set {name!r}{hint} (`overnight data ls` lists them; a new one is datasets/{name}.yaml)")
    from overnight.config import read, validate

    values, source = read(datasets() / f"{name}.yaml")
    try:
        return validate(Entry, {"name": name, **values}, source)
    except ConfigError as error:
        raise ValueError("; ".join(error.problems)) from None


Dataset = Annotated[Entry, BeforeValidator(entry)]
"""A config names a data set; the experiment holds its entry."""
