"""PASCAL VOC: images, one xml for each, and lists of names or a folder for each split."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from overnight.data.content import Boxes, BoxItem, CleaningCounts
from overnight.data.images import QUARTERS, as_seen, header, opener
from overnight.data.readers._common import Classes, check_met, count_alike, count_empty
from overnight.data.readers._voc_annotation import NAMELESS, Annotation, Damaged, parse, settle_angles
from overnight.data.readers._voc_layout import Layout, Pair, pairs_by_split
from overnight.errors import file_error

if TYPE_CHECKING:
    import numpy as np

MISFIT = "image of another size than its annotation states left out"
Size = tuple[float, float]  # width, height


class Options(Layout):
    classes: Classes = []  # in the order of their indices; the sorted names that occur when left out
    # 1: corners count from 1 and include their pixel, as in PASCAL's own files
    first_pixel: int = Field(0, ge=0, le=1)
    drop_difficult: bool = False
    # images without an annotation; background when left out, if they are fewer than half
    unannotated: Literal["background", "drop"] | None = None
    # what boxes of photographs that EXIF turns refer to where no size tells: as the rest, else seen
    orientation: Literal["seen", "stored"] | None = None
    # of rotated boxes; by their values when left out, where these tell
    angles: Literal["radians", "degrees"] | None = None


@dataclass(frozen=True)
class _Placed:
    """An image as it is seen, with float32 boxes (n, 4) in its pixels and their classes' names."""

    image: Path
    boxes: "np.ndarray"
    names: list[str]


def read(folder: Path, options: Options, _kind: str) -> Boxes:
    """A box of zero size is dropped, one that leaves its image is clipped."""
    cleaned = CleaningCounts()
    pairs = pairs_by_split(folder, options, cleaned)
    annotations = _annotations(folder, pairs, options, cleaned)
    _count_others(pairs, annotations, cleaned)
    view = _View([pair for some in pairs.values() for pair in some], annotations, options, cleaned)
    placed = {split: [view.placed(pair) for pair in some] for split, some in pairs.items()}
    view.check(folder)
    kept = {split: [item for item in some if item is not None] for split, some in placed.items()}
    names = [name for some in kept.values() for item in some for name in item.names]
    classes = tuple(options.classes or sorted(set(names)))
    if names and not set(names) & set(classes):
        raise file_error(
            folder,
            f"no box is of the entry's classes {', '.join(classes)}; those of the boxes are "
            f"{', '.join(sorted(set(names))[:20])}; correct `classes`",
        )
    splits = {split: [_item(item, classes, cleaned) for item in some] for split, some in kept.items()}
    labels = [label for items in splits.values() for item in items for label in item.labels.tolist()]
    count_empty(classes, labels, cleaned)
    count_alike(sorted({*classes, *names}), cleaned)
    return Boxes(classes, splits, cleaned)


def _annotations(
    folder: Path, splits: dict[str, list[Pair]], options: Options, cleaned: CleaningCounts
) -> dict[Path, Annotation]:
    """By the xml; damaged ones are left out. Raises DataError where most images would be without one."""
    pairs = {pair for some in splits.values() for pair in some}
    alone = sorted(pair.image.name for pair in pairs if pair.xml is None)
    xmls = sorted(pair.xml for pair in pairs if pair.xml is not None)
    if options.unannotated is None:
        advice = (
            "correct `images` and `annotations` in the entry, or write `unannotated: background` or `drop`"
        )
        said = "{met} of {whole} images have an annotation; " + advice
        check_met(len(xmls), len(pairs), folder, said, alone, [xml.name for xml in xmls])
    found, damaged = dict[Path, Annotation](), list[Damaged]()
    for xml in xmls:
        try:
            found[xml] = parse(xml, options.drop_difficult, cleaned)
        except Damaged as error:
            damaged.append(error)
            cleaned.at("image whose annotation is damaged left out", str(error))
    if 2 * len(damaged) > len(xmls):
        raise damaged[0]
    settle_angles(found.values(), options.angles, cleaned)
    boxes, nameless = sum(len(a.names) for a in found.values()), cleaned[NAMELESS]
    if nameless > boxes:
        where = cleaned.first[NAMELESS]
        raise file_error(
            folder, f"{nameless} of {nameless + boxes} boxes have no class name (first: {where})"
        )
    return found


