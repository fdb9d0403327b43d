"""A graph as a csv of edges, with optional features and targets.

Features: json, id -> feature ids or values. Targets: csv, id -> class.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from overnight.config import Values
from overnight.data.archives import plain
from overnight.data.content import CleaningCounts, Features, Graph
from overnight.data.readers._common import (
    Classes,
    Delimiter,
    cleaned_edges,
    count_empty,
    expect,
    present,
    require,
    text,
)
from overnight.errors import DataError, file_error, one_line
from overnight.paths import shown

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


LONGEST = 100  # digits of an id that is read as a number


class _Csv(Values):
    COLUMNS: ClassVar[tuple[str, str]]
    file: str
    delimiter: Delimiter = ","

    @property
    def columns(self) -> tuple[str, str]:
        first, second = self.COLUMNS
        return getattr(self, first), getattr(self, second)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.columns)) < 2:
            raise ValueError(f"{' and '.join(self.COLUMNS)} must be two columns")
        return self


class Edges(_Csv):
    COLUMNS = ("source", "target")
    source: str
    target: str


class Targets(_Csv):
    COLUMNS = ("id", "label")
    id: str
    label: str


class Options(Values):
    """Ids are text: any unique name will do."""

    edges: Edges
    features: str | None = None  # json: {"id": [feature ids]} or {"id": {"feature id": value}}
    vectors: bool = False  # the lists of the features are values, one for each feature, instead of ids
    targets: Targets | None = None
    classes: Classes = []  # in the order of their indices; the sorted names that occur when left out


def read(folder: Path, options: Options, _kind: str) -> Graph:
    """Nodes are all ids of all files: numbers in their order, then names in theirs."""
    import numpy as np
    import polars as pl

    cleaned = CleaningCounts()
    table = _table(folder, options.edges)
    whole = table.drop_nulls()
    cleaned["edge without both ends dropped"] += table.height - whole.height
    bags = _bags(present(folder, options.features)) if options.features else {}
    names = _names(folder, options.targets, cleaned) if options.targets else {}
    ends = whole.get_columns()
    index = _index(*(end.unique().to_list() for end in ends), bags, names)
    codes = np.stack([end.replace_strict(index, return_dtype=pl.Int64).to_numpy() for end in ends])
    edges = cleaned_edges(codes, len(index), cleaned, shown(folder / options.edges.file))
    features = None
    if options.features:
        where = shown(folder / options.features)
        pairs = {node: _pairs(bag, options.vectors, where, node) for node, bag in bags.items()}
        features = _features(pairs, index, cleaned)
    labels, classes = _labels(names, options, index, cleaned, folder)
    count_empty(classes, labels.tolist(), cleaned)
    ids = () if list(index) == list(map(str, range(len(index)))) else tuple(index)
    return Graph(edges, len(index), features, labels, classes, {}, cleaned, ids=ids)


def _table(folder: Path, options: _Csv) -> "pl.DataFrame":
    """Two columns as text without blanks around; an empty field is null."""
    import polars as pl

    path = present(folder, options.file)
    try:
        file = expect(plain(path), "csv", path)
        frame = pl.read_csv(file, infer_schema=False, separator=options.delimiter, encoding="utf8")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise file_error(path, f"expected a csv file: {one_line(error)}") from None
    require(path, options.columns, frame.columns)
    stripped = frame.select(pl.col(c).str.strip_chars() for c in options.columns)
    return stripped.with_columns(pl.when(pl.all() != "").then(pl.all()))


def _bags(path: Path) -> dict[str, Any]:
    try:
        bags = json.loads(text(path))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise file_error(path, f"expected json: {error}; get it anew, or correct the entry") from None
    if not isinstance(bags, dict):
        raise file_error(
            path, f"expected json of the form {{id: [feature ids]}}, found a {type(bags).__name__}"
        )
    return {key.strip(): bag for key, bag in bags.items()}


def _names(folder: Path, options: Targets, cleaned: CleaningCounts) -> dict[str, str | None]:
    """The class name by id; None where the field is empty."""
    import polars as pl

    table = _table(folder, options)
    rows = table.drop_nulls(options.id)
    pairs = rows.unique(maintain_order=True)
    twice = pairs.filter(pl.col(options.id).is_duplicated()).sort(options.id, maintain_order=True)
    if twice.height:
        (node, first), (_, second) = twice.rows()[:2]
        raise file_error(
            folder / options.file, f"node {node!r} has two classes, {first!r} and {second!r}; keep one"
        )
    cleaned["target without an id dropped"] += table.height - rows.height
    cleaned["repeated target dropped"] += rows.height - pairs.height
    return dict(pairs.rows())


def _index(*ids: Iterable[str]) -> dict[str, int]:
    """Numeric ids in their order, then the others as text."""
    every = sorted(
        {i for some in ids for i in some},
        key=lambda i: (0, int(i), i) if i.isdecimal() and len(i) < LONGEST else (1, 0, i),
    )
    return {name: at for at, name in enumerate(every)}


def _features(pairs: dict[str, dict[str, float]], index: dict[str, int], cleaned: CleaningCounts) -> Features:
    """CSR; a node without features has a row of zeros. Numeric ids without large gaps are the columns."""
    import numpy as np

    wide = {f for bag in pairs.values() for f in bag}
    close = all(f.isdecimal() and len(f) < LONGEST and int(f) < 10 * len(wide) + 1000 for f in wide)
    column = {f: int(f) if close else i for i, f in enumerate(sorted(wide))}
    rows = [sorted((column[f], v) for f, v in pairs.get(node, {}).items()) for node in index]
    cleaned["node without features given zeros"] += sum(not row for row in rows)
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    flat = [pair for row in rows for pair in row]
    # A value too large for a float becomes infinite; the user of the features counts and replaces it.
    with np.errstate(over="ignore"):
        data = np.array([v for _, v in flat], dtype=np.float32)
    indices = np.array([i for i, _ in flat], dtype=np.int64)
    return data, indices, indptr, (len(index), max(column.values(), default=-1) + 1)


def _pairs(bag: Any, vectors: bool, where: str, node: str) -> dict[str, float]:
    """Value by feature id; a list of ids means 1 for each (a repeated one still 1)."""
    if isinstance(bag, list) and not vectors and all(isinstance(f, int | str) for f in bag):
        return dict.fromkeys(map(str, bag), 1.0)
    if isinstance(bag, list) and vectors:
        bag = dict(enumerate(bag))
    if isinstance(bag, dict) and all(isinstance(v, int | float) for v in bag.values()):
        return {str(f): _number(v) for f, v in bag.items()}
    raise DataError(
        f"{where}: node {node!r} has features of an unknown form; expected [feature ids] or {{feature id: "
        f"value}}, or set vectors"
    )


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _labels(
    names: dict[str, str | None],
    options: Options,
    index: dict[str, int],
    cleaned: CleaningCounts,
    folder: Path,
) -> "tuple[np.ndarray, tuple[str, ...]]":
    import numpy as np

    found = {name for name in names.values() if name is not None}
    classes = tuple(options.classes or sorted(found))
    at = {name: i for i, name in enumerate(classes)}
    unknown = sorted(found - set(classes))
    if unknown:
        file = folder / (options.targets.file if options.targets else "")
        raise file_error(file, f"class {unknown[0]!r} is not among the entry's classes: {', '.join(classes)}")
    labels = np.array([at.get(names.get(node) or "", -1) for node in index], dtype=np.int64)
    cleaned["unlabelled node kept"] += int((labels < 0).sum()) if options.targets else 0
    return labels, classes
