"""A data set by the name of its entry: locate or fetch its files, read them, cut splits, check counts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from pydantic import AfterValidator, model_validator

from overnight.artifact import DataSpec
from overnight.config import Source, Values, read, validate
from overnight.data import digests, readers
from overnight.data.content import (
    Boxes,
    Chats,
    CleaningCounts,
    Content,
    Graph,
    Images,
    Pairs,
    Tables,
    Texts,
)
from overnight.data.entry import Entry, Kind
from overnight.data.fetch import located
from overnight.data.splits import cut, with_groups
from overnight.errors import ConfigError, DataError, did_you_mean
from overnight.paths import datasets, shown

if TYPE_CHECKING:
    import polars as pl

C = TypeVar("C", Tables, Images, Boxes, Graph, Texts, Chats, Pairs)


class Dataset(Entry):
    """A config gives the name of a data set; the experiment holds its entry."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, Entry) or not isinstance(given, str):
            return given
        try:
            return load_entry(given).model_dump()
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None

    def load(self) -> Content:
        """Raises DataError that says what is missing, damaged or not as expected."""
        reader = readers.reader(self.reader)
        options = validate(reader.Options, self.options, Source(datasets() / f"{self.name}.yaml"))
        content = with_groups(reader.read(self.locate(), options, self.kind), self.groups)
        content = cut(content, self.splits)
        check(self.name, self.expected, content)
        self.refuse(content.cleaned)
        return replace(content, cleaned=+content.cleaned)

    def refuse(self, cleaned: CleaningCounts) -> None:
        """Raises DataError for what a rule repaired or dropped, where the entry says `strict: true`.

        What is kept as it is, and said, is no repair.
        """
        applied = {rule: n for rule, n in cleaned.items() if n and not rule.endswith(" kept")}
        if not self.strict or not applied:
            return
        where = {rule: f" (first: {cleaned.first[rule]})" for rule in applied if rule in cleaned.first}
        found = [f"{rule}: {n}{where.get(rule, '')}" for rule, n in sorted(applied.items())]
        raise DataError(
            [f"data set {self.name!r} is strict: {line}; mend it, or remove `strict`" for line in found]
        )

    def schemas(self) -> "dict[str, tuple[pl.Schema, bool]]":
        """{table: (its columns, whether their types are certain)}, as files that are here begin."""
        folder = next(iter(self.found()), None)
        if folder is None:
            return {}
        source = Source(datasets() / f"{self.name}.yaml")
        return readers.schemas_of(
            self.reader, folder, validate(readers.reader(self.reader).Options, self.options, source)
        )

    def load_as(self, wanted: type[C]) -> C:
        """Raises DataError when it is of another kind."""
        content = self.load()
        if not isinstance(content, wanted):
            holds = type(content).__name__.lower()
            raise DataError(f"data set {self.name!r} holds {holds}, not {wanted.__name__.lower()}")
        return content

    def require_kind(self, kind: Kind, why: str = "") -> Self:
        """Raises ValueError when it is of another kind."""
        if self.kind != kind:
            reason = f": {why}" if why else ""
            raise ValueError(f"data set {self.name!r} is of kind {self.kind!r}, expected {kind!r}{reason}")
        return self

    def locate(self, replace_damaged: bool = False) -> Path:
        """The first folder with every file as the entry says, downloaded if need be. Raises DataError."""
        return located(self, replace_damaged)


def check(name: str, expected: DataSpec, content: Content) -> None:
    """Raises DataError when counts, sizes or names of classes are not those that the entry gives."""
    there = _counts(content, expected.counts)
    wanted = dict(expected.counts) if there else {}
    if isinstance(content, Graph):
        there |= {"nodes": content.nodes, "edges": content.edges.shape[1]}
        sizes = {"nodes": expected.nodes, "edges": expected.edges}
        wanted |= {size: n for size, n in sizes.items() if n}
    wrong = [f"{k}: {there.get(k, 0)} (expected {n})" for k, n in wanted.items() if there.get(k, 0) != n]
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
        # Without an import of Polars: the key of every step that reads a set would have its version.
        frames = {name: frame for name, frame in content.frames.items() if name in wanted}
        unknown = {name: frame for name, frame in frames.items() if name not in content.rows}
        count = "SELECT COUNT(*) FROM self"
        counted = {name: int(frame.sql(count).collect().item()) for name, frame in unknown.items()}
        return {**content.rows, **counted}
    if isinstance(content, Graph):
        return {split: int(mask.sum()) for split, mask in content.masks.items()}
    return {split: len(items) for split, items in content.splits.items()}


def of_kind(kind: Kind) -> AfterValidator:
    """What annotates a config's field that takes data sets of one kind alone."""
    return AfterValidator(lambda data: data.require_kind(kind))


def names() -> list[str]:
    return sorted(p.stem for p in datasets().glob("*.yaml"))


def load_entry(name: str) -> Dataset:
    """Its reader's options are checked too. Raises ConfigError with every mistake."""
    if name not in names():
        raise ConfigError(
            f"unknown data set {name!r}{did_you_mean(name, names())} (`overnight data ls` lists them; a new "
            f"one is datasets/{name}.yaml)"
        )
    values, source = read(datasets() / f"{name}.yaml")
    options = values.get("options") or {}
    checks: list[tuple[type[Values], dict[str, Any], tuple[str, ...]]] = [
        (Dataset, {"name": name, **values}, ())
    ]
    if values.get("reader") in readers.names() and isinstance(options, dict):
        checks.append((readers.reader(values["reader"]).Options, options, ("options",)))
    found, problems = list[Any](), list[str]()
    for model, given, below in checks:
        try:
            found.append(validate(model, given, source, below))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return cast("Dataset", found[0])


def listing() -> list[dict[str, Any]]:
    """A row for each entry; hashes nothing."""
    return [_row(name) for name in names()]


def _row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "kind": "",
        "reader": "",
        "where": "not here",
        "MB": None,
        "licence": "",
    }
    try:
        entry = load_entry(name)
        row |= {"kind": entry.kind, "reader": entry.reader, "licence": entry.licence}
        size = sum(file.bytes or 0 for file in entry.files)
        for folder in entry.found()[:1]:
            row["where"] = entry.installed.name if entry.installed else shown(folder)
            size = sum(digests.size(folder / file.path) for file in entry.files) or size
        row["MB"] = round(size / 1e6, 1) or None
    except ConfigError as error:
        row["where"] = f"the entry is wrong: {error.problems[0]}"
    except DataError as error:
        row["where"] = str(error)
    return row


def fetch(name: str) -> str:
    """Download what is missing or damaged; returns where it is. Raises DataError."""
    return shown(load_entry(name).locate(replace_damaged=True))


def verify(name: str) -> list[str]:
    """What is wrong: every file is hashed anew, and the set read once."""
    entry = load_entry(name)
    try:
        if not entry.found():
            return [f"not here; `overnight data fetch {name}`"]
        for file in entry.files:
            digests.forget(entry.found()[0] / file.path)
        content = entry.load()
        problem = content.misfit() if isinstance(content, Tables) else None
    except (DataError, ConfigError) as error:
        return error.problems
    return problem.problems if problem else []