def _count_others(
    splits: dict[str, list[Pair]], annotations: dict[Path, Annotation], cleaned: CleaningCounts
) -> None:
    """Annotations beside one image of the set that state the name of another."""
    pairs = {pair for some in splits.values() for pair in some}
    there = {pair.image.name for pair in pairs}
    for pair in sorted(pairs, key=lambda pair: str(pair.image)):
        stated = annotations[pair.xml].picture if pair.xml in annotations else ""
        if stated != pair.image.name and stated in there:
            said = f"{pair.image.name} has an annotation of {stated}"
            cleaned.at("annotation that names another image kept with that of its own name", said)


class _View:
    """Whether boxes refer to photographs as seen or as stored, and to pixels or to shares of the sides."""

    def __init__(
        self,
        pairs: Iterable[Pair],
        annotations: dict[Path, Annotation],
        options: Options,
        cleaned: CleaningCounts,
    ) -> None:
        self.annotations, self.options, self.cleaned = annotations, options, cleaned
        self.relative = any(annotation.is_relative for annotation in annotations.values())
        self.headers = {pair.image: header(pair.image) for pair in pairs}
        self.frames = dict[Path, str]()
        for pair in pairs:
            known = self.headers[pair.image]
            if known is not None and pair.xml in annotations:
                self.frames[pair.image] = _frame(known, annotations[pair.xml], self.relative)
        votes = list(self.frames.values())
        as_stored = options.orientation == "stored" or votes.count("stored") > votes.count("seen")
        self.open_as = "stored" if as_stored and options.orientation != "seen" else "seen"

    def check(self, folder: Path) -> None:
        """Raises DataError when most annotations state another size than their image has."""
        misfits = [image.name for image, frame in self.frames.items() if frame == "neither"]
        if 2 * len(misfits) > len(self.frames):
            raise file_error(
                folder,
                f"{len(misfits)} of {len(self.frames)} annotations state another size than their image has "
                f"(first: {self.cleaned.first[MISFIT]}); get the annotated images, or remove <size>",
            )

    def placed(self, pair: Pair) -> _Placed | None:
        """None: left out, and counted."""
        if pair.xml is None and self.options.unannotated == "drop":
            self.cleaned.at("image without an annotation left out", pair.image.name)
            return None
        if pair.xml is None:
            self.cleaned.at("image without an annotation kept as background", pair.image.name)
            return _Placed(pair.image, _no_boxes(), [])
        known = self.headers[pair.image]
        annotation = self.annotations.get(pair.xml)
        if annotation is None:
            return None
        if known is None:  # it does not decode: left out when it is opened
            return _Placed(pair.image, _no_boxes(), [])
        (width, height), orientation = known
        frame = self.frames[pair.image]
        if frame == "neither":
            seen = _seen(known)
            self.cleaned.at(
                MISFIT,
                f"{pair.xml.name} states {_by(annotation.size)}, {pair.image.name} has {_by(seen)} pixels",
            )
            return None
        if frame == "open":
            self.cleaned.at(f"photograph that EXIF turns, its boxes taken as {self.open_as}", pair.image.name)
            frame = self.open_as
        size = (width, height) if frame == "stored" else _seen(known)
        boxes, kept = self._boxes(annotation, size)
        if frame == "stored":
            boxes = as_seen(boxes, (width, height), orientation)
        if annotation.names and not kept:
            self.cleaned.at("image whose boxes were all dropped left without any", pair.image.name)
        self.cleaned["image without boxes kept"] += not annotation.names
        return _Placed(pair.image, boxes, [annotation.names[i] for i in kept])

    def _boxes(self, annotation: Annotation, size: Size) -> "tuple[np.ndarray, list[int]]":
        shares = self.relative and annotation.is_relative is not False and bool(annotation.corners)
        if not shares:
            return _clipped(annotation.corners, size, self.options.first_pixel, self.cleaned)
        self.cleaned.at("annotation with corners in 0..1 scaled to its image", annotation.xml.name)
        scaled = [[v * side for v, side in zip(box, size * 2, strict=True)] for box in annotation.corners]
        return _clipped(scaled, size, 0, self.cleaned)


