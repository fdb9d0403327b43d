"""IDX, the format of MNIST: a magic number, the sizes, then bytes; gzipped or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from overnight.config import Values
from overnight.data.content import CleaningCounts, Images
from overnight.data.readers._common import class_names, image_items, present
from overnight.errors import file_error

if TYPE_CHECKING:
    import numpy as np


class Split(Values):
    images: str
    labels: str | None = None


class Options(Values):
    splits: dict[str, Split] = Field(min_length=1)
    classes: list[str] = []  # in the order of their indices; numbers when left out


def read(folder: Path, options: Options, _kind: str) -> Images:
    """Images (N, H, W) grey or (N, H, W, 3) in colour, labels (N,)."""
    cleaned = CleaningCounts()
    arrays = {split: _pair(folder, files) for split, files in options.splits.items()}
    labels = [label for _, some in arrays.values() for label in some.tolist()]
    classes = class_names(options.classes, labels, folder, cleaned)
    stems = {split: Path(files.images).name.split(".")[0] for split, files in options.splits.items()}
    splits = {split: image_items(stems[split], *pair) for split, pair in arrays.items()}
    return Images(classes, splits, cleaned)


def _pair(folder: Path, files: Split) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    images = _array(present(folder, files.images))
    if images.ndim not in (3, 4) or images.dtype != np.uint8 or (images.ndim == 4 and images.shape[3] != 3):
        raise file_error(
            folder / files.images,
            f"expected bytes (N, H, W) or (N, H, W, 3), found {images.dtype} {images.shape}",
        )
    if files.labels is None:
        return images, np.full(len(images), -1, dtype=np.int64)
    labels = _array(present(folder, files.labels))
    if labels.shape != (len(images),):
        raise file_error(
            folder / files.labels, f"{labels.shape} labels for {len(images)} images of {files.images}"
        )
    return images, labels.astype(np.int64)


def _array(path: Path) -> "np.ndarray":
    """Raises DataError when it is cut short or something else."""
    import numpy as np

    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":  # gz, whatever its name says
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise file_error(path, f"the gz file is damaged or cut short: {error}; get it anew") from None
    types = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in types or not data[3]:
        raise file_error(
            path,
            "expected an idx file (it starts with 0 0, a type and a number of dimensions); "
            "get the right file",
        )
    dtype, start = np.dtype(types[data[2]]), 4 + 4 * data[3]
    if len(data) < start:
        raise file_error(path, "the idx file is cut short in its header; get the whole file")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if 0 in shape[1:]:
        raise file_error(path, f"samples of the size {shape[1:]} hold nothing; get the right file")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - start != expected:
        raise file_error(
            path, f"{len(data) - start} bytes of data, expected {expected} for {shape}; get it anew"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape)
