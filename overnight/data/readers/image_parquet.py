"""Parquet files with one encoded image a row, as bytes or {bytes, path}, and a column with the class."""

import json
import math
import threading
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from overnight.config import Values
from overnight.data.content import CleaningCounts, ImageItem, Images
from overnight.data.images import decode
from overnight.data.readers._common import Files, count_alike, count_empty, matching, numbered, require, tidy
from overnight.errors import DataError, file_error, one_line
from overnight.paths import shown

if TYPE_CHECKING:
    from PIL.Image import Image


class Options(Values):
    # file, files or a pattern such as train-*.parquet by split
    splits: dict[str, Files] = Field(min_length=1)
    image: str = "image"
    label: str | None = "label"
    name: str | None = None  # column with a name for each image
    # in the order of their indices; else from the schema's metadata, else from the labels
    classes: list[str] = []


def read(folder: Path, options: Options, _kind: str) -> Images:
    """Labels now, images a row group at a time as they are opened."""
    cleaned = CleaningCounts()
    files = {
        split: [_File(path, options) for name in names for path in matching(folder, name)]
        for split, names in options.splits.items()
    }
    classes = tuple(options.classes) or _classes([file for some in files.values() for file in some])
    splits = {
        split: [item for file in some for item in file.items(classes, cleaned)]
        for split, some in files.items()
    }
    count_alike(classes, cleaned)
    count_empty(classes, (item.label for items in splits.values() for item in items), cleaned)
    return Images(classes, splits, cleaned)


def _classes(files: "list[_File]") -> tuple[str, ...]:
    """From the schema's metadata; else text labels sorted, or numbers up to the largest."""
    for file in files:
        if file.classes:
            return file.classes
    values = {label for file in files for label in file.labels if label is not None}
    if all(isinstance(v, int) for v in values):
        return numbered(max(values, default=-1), files[0].path)
    names = {tidy(str(v), "label", CleaningCounts()) for v in values}
    return tuple(sorted(names - {""}))


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    """A comma-separated "classes", or the names that Hugging Face datasets writes."""
    if metadata.get(b"classes"):
        return tuple(metadata[b"classes"].decode().split(","))
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (ValueError, KeyError, TypeError):
        return ()


def _whole(label: Any) -> Any:
    """Whole numbers with missing ones among them are floats in many files."""
    if not isinstance(label, float):
        return label
    if math.isnan(label):
        return None
    return int(label) if label.is_integer() else label


class _File:
    """The row groups read last are kept, since neighbours are opened together."""

    def __init__(self, path: Path, options: Options) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.path = path
        self.options = options
        self.lock = threading.Lock()
        self.group = lru_cache(maxsize=2)(self._group)
        columns = [c for c in (options.label, options.name) if c]
        try:
            self.file = parquet.ParquetFile(path, memory_map=True)
            require(path, [options.image, *columns], self.file.schema_arrow.names)
            facts = self.file.read(columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise file_error(path, f"expected a parquet file: {one_line(error)}; get it anew") from None
        rows = self.file.metadata.num_rows
        labels = facts[options.label].to_pylist() if options.label else [None] * rows
        self.labels = [_whole(label) for label in labels]
        broken = next((label for label in self.labels if isinstance(label, float)), None)
        if broken is not None:
            row = self.labels.index(broken) + 1
            raise file_error(path, f"row {row}: the label {broken} is no class; give whole numbers or names")
        self.names = [f"{path.stem}/{i}" for i in range(rows)]
        if options.name:
            self.names = facts[options.name].to_pylist()
        self.classes = _class_names(self.file.schema_arrow.metadata or {}, options.label or "")

    def items(self, classes: tuple[str, ...], cleaned: CleaningCounts) -> list[ImageItem]:
        index = {name: i for i, name in enumerate(classes)}
        items = list[ImageItem]()
        for group in range(self.file.num_row_groups):
            for at in range(self.file.metadata.row_group(group).num_rows):
                row = len(items)
                label = self._label(row, index, cleaned)
                opener = partial(self._open, group, at, row)
                stored = partial(self._bytes, group, at, row)
                items.append(ImageItem(str(self.names[row]), opener, label, stored))
        return items

    def _label(self, row: int, index: dict[str, int], cleaned: CleaningCounts) -> int:
        given = self.labels[row]
        if isinstance(given, str):
            given = tidy(given, "label", cleaned)
        if given in (None, -1, ""):
            cleaned["unlabelled image kept"] += 1
            return -1
        if isinstance(given, int) and 0 <= given < len(index):
            return given
        if str(given) in index:
            return index[str(given)]
        raise file_error(
            self.path, f"row {row + 1} has the label {given!r}; the classes are {', '.join(index)}"
        )

    def _bytes(self, group: int, at: int, row: int) -> bytes:
        import pyarrow as pa

        try:
            with self.lock:
                value = self.group(group)[at].as_py()
        except (pa.ArrowException, OSError) as error:
            where = f"{shown(self.path)}: row {row + 1}"
            raise DataError(f"{where}: its part of the file is damaged: {error}; get the file anew") from None
        found = value.get("bytes") if isinstance(value, dict) else value
        return found if isinstance(found, bytes) else b""

    def _open(self, group: int, at: int, row: int) -> "Image":
        return decode(f"{shown(self.path)}: row {row + 1}", self._bytes(group, at, row))

    def _group(self, number: int) -> Any:
        return self.file.read_row_group(number, columns=[self.options.image]).column(0)