def _frame(known: tuple[tuple[int, int], int], annotation: Annotation, relative: bool) -> str:
    """What boxes refer to, by the size stated, else by where they fit: seen, stored, open or neither."""
    stored, orientation = known
    seen, stated = _seen(known), annotation.size
    if stated is not None and not (_equal(stated, stored) or _equal(stated, seen)):
        return "neither"
    if orientation == 1 or not annotation.corners:
        return "seen"
    if stated is not None and seen != stored:
        return "seen" if _equal(stated, seen) else "stored"
    right, bottom = (max(box[side] for box in annotation.corners) for side in (2, 3))
    fits = [right <= width + 1 and bottom <= height + 1 for width, height in (seen, stored)]
    if relative or fits[0] == fits[1]:
        return "open"
    return "seen" if fits[0] else "stored"


def _seen(known: tuple[tuple[int, int], int]) -> tuple[int, int]:
    (width, height), orientation = known
    return (height, width) if orientation in QUARTERS else (width, height)


def _equal(stated: Size, size: Size) -> bool:
    return all(abs(a - b) <= 1 for a, b in zip(stated, size, strict=True))


def _by(size: Size | None) -> str:
    return " x ".join(f"{side:g}" for side in size or ())


def _no_boxes() -> "np.ndarray":
    import numpy as np

    return np.zeros((0, 4), np.float32)


def _clipped(
    corners: list[list[float]], size: Size, first: int, cleaned: CleaningCounts
) -> "tuple[np.ndarray, list[int]]":
    """Edges x1 y1 x2 y2 of the boxes that lie in the image, float32 (n, 4), and which they are.

    When corners include their pixel (first: 1), a box over the first pixel alone is 0 0 1 1.
    """
    import numpy as np

    ends = np.array(corners, dtype=np.float64).reshape(-1, 2, 2)
    low, high = ends.min(axis=1) - first, ends.max(axis=1)
    boxes = np.concatenate([np.maximum(low, 0), np.minimum(high, size)], axis=1)
    zero = (low >= high).any(axis=1)
    outside = (boxes[:, :2] >= boxes[:, 2:]).any(axis=1) & ~zero
    kept = ~zero & ~outside
    clipped = (boxes != np.concatenate([low, high], axis=1)).any(axis=1) & kept
    cleaned["box with swapped corners turned"] += int((ends[:, 0] > ends[:, 1]).any(axis=1).sum())
    cleaned["box of zero size dropped"] += int(zero.sum())
    cleaned["box outside its image dropped"] += int(outside.sum())
    cleaned["box clipped to its image"] += int(clipped.sum())
    return boxes[kept].astype(np.float32), np.flatnonzero(kept).tolist()


def _item(placed: _Placed, classes: tuple[str, ...], cleaned: CleaningCounts) -> BoxItem:
    import numpy as np

    for name in placed.names:
        cleaned[f"box of the unlisted class {name!r} dropped"] += name not in classes
    known = [i for i, name in enumerate(placed.names) if name in classes]
    labels = np.array([classes.index(placed.names[i]) for i in known], dtype=np.int64)
    return BoxItem(placed.image.name, opener(placed.image), placed.boxes[known], labels, placed.image)
