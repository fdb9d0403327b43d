"""PASCAL VOC: JPEGImages/, one xml for each image in Annotations/, lists of names in ImageSets/Main/."""

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from pydantic import Field

from overnight.config import Values
from overnight.data.content import Boxes, BoxItem, CleaningCounts
from overnight.data.images import opener
from overnight.data.readers._common import IMAGE_ENDINGS, Classes, count_empty, lines, present
from overnight.errors import DataError
from overnight.paths import shown

Box = tuple[str, float, float, float, float]


class Options(Values):
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    splits: dict[str, str] = {}  # list of names by split; ImageSets/Main/{train,val,test}.txt when left out
    classes: Classes = []  # in the order of their indices; the sorted names that occur when left out
    # 1: corners count from 1 and include their pixel, as in PASCAL's own files
    first_pixel: int = Field(0, ge=0, le=1)
    drop_difficult: bool = False


def read(folder: Path, options: Options, _kind: str) -> Boxes:
    """Boxes now, images as they are opened.

    A box of zero size is dropped, one that leaves its image is clipped.
    """
    cleaned = CleaningCounts()
    pictures = _pictures(folder / options.images, cleaned)
    found = {
        split: [_annotation(folder, options, name, pictures, cleaned) for name in names]
        for split, names in _splits(folder, options, pictures).items()
    }
    classes = tuple(options.classes) or tuple(
        sorted({box[0] for items in found.values() for _, boxes in items for box in boxes})
    )
    splits = {
        split: [_item(path, boxes, classes, cleaned) for path, boxes in items]
        for split, items in found.items()
    }
    count_empty(
        classes, (int(i) for items in splits.values() for item in items for i in item.labels), cleaned
    )
    return Boxes(classes, splits, cleaned)


def _pictures(folder: Path, cleaned: CleaningCounts) -> dict[str, Path]:
    """Images by their name without its ending."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in IMAGE_ENDINGS and found.setdefault(path.stem, path) != path:
            cleaned["second image of the same name left out"] += 1
    return found


def _splits(folder: Path, options: Options, pictures: dict[str, Path]) -> dict[str, list[str]]:
    """Names of images by split; everything is "train" when there are no lists."""
    lists = {split: f"ImageSets/Main/{split}.txt" for split in ("train", "val", "test")}
    listed = options.splits or {s: name for s, name in lists.items() if (folder / name).is_file()}
    if not listed and (folder / "ImageSets/Main/trainval.txt").is_file():
        listed = {"train": "ImageSets/Main/trainval.txt"}
    if listed:
        return {
            split: [line.split()[0] for line in lines(present(folder, name))]
            for split, name in listed.items()
        }
    if not pictures:
        raise DataError(
            f"{shown(folder / options.images)}: there is no image; expected the folders of PASCAL VOC"
        )
    return {"train": list(pictures)}


def _annotation(
    folder: Path, options: Options, name: str, pictures: dict[str, Path], cleaned: CleaningCounts
) -> tuple[Path, list[Box]]:
    """The image of that name, and its boxes in its own pixels."""
    if name not in pictures:
        raise DataError(
            f"{shown(folder / options.images / name)}.*: there is no such image, but a list of the set "
            "names it"
        )
    xml = present(folder, f"{options.annotations}/{name}.xml")
    try:
        # expat itself stops entity bombs; nothing external is read
        tree = ET.fromstring(xml.read_bytes())  # noqa: S314
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: unknown encodings
        raise DataError(
            f"{shown(xml)}: expected an xml annotation: {error}; mend it, or get it anew"
        ) from None
    width, height = _size(pictures[name])
    boxes = []
    for element in tree.iter("object"):
        if options.drop_difficult and (element.findtext("difficult") or "0").strip() == "1":
            cleaned["difficult box dropped"] += 1
            continue
        box = _clipped(_corners(element, xml, options.first_pixel, cleaned), width, height, cleaned)
        if box is not None:
            boxes.append(((element.findtext("name") or "").strip(), *box))
    if not boxes:
        cleaned["image without boxes kept"] += 1
    return pictures[name], boxes


def _size(picture: Path) -> tuple[float, float]:
    """Width and height by the image's own header, for what the annotation says may be wrong.

    Infinite when it cannot be read: the image is left out when it is opened.
    """
    from PIL import Image

    try:
        with Image.open(picture) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return math.inf, math.inf


def _corners(
    element: ET.Element, xml: Path, first: int, cleaned: CleaningCounts
) -> tuple[float, float, float, float]:
    """x1 y1 x2 y2 as edges: a box over the first pixel alone is 0 0 1 1 when corners include their pixel."""
    try:
        x1, y1, x2, y2 = (
            float(element.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        raise DataError(
            f"{shown(xml)}: a box of {element.findtext('name')!r} lacks a corner; expected four numbers"
        ) from None
    cleaned["box with swapped corners turned"] += x1 > x2 or y1 > y2
    return min(x1, x2) - first, min(y1, y2) - first, max(x1, x2), max(y1, y2)


def _clipped(
    box: tuple[float, float, float, float], width: float, height: float, cleaned: CleaningCounts
) -> tuple[float, float, float, float] | None:
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)
    if not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        cleaned["box of zero size dropped"] += 1
        return None
    if x1 >= x2 or y1 >= y2:
        cleaned["box outside its image dropped"] += 1
        return None
    cleaned["box clipped to its image"] += (x1, y1, x2, y2) != box
    return x1, y1, x2, y2


def _item(path: Path, boxes: Sequence[Box], classes: tuple[str, ...], cleaned: CleaningCounts) -> BoxItem:
    import numpy as np

    known = [box for box in boxes if box[0] in classes]
    for box in boxes:
        if box[0] not in classes:
            cleaned[f"box of the unlisted class {box[0]!r} dropped"] += 1
    corners = np.array([box[1:] for box in known], dtype=np.float32).reshape(-1, 4)
    labels = np.array([classes.index(box[0]) for box in known], dtype=np.int64)
    return BoxItem(path.name, opener(path), corners, labels)
