"""IDX, the format of MNIST: a magic number, the sizes, then bytes; gzipped or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from overnight.config import Values
from overnight.data.content import CleaningCounts, ImageItem, Images
from overnight.data.images import of_array
from overnight.data.readers._common import count_empty, numbered, present
from overnight.errors import DataError
from overnight.paths import shown

if TYPE_CHECKING:
    import numpy as np


class Split(Values):
    """The two files of a split."""

    images: str
    labels: str | None = None


class Options(Values):
    """Files by split."""

    splits: dict[str, Split] = Field(min_length=1)
    classes: list[str] = Field([], description="in the order of their indices; numbers when left out")


def read(folder: Path, options: Options, _kind: str) -> Images:
    """Images (N, H, W) grey or (N, H, W, 3) in colour, labels (N,)."""
    cleaned = CleaningCounts()
    arrays = {split: _pair(folder, files) for split, files in options.splits.items()}
    top = max((int(labels.max(initial=-1)) for _, labels in arrays.values()), default=-1)
    classes = tuple(options.classes) or numbered(top, folder)
    if top >= len(classes):
        raise DataError(
            f"{shown(folder)}: a label is {top}, but the entry names {len(classes)} classes; name them all"
        )
    count_empty(classes, (int(i) for _, labels in arrays.values() for i in labels), cleaned)
    splits = {split: _items(options.splits[split].images, *pair) for split, pair in arrays.items()}
    return Images(classes, splits, cleaned)


def _pair(folder: Path, files: Split) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    images = array(present(folder, files.images))
    if images.ndim not in (3, 4) or images.dtype != np.uint8 or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(
            f"{shown(folder / files.images)}: expected bytes (N, H, W) or (N, H, W, 3), found "
            f"{images.dtype} {images.shape}"
        )
    if files.labels is None:
        return images, np.full(len(images), -1, dtype=np.int64)
    labels = array(present(folder, files.labels))
    if labels.shape != (len(images),):
        raise DataError(
            f"{shown(folder / files.labels)}: {labels.shape} labels for {len(images)} images of "
            f"{files.images}"
        )
    return images, labels.astype(np.int64)


def _items(name: str, images: "np.ndarray", labels: "np.ndarray") -> list[ImageItem]:
    stem = Path(name).name.split(".")[0]
    return [
        ImageItem(f"{stem}/{i}", of_array(image), int(label))
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def array(path: Path) -> "np.ndarray":
    """The array in an idx file; raises DataError when it is cut short or something else."""
    import numpy as np

    data = _bytes(path)
    types = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in types or not data[3]:
        raise DataError(
            f"{shown(path)}: expected an idx file (it starts with 0 0, a type and a number of dimensions); "
            "get the right file"
        )
    dtype, start = np.dtype(types[data[2]]), 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"{shown(path)}: the idx file is cut short in its header; get the whole file")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if 0 in shape[1:]:
        raise DataError(f"{shown(path)}: samples of the size {shape[1:]} hold nothing; get the right file")
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise DataError(
            f"{shown(path)}: {len(data) - start} bytes of data, expected "
            f"{math.prod(shape) * dtype.itemsize} for {shape}; get it anew"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _bytes(path: Path) -> bytes:
    """What is inside; gz is told by its first bytes, not by its name."""
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{shown(path)}: the gz file is damaged or cut short: {error}; get it anew") from None
