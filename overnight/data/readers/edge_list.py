"""A graph as a csv of edges, with optional features and targets.

Features: json, id -> feature ids or values; or columns of a csv. Targets: csv, id -> class.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from overnight.config import Values
from overnight.data.content import CleaningCounts, Features, Graph, as_float32
from overnight.data.readers._common import (
    Classes,
    check_met,
    cleaned_edges,
    count_alike,
    count_empty,
    present,
    text,
)
from overnight.data.readers._edge_tables import Column, Csv, numbers, table_of
from overnight.errors import DataError, file_error
from overnight.paths import shown

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

NUMBER = re.compile(r"\+?0*(\d*?)(?:\.0*)?")  # a whole number, however it is written
LARGEST = float.fromhex("0x1.fffffep127")  # that float32 holds
LONGEST = 100  # digits of an id that is read as a number
MISSING = [
    "NaN",
    "nan",
    "<NA>",
    "NA",
    "N/A",
    "null",
    "NULL",
    "None",
]  # how programs write that there is no label


class Edges(Csv):
    COLUMNS: ClassVar = ("source", "target")
    source: Column
    target: Column
    weight: Column | None = None  # of numbers above 0; every edge counts the same when left out


class Targets(Csv):
    COLUMNS: ClassVar = ("id", "label")
    id: Column
    label: Column
    nulls: list[str] = MISSING  # labels that say that there is none


class Described(Csv):
    COLUMNS: ClassVar = ("id",)
    id: Column
    columns: list[Column] = []  # of numbers; all but the id when left out


class Options(Values):
    """Ids are text: any unique name will do."""

    edges: Edges
    # json: {"id": [feature ids]} or {"id": {"feature id": value}}; or columns of numbers in a csv
    features: str | Described | None = None
    vectors: bool = False  # the lists of the json are values, one for each feature, instead of ids
    targets: Targets | None = None
    classes: Classes = []  # in the order of their indices; the sorted names that occur when left out

    @model_validator(mode="after")
    def _vectors_of_json(self) -> Self:
        if self.vectors and not isinstance(self.features, str):
            raise ValueError("vectors says how the lists of a json are read; the features are no json")
        return self


def read(folder: Path, options: Options, _kind: str) -> Graph:
    """Nodes are all ids of all files: numbers in their order, then names in theirs.

    Raises DataError when the files share less than half of their ids, and when no edge is left.
    """
    import numpy as np
    import polars as pl

    cleaned = CleaningCounts()
    table, weights = _edges(folder, options.edges, cleaned)
    ends = table.select(options.edges.keys).get_columns()
    linked = {*ends[0].unique().to_list(), *ends[1].unique().to_list()}
    described = _described(folder, options, cleaned)
    names = _names(folder, options.targets, cleaned, options.classes) if options.targets else {}
    where = folder / options.edges.file
    _check_meet(where, linked, described, "features", cleaned)
    _check_meet(where, linked, names, "targets", cleaned)
    index = _index(linked, described, names)
    _count_alike_ids(index, cleaned)
    codes = np.stack([end.replace_strict(index, return_dtype=pl.Int64).to_numpy() for end in ends])
    edges = cleaned_edges(codes, len(index), cleaned, shown(where))
    if not edges.size:
        raise file_error(where, f"no edge between two nodes is left of {len(ends[0])}; get the right file")
    if weights is not None:
        weights = _weights_of(codes, weights, len(index), cleaned)
    features = _features(described, index, options, cleaned, folder)
    labels, classes = _labels(names, options, index, cleaned, folder)
    ids = () if list(index) == list(map(str, range(len(index)))) else tuple(index)
    return Graph(edges, len(index), features, labels, classes, {}, cleaned, weights, ids)


def _edges(folder: Path, options: Edges, cleaned: CleaningCounts) -> "tuple[pl.DataFrame, np.ndarray | None]":
    """Both ends as text, and float64 weights above 0."""
    import polars as pl

    weight = [options.weight] if options.weight is not None else []
    table = table_of(folder, options, [*options.keys, *weight])
    for name in weight:
        values = numbers(table, [name], folder / options.file)[name]
        odd = (values < 0) | (values > LARGEST)
        if odd.any():
            row = odd.arg_max() or 0
            raise file_error(
                folder / options.file,
                f"row {row + 1}: the weight is {values[row]:g}, expected a number above 0 that float32 holds",
            )
        table = table.with_columns(values.alias("\0weight"))
    whole = table.drop_nulls(options.keys)
    cleaned["edge without both ends dropped"] += table.height - whole.height
    if not weight:
        return whole, None
    held = pl.col("\0weight").cast(pl.Float32) > 0
    weighted = whole.filter(held)
    cleaned["edge without a weight dropped"] += whole["\0weight"].null_count()
    cleaned["edge of weight 0 dropped"] += int(whole.select((~held).sum()).item() or 0)
    return weighted, weighted["\0weight"].to_numpy()


def _weights_of(
    codes: "np.ndarray", weights: "np.ndarray", nodes: int, cleaned: CleaningCounts
) -> "np.ndarray":
    """Float32 (E,), in the order of cleaned_edges: of a repeated edge the first."""
    import numpy as np

    linked = codes[0] != codes[1]
    names = codes.min(axis=0)[linked] * max(nodes, 1) + codes.max(axis=0)[linked]
    _, first, which = np.unique(names, return_index=True, return_inverse=True)
    kept: np.ndarray = weights[linked][first]
    cleaned["repeated edge of another weight dropped"] += int((weights[linked] != kept[which]).sum())
    return kept.astype(np.float32)


def _count_alike_ids(index: Iterable[str], cleaned: CleaningCounts) -> None:
    """Ids such as 1.0 or 01 beside 1, or an accent in two forms, are nodes of their own, and named."""
    known = set(index)
    for name in index:
        match = NUMBER.fullmatch(name)
        plain = (match[1] or "0") if match else unicodedata.normalize("NFC", name)
        if plain != name and plain in known:
            cleaned.at("id that is another one written otherwise kept", name)


def _check_meet(
    where: Path, linked: set[str], others: Iterable[str], what: str, cleaned: CleaningCounts
) -> None:
    """Count ids of the other file without an edge. Raises DataError when less than half of the ids meet."""
    theirs = set(others)
    if not theirs:
        return
    alone = sorted(theirs - linked)
    met = len(theirs) - len(alone)
    if alone:
        cleaned[f"node of the {what} without an edge kept"] += len(alone)
    said = (
        f"{{met}} of {{whole}} ids of the {what} are in the edges; they must be written alike (1 is not 1.0)"
    )
    check_met(met, min(len(linked), len(theirs)), where, said, sorted(linked - theirs), alone)


def _bags(path: Path) -> dict[str, Any]:
    try:
        bags = json.loads(text(path), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise file_error(path, f"expected json: {error}; get it anew, or correct the entry") from None
    if not isinstance(bags, dict):
        raise file_error(
            path, f"expected json of the form {{id: [feature ids]}}, found a {type(bags).__name__}"
        )
    found = {key.strip(): bag for key, bag in bags.items()}
    if len(found) < len(bags):
        raise file_error(path, "two of its ids differ by blanks around them alone; keep one of each")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a key that stands twice."""
    found = dict(pairs)
    twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} stands twice; keep one")
    return found


