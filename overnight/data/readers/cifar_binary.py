"""CIFAR's binary version: records of one or two label bytes and 3 x 32 x 32 bytes, plane by plane."""

from pathlib import Path

from pydantic import Field

from overnight.config import Values
from overnight.data.content import CleaningCounts, ImageItem, Images
from overnight.data.readers._common import class_names, expect, image_items, lines, present
from overnight.errors import file_error


class Options(Values):
    splits: dict[str, list[str]] = Field(min_length=1)
    # label bytes of a record: 1 in CIFAR-10, 2 (coarse, fine) in CIFAR-100
    labels: int = Field(1, ge=1, le=2)
    label: int = Field(-1, ge=-1, le=1)  # which of them is the class; -1: the last
    size: int = Field(32, ge=1)  # pixels of a side
    classes: str | list[str] = []  # their names, or the file that has one on each line; numbers when left out


def read(folder: Path, options: Options, _kind: str) -> Images:
    cleaned = CleaningCounts()
    given = lines(present(folder, options.classes)) if isinstance(options.classes, str) else options.classes
    splits = {
        split: [item for file in files for item in _items(present(folder, file), options)]
        for split, files in options.splits.items()
    }
    labels = [item.label for items in splits.values() for item in items]
    fault = "a label is {}, but there are {} class names"
    return Images(class_names(given, labels, folder, cleaned, fault), splits, cleaned)


def _items(path: Path, options: Options) -> list[ImageItem]:
    import numpy as np

    record = options.labels + 3 * options.size**2
    data = np.frombuffer(expect(path, "cifar binary").read_bytes(), dtype=np.uint8)
    if len(data) % record:
        raise file_error(
            path, f"{len(data)} bytes, expected a multiple of {record}; it is cut short or of another format"
        )
    records = data.reshape(-1, record)
    images = records[:, options.labels :].reshape(-1, 3, options.size, options.size).transpose(0, 2, 3, 1)
    labels = records[:, range(options.labels)[options.label]]
    return image_items(path.stem, images, labels)
