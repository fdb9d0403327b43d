"""The entry of a data set, datasets/<name>.yaml: its files, its reader, and how it is cut."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from overnight.artifact import DataSpec
from overnight.data import readers
from overnight.data.file_set import FileSet
from overnight.data.rules import TableRules
from overnight.paths import datasets

if TYPE_CHECKING:
    from overnight.data.file_set import Package

Kind = Literal["table", "images", "boxes", "graph", "text", "chats", "pairs"]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def _known_reader(name: str) -> str:
    readers.reader(name)
    return name


class Entry(FileSet):
    KIND: ClassVar[str] = "data set"
    COMMAND: ClassVar[str] = "data"

    kind: Kind
    reader: Annotated[str, AfterValidator(_known_reader)]  # a file of overnight/data/readers/
    options: dict[str, Any] = {}  # of the reader
    # fractions cut off the training part, in this order, where the set has no such split; off: it has none
    splits: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    # a regular expression: samples in whose names it finds the same (in its first bracket) stay in one split
    groups: Annotated[str, AfterValidator(_pattern)] = ""
    strict: bool = False  # refuse what a rule would repair or drop
    rules: dict[str, TableRules] = {}  # by table: what its rows must be like
    # whether a table that differs from the last good one is reported (warn) or refused (stop)
    drift: Literal["off", "warn", "stop"] = "off"
    expected: DataSpec = DataSpec()

    @model_validator(mode="after")
    def _rules_of_tables(self) -> "Entry":
        if self.kind != "table" and (self.rules or self.drift != "off"):
            raise ValueError(f"rules and drift are of tables; this set is of kind {self.kind!r}")
        return self

    @classmethod
    def home(cls) -> Path:
        return datasets()

    @property
    def installed(self) -> "Package | None":
        return readers.package_of(self.reader, self.options)

    def identity(self) -> dict[str, Any]:
        """How it is read and cut, and digests of the files here; of the entry where they are not here."""
        how = self.model_dump(mode="json", include={"kind", "reader", "options", "splits"})
        how |= {"groups": self.groups} if self.groups else {}
        how |= self.model_dump(mode="json", include={"rules"}) if self.rules else {}
        how |= {"strict": True} if self.strict else {}  # whether it is refused is part of the result
        return {**how, **self.file_digests()}

    def shape(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"name", "kind", "reader", "options", "splits"})
