"""A data set by the name of its entry: locate or fetch its files, read them, cut splits, check counts."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import AfterValidator, model_validator

from overnight.artifact import DataSpec
from overnight.config import Source, read, validate
from overnight.data import digests, readers
from overnight.data.content import Boxes, CleaningCounts, Content, Graph, Images, Tables, Texts
from overnight.data.entry import Entry, Kind
from overnight.data.fetch import fetch_missing
from overnight.data.splits import cut
from overnight.errors import ConfigError, DataError
from overnight.paths import datasets, shown

if TYPE_CHECKING:
    from overnight.data.download import Progress

C = TypeVar("C", Tables, Images, Boxes, Graph, Texts)


class Dataset(Entry):
    """A config gives the name of a data set; the experiment holds its entry."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """The values of the entry of that name; raises ValueError with the nearest name."""
        if isinstance(given, Entry) or not isinstance(given, str):
            return given
        try:
            return load_entry(given).model_dump()
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None

    def load(self, progress: "Progress | None" = None) -> Content:
        """Find the files or download them, verify and read them.

        Raises DataError that says what is missing, damaged or not as expected.
        """
        reader = readers.reader(self.reader)
        options = validate(reader.Options, self.options, Source(datasets() / f"{self.name}.yaml"))
        content = cut(reader.read(self.locate(progress), options, self.kind), self.splits)
        check(self.name, self.expected, content)
        return replace(content, cleaned=CleaningCounts(+content.cleaned))

    def load_as(self, wanted: type[C]) -> C:
        """The content, as `load`; raises DataError when it is of another kind."""
        content = self.load()
        if not isinstance(content, wanted):
            holds = type(content).__name__.lower()
            raise DataError(f"data set {self.name!r} holds {holds}, not {wanted.__name__.lower()}")
        return content

    def require_kind(self, kind: Kind, why: str = "") -> Self:
        """The data set itself; raises ValueError when it is of another kind."""
        if self.kind != kind:
            reason = f": {why}" if why else ""
            raise ValueError(f"data set {self.name!r} is of kind {self.kind!r}, expected {kind!r}{reason}")
        return self

    def locate(self, progress: "Progress | None" = None) -> Path:
        """The first folder with every file as the entry says, downloaded if need be. Raises DataError."""
        problems = list[str]()
        for folder in self.found():
            wrong = self.problems(folder)
            if not wrong:
                return folder
            problems = problems or wrong
        if problems:
            raise DataError(problems)
        return fetch_missing(self, progress)


def check(name: str, expected: DataSpec, content: Content) -> None:
    """Raise DataError when counts, sizes or names of classes are not those that the entry gives."""
    counts = _counts(content, expected.counts)
    wrong = [
        f"{s}: {counts.get(s, 0)} (expected {n})"
        for s, n in expected.counts.items()
        if counts and counts.get(s, 0) != n
    ]
    sizes = {"nodes": content.nodes, "edges": content.edges.shape[1]} if isinstance(content, Graph) else {}
    wrong += [
        f"{size}: {n} (expected {getattr(expected, size)})"
        for size, n in sizes.items()
        if getattr(expected, size) not in (0, n)
    ]
    classes = () if isinstance(content, Tables) else tuple(content.classes)
    if expected.classes and classes and classes != expected.classes:
        wrong.append(f"classes: {', '.join(classes)} (expected {', '.join(expected.classes)})")
    if wrong:
        raise DataError(
            f"data set {name!r} is not what its entry expects: {'; '.join(wrong)}; get the whole set, or "
            "correct the entry"
        )


def _counts(content: Content, wanted: Mapping[str, int]) -> dict[str, int]:
    """Samples by split, or rows by table (of those wanted alone: they must be counted)."""
    if isinstance(content, Tables):
        import polars as pl

        frames = {name: frame for name, frame in content.frames.items() if name in wanted}
        return {name: int(frame.select(pl.len()).collect().item()) for name, frame in frames.items()}
    if isinstance(content, Graph):
        return {split: int(mask.sum()) for split, mask in content.masks.items()}
    return {split: len(items) for split, items in content.splits.items()}


# ------------------------------------------------------------------------------------------------ entries by
# name


def of_kind(kind: Kind) -> AfterValidator:
    """What annotates a config's field that takes data sets of one kind alone."""
    return AfterValidator(lambda data: data.require_kind(kind))


def names() -> list[str]:
    """Every data set that has an entry."""
    return sorted(p.stem for p in datasets().glob("*.yaml"))


def load_entry(name: str) -> Dataset:
    """The entry of that name, its reader's options checked too.

    Raises ConfigError with every mistake, or with the nearest name.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"unknown data set {name!r}{hint} (`overnight data ls` lists them; a new one is "
            f"datasets/{name}.yaml)"
        )
    values, source = read(datasets() / f"{name}.yaml")
    problems, found = list[str](), None
    try:
        found = validate(Dataset, {"name": name, **values}, source)
    except ConfigError as error:
        problems += error.problems
    problems += _option_problems(values, source)
    if problems or found is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return found


def _option_problems(values: dict[str, Any], source: Source) -> list[str]:
    """Mistakes in the options, each with its line, as the reader of the entry sees them."""
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


# ------------------------------------------------------------------------------------------------ for the
# command line


def listing() -> list[dict[str, Any]]:
    """A row for each entry: name, kind, reader, where its files are, MB, licence. Hashes nothing."""
    return [_row(name) for name in names()]


def _row(name: str) -> dict[str, Any]:
    try:
        found = load_entry(name)
    except ConfigError as error:
        wrong = f"the entry is wrong: {error.problems[0]}"
        return {"name": name, "kind": "", "reader": "", "where": wrong, "MB": None, "licence": ""}
    try:
        folder = next(iter(found.found()), None)
        where = readers.source(found.reader, found.options) or (shown(folder) if folder else "not here")
    except DataError as error:
        folder = None
        where = str(error)
    known = sum(file.bytes or 0 for file in found.files)
    here = sum(digests.size(folder / file.path) for file in found.files) if folder else 0
    return {
        "name": name,
        "kind": found.kind,
        "reader": found.reader,
        "where": where,
        "MB": round((here or known) / 1e6, 1) or None,
        "licence": found.licence,
    }


def fetch(name: str, progress: "Progress | None" = None) -> str:
    """Download what is missing or damaged, verify everything; returns where it is. Raises DataError."""
    found = load_entry(name)
    for folder in found.found():
        if not found.problems(folder):
            return shown(folder)
    return shown(fetch_missing(found, progress))


def verify(name: str) -> list[str]:
    """Every file hashed anew against the entry, and the set read once; what is wrong, or nothing."""
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
