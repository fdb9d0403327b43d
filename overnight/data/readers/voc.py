"""PASCAL VOC: JPEGImages/, one xml for each image in Annotations/, lists of names in ImageSets/Main/."""

import math
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pydantic import Field

from overnight.config import Values
from overnight.data.content import Boxes, BoxItem, CleaningCounts
from overnight.data.images import ORIENTATION, opener
from overnight.data.readers._common import IMAGE_ENDINGS, Classes, count_empty, lines, present
from overnight.errors import FAILURES, DataError, file_error
from overnight.paths import shown

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

QUARTERS = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height


class Options(Values):
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    splits: dict[str, str] = {}  # list of names by split; ImageSets/Main/{train,val,test}.txt when left out
    classes: Classes = []  # in the order of their indices; the sorted names that occur when left out
    # 1: corners count from 1 and include their pixel, as in PASCAL's own files
    first_pixel: int = Field(0, ge=0, le=1)
    drop_difficult: bool = False


def read(folder: Path, options: Options, _kind: str) -> Boxes:
    """A box of zero size is dropped, one that leaves its image is clipped."""
    cleaned = CleaningCounts()
    pictures = _pictures(folder / options.images, cleaned)
    found = {
        split: [_annotation(folder, options, name, pictures, cleaned) for name in names]
        for split, names in _splits(folder, options, pictures).items()
    }
    names = {name for items in found.values() for _, _, labels, _ in items for name in labels}
    classes = tuple(options.classes or sorted(names))
    splits = {split: [_item(*item, classes, cleaned) for item in items] for split, items in found.items()}
    labels = [label for items in splits.values() for item in items for label in item.labels.tolist()]
    count_empty(classes, labels, cleaned)
    return Boxes(classes, splits, cleaned)


def _pictures(folder: Path, cleaned: CleaningCounts) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in IMAGE_ENDINGS and found.setdefault(path.stem, path) != path:
            cleaned["second image of the same name left out"] += 1
    return found


def _splits(folder: Path, options: Options, pictures: dict[str, Path]) -> dict[str, list[str]]:
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
        raise file_error(folder / options.images, "there is no image; expected the folders of PASCAL VOC")
    return {"train": list(pictures)}


def _annotation(
    folder: Path, options: Options, name: str, pictures: dict[str, Path], cleaned: CleaningCounts
) -> "tuple[Path, bool, list[str], np.ndarray]":
    """The picture, whether its boxes refer to it as stored, class names, and corners (n, 4) in pixels."""
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
        raise file_error(xml, f"expected an xml annotation: {error}; mend it, or get it anew") from None
    objects = list(tree.iter("object"))
    if options.drop_difficult:
        easy = [o for o in objects if (o.findtext("difficult") or "0").strip() != "1"]
        cleaned["difficult box dropped"] += len(objects) - len(easy)
        objects = easy
    corners = [_corners(element, xml) for element in objects]
    size, as_stored = _size(pictures[name], tree)
    boxes, kept = _clipped(corners, size, options.first_pixel, cleaned)
    labels = [(objects[i].findtext("name") or "").strip() for i in kept]
    cleaned["image without boxes kept"] += not labels
    return pictures[name], as_stored, labels, boxes


def _size(picture: Path, tree: ET.Element) -> tuple[tuple[float, float], bool]:
    """By the image's own header, and whether its annotation states the size of the pixels as stored.

    A photograph that its EXIF turns by a quarter has two sizes. Infinite when the header cannot be read, as
    such an image is left out when it is opened.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(picture) as image:
            stored = image.size
            turned = _orientation(image) in QUARTERS
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError):
        return (math.inf, math.inf), False
    stated = tuple((tree.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    as_stored = turned and stored[0] != stored[1] and stated == tuple(map(str, stored))
    return (stored[::-1] if turned and not as_stored else stored), as_stored


def _orientation(image: "Image") -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except FAILURES:  # damaged EXIF
        return 1


def _corners(element: ET.Element, xml: Path) -> list[float]:
    try:
        return [float(element.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        raise file_error(
            xml, f"a box of {element.findtext('name')!r} lacks a corner; expected four numbers"
        ) from None


def _clipped(
    corners: list[list[float]], size: tuple[float, float], first: int, cleaned: CleaningCounts
) -> "tuple[np.ndarray, list[int]]":
    """Edges x1 y1 x2 y2 of the boxes that lie in the image, float32 (n, 4), and which they are.

    When corners include their pixel (first: 1), a box over the first pixel alone is 0 0 1 1.
    """
    import numpy as np

    ends = np.array(corners, dtype=np.float64).reshape(-1, 2, 2)
    low, high = ends.min(axis=1) - first, ends.max(axis=1)
    boxes = np.concatenate([np.maximum(low, 0), np.minimum(high, size)], axis=1)
    zero = (low >= high).any(axis=1) | ~np.isfinite(ends).all(axis=(1, 2))
    outside = (boxes[:, :2] >= boxes[:, 2:]).any(axis=1) & ~zero
    kept = ~zero & ~outside
    clipped = (boxes != np.concatenate([low, high], axis=1)).any(axis=1) & kept
    cleaned["box with swapped corners turned"] += int((ends[:, 0] > ends[:, 1]).any(axis=1).sum())
    cleaned["box of zero size dropped"] += int(zero.sum())
    cleaned["box outside its image dropped"] += int(outside.sum())
    cleaned["box clipped to its image"] += int(clipped.sum())
    return boxes[kept].astype(np.float32), np.flatnonzero(kept).tolist()


def _item(
    path: Path,
    as_stored: bool,
    names: list[str],
    boxes: "np.ndarray",
    classes: tuple[str, ...],
    cleaned: CleaningCounts,
) -> BoxItem:
    import numpy as np

    cleaned.update(f"box of the unlisted class {name!r} dropped" for name in names if name not in classes)
    known = [i for i, name in enumerate(names) if name in classes]
    labels = np.array([classes.index(names[i]) for i in known], dtype=np.int64)
    return BoxItem(path.name, opener(path, as_stored), boxes[known], labels)