def _check_lengths(bags: dict[str, Any], where: str) -> None:
    """Raises DataError for vectors of unequal length, with the first that differs."""
    lengths = {node: len(bag) for node, bag in bags.items() if isinstance(bag, list)}
    if not lengths:
        return
    first, length = next(iter(lengths.items()))
    for node, other in lengths.items():
        if other != length:
            raise DataError(
                f"{where}: node {node!r} has {other} values, node {first!r} has {length}; vectors are of one "
                "length"
            )


def _described(folder: Path, options: Options, cleaned: CleaningCounts) -> dict[str, Any]:
    """By the id of a node: what a json says of it, or its row of numbers, float32 (F,)."""
    import polars as pl

    if options.features is None:
        return {}
    if isinstance(options.features, str):
        return _bags(present(folder, options.features))
    given = options.features
    table = table_of(folder, given, [*given.keys, *given.columns] if given.columns else [])
    columns = given.columns or [name for name in table.columns if name != given.id]
    rows = table.drop_nulls(given.id)
    cleaned["features without an id dropped"] += table.height - rows.height
    pairs = rows.unique(maintain_order=True)
    cleaned["repeated features dropped"] += rows.height - pairs.height
    twice = pairs.filter(pl.col(given.id).is_duplicated())
    if twice.height:
        raise file_error(
            folder / given.file, f"node {twice[given.id][0]!r} has features in two rows; keep one"
        )
    values = numbers(table, columns, folder / given.file)
    cleaned["missing feature kept"] += values.null_count().sum_horizontal()[0]
    found = numbers(pairs, columns, folder / given.file).fill_null(math.nan).to_numpy()
    return dict(zip(pairs[given.id], as_float32(found, cleaned), strict=True))


def _names(
    folder: Path, options: Targets, cleaned: CleaningCounts, classes: Sequence[str]
) -> dict[str, str | None]:
    """The class name by id; None where there is none."""
    import polars as pl

    table = table_of(folder, options, options.keys)
    rows = table.drop_nulls(options.id)
    label = pl.col(options.label)
    for name in sorted(set(options.nulls) - set(classes)):
        cleaned[f"label {name!r} read as missing"] += int((rows[options.label] == name).sum())
    rows = rows.with_columns(pl.when(~label.is_in(sorted(set(options.nulls) - set(classes)))).then(label))
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


def _features(
    described: dict[str, Any], index: dict[str, int], options: Options, cleaned: CleaningCounts, folder: Path
) -> Features:
    """Dense of a csv, CSR of a json; a node without features has a row of zeros."""
    import numpy as np

    if options.features is None:
        return None
    if isinstance(options.features, str):
        where = shown(folder / options.features)
        if options.vectors:
            _check_lengths(described, where)
        pairs = {node: _pairs(bag, options.vectors, where, node) for node, bag in described.items()}
        return _sparse(pairs, index, cleaned)
    cleaned["node without features given zeros"] += len(index) - len(described)
    width = len(next(iter(described.values()), ()))
    found = np.zeros((len(index), width), np.float32)
    for node, row in described.items():
        found[index[node]] = row
    return found


def _sparse(pairs: dict[str, dict[str, float]], index: dict[str, int], cleaned: CleaningCounts) -> Features:
    """CSR; a node without features has a row of zeros. Numeric ids without large gaps are the columns."""
    import numpy as np

    wide = {f for bag in pairs.values() for f in bag}
    close = all(f.isdecimal() and len(f) < LONGEST and int(f) < 10 * len(wide) + 1000 for f in wide)
    column = {f: int(f) if close else i for i, f in enumerate(sorted(wide))}
    rows = [sorted((column[f], v) for f, v in pairs.get(node, {}).items()) for node in index]
    cleaned["node without features given zeros"] += sum(not row for row in rows)
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    flat = [pair for row in rows for pair in row]
    data = as_float32(np.array([v for _, v in flat], dtype=np.float64), cleaned)
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
    count_alike(classes, cleaned)
    labels = np.array([at.get(names.get(node) or "", -1) for node in index], dtype=np.int64)
    count_empty(classes, labels.tolist(), cleaned)
    cleaned["unlabelled node kept"] += int((labels < 0).sum()) if options.targets else 0
    return labels, classes
