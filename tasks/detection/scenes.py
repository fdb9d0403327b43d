"""Images with boxes become arrays: letterboxed from a set of kind boxes, or composed from single objects."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from overnight import Artifact, Dataset, DataSpec, Params, Run, step
from overnight.data.content import Boxes, BoxItem, CleaningCounts
from overnight.data.entry import Entry
from overnight.data.images import opened, to_mode
from overnight.data.splits import grouped
from overnight.errors import DataError
from tasks.detection.report import samples
from tasks.shared.figures import names

SPLITS = ("train", "val", "test")
MOST_SHOWN = 64  # training images among which those with boxes are drawn
GREY = 114  # of a letterbox's margins
MANY_BOXES = 100  # on one image, where the entry has no count; too many costs a little memory, never less
Scene = tuple[np.ndarray, np.ndarray, np.ndarray]  # uint8 (H, W, 3), float32 (n, 4), int64 (n,)
SIZE = Field(
    192,
    multiple_of=32,
    ge=64,
    le=2048,
    description="px of the square canvas; the detector's coarsest stride divides it",
)


class SceneParams(Params):
    """How images with boxes become one array."""

    size: int = SIZE
    val: float = Field(
        0.2, ge=0, lt=1, description="share of train that is cut for val when the set has none; off: none"
    )


class ComposeParams(Params):
    """How scenes are composed from images of single objects."""

    RENAMED: ClassVar = {"scale": "object_scale"}

    size: int = SIZE
    train: int = Field(400, ge=1, description="scenes composed from the training images")
    val: int = Field(100, ge=0)
    test: int = Field(100, ge=0)
    objects: tuple[int, int] = Field((1, 6), description="fewest and most on a scene")
    object_scale: tuple[float, float] = Field(
        (0.15, 0.35), description="smallest and largest side of an object, as a share of the scene's"
    )
    background: Literal["plain", "noise"] = "noise"
    blend: Literal["lighten", "paste"] = Field(
        "lighten",
        description="lighten: bright strokes on black, boxes tight around them; paste: the whole image as "
        "it is",
    )
    overlap: float = Field(
        0.1, ge=0, lt=1, description="most that two boxes may share, as a share of the smaller"
    )

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects {list(self.objects)}: write the fewest, then the most")
        if not 0 < self.object_scale[0] <= self.object_scale[1] <= 1:
            raise ValueError(
                f"object_scale {list(self.object_scale)}: write the smallest, then the largest, between 0 "
                "and 1"
            )
        return self


def boxes_spec(params: SceneParams, data: Entry) -> DataSpec | None:
    """What load_boxes will hand on, as far as the entry tells.

    Where it does not tell how many boxes an image has, many.
    """
    seen = data.expected
    more = {"shape": (3, params.size, params.size), "boxes": seen.boxes or MANY_BOXES}
    return seen.model_copy(update=more) if seen.classes else None


@step(spec=boxes_spec)
def load_boxes(run: Run, params: SceneParams, data: Dataset) -> Artifact:
    """Letterbox every image with its boxes to a square of `params.size` px, centred on grey.

    Out: artifact "boxes": {split}_images uint8 (N, 3, H, W), {split}_boxes float32 (N, M, 4) in pixels of the
    canvas padded with 0, {split}_labels int64 (N, M) padded with -1. A missing val is cut from train, seeded,
    unless params.val is off; a missing test stays empty. Logs what was cleaned. Raises DataError for another
    kind of data set, and for one without training images.
    """
    content = data.load_as(Boxes)
    cleaned, done = CleaningCounts(content.cleaned), 0
    splits, groups = dict[str, list[tuple[str, Scene]]](), list[str]()
    for split in SPLITS:
        splits[split] = []
        for item, image in opened(content.splits.get(split, ()), cleaned):
            splits[split].append(
                (
                    item.name,
                    _letterbox(np.asarray(to_mode(image, cleaned=cleaned)), item, params.size, cleaned),
                )
            )
            groups += [item.group] if split == "train" else []
            done += 1
            if done % 50 == 0:
                run.progress(done, max(done, sum(data.expected.counts.values())), f"{split} images")
    if not splits["train"]:
        raise DataError(f"data set {data.name!r}: the split 'train' has no images; see its entry")
    if "val" not in content.splits and params.val:
        splits["train"], splits["val"] = _cut(splits["train"], groups, params.val, run.seed)
        run.log(f"data: the set has no val split: {len(splits['val'])} images of train are its val now")
    trained = {int(label) for _, (_, _, labels) in splits["train"] for label in labels}
    for number, name in enumerate(content.classes):
        if number not in trained:
            cleaned.at("class without a training box kept", name)
    data.refuse(cleaned)
    run.cleaned(+cleaned)
    return _handed_on(run, data.name, splits, content.classes, params.size, cleaned)


def scenes_spec(params: ComposeParams, images: DataSpec) -> DataSpec:
    """What compose_scenes will hand on."""
    counts = {split: int(getattr(params, split)) for split in SPLITS}
    return DataSpec(
        shape=(3, params.size, params.size), classes=images.classes, counts=counts, boxes=params.objects[1]
    )


@step(spec=scenes_spec)
def compose_scenes(run: Run, params: ComposeParams, images: Artifact) -> Artifact:
    """Compose scenes from the objects of an "images" artifact, at random places and sizes.

    Each split is composed of its own images.
    Out: artifact "boxes", as from load_boxes. Objects overlap little; one that finds no room is left out. A
    split without images, or asked for 0 scenes, stays empty. Raises DataError when there are no training
    images.
    """
    spec, source = images.expect("images").spec, images.arrays()
    if not len(source["train_images"]):
        raise DataError(f"{images.path.name}: the split 'train' has no images to compose scenes from")
    splits = dict[str, list[tuple[str, Scene]]]()
    for index, split in enumerate(SPLITS):
        random = np.random.default_rng([run.seed, index])
        objects, labels = source[f"{split}_images"], source[f"{split}_labels"]
        objects, labels = objects[labels >= 0], labels[labels >= 0]
        count = getattr(params, split) if len(objects) else 0
        splits[split] = [(f"{split}-{i}", _composed(params, objects, labels, random)) for i in range(count)]
        run.progress(index + 1, len(SPLITS), f"{count} {split} scenes")
    return _handed_on(run, "scenes", splits, spec.classes, params.size, CleaningCounts())


# ------------------------------------------------------------------------------------------------ letterbox


def on_canvas(image: np.ndarray, high: int, wide: int) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """An image (H, W, 3) centred on a grey canvas, as large as it can be.

    Returns the canvas (high, wide, 3), width and height of the image there, and the pixels left of and above
    it.
    """
    from PIL import Image

    height, width = image.shape[:2]
    scale = min(high / height, wide / width)
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (wide - sides[0]) // 2, (high - sides[1]) // 2
    canvas = np.full((high, wide, 3), GREY, np.uint8)
    canvas[top : top + sides[1], left : left + sides[0]] = np.asarray(
        Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR)
    )
    return canvas, sides, (left, top)


def _letterbox(image: np.ndarray, item: BoxItem, size: int, cleaned: CleaningCounts) -> Scene:
    """One image and its boxes on the canvas.

    A box is cut at the image's edge; what is left thinner than a pixel is dropped.
    """
    height, width = image.shape[:2]
    canvas, sides, (left, top) = on_canvas(image, size, size)
    edges = np.array([width, height, width, height], np.float32)
    boxes = np.clip(np.asarray(item.boxes, np.float32).reshape(-1, 4), 0, edges)
    cleaned["box clipped to its image"] += int((boxes != item.boxes).any(-1).sum()) if len(boxes) else 0
    boxes = boxes * (np.array([*sides, *sides]) / edges) + np.array([left, top, left, top])
    large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(-1)
    cleaned["box under a pixel after resizing dropped"] += int((~large).sum())
    return canvas, boxes[large].astype(np.float32), np.asarray(item.labels, np.int64)[large]


def _cut(
    items: list[tuple[str, Scene]], groups: list[str], share: float, seed: int
) -> tuple[list[tuple[str, Scene]], list[tuple[str, Scene]]]:
    """Train and val out of train, no group in both; one group alone stays in train."""
    units = grouped(groups)
    order = np.random.default_rng(seed).permutation(len(units))
    count = min(len(units) - 1, max(1, round(len(units) * share)))
    val = {i for unit in order[:count] for i in units[unit]}
    parts: tuple[list[tuple[str, Scene]], list[tuple[str, Scene]]] = ([], [])
    for i, item in enumerate(items):
        parts[i in val].append(item)
    return parts


# ------------------------------------------------------------------------------------------------ compose


def _composed(
    params: ComposeParams, objects: np.ndarray, labels: np.ndarray, random: np.random.Generator
) -> Scene:
    """One scene."""
    canvas = _background(params, random)
    boxes, kinds = np.zeros((0, 4), np.float32), list[int]()
    for _ in range(int(random.integers(params.objects[0], params.objects[1] + 1))):
        chosen = int(random.integers(len(objects)))
        stamp = _stamp(objects[chosen], params, random)
        box = _room(stamp, boxes, params, random)
        if box is None:
            continue
        left, top, right, bottom = box.astype(int)
        under = canvas[top:bottom, left:right]
        canvas[top:bottom, left:right] = np.maximum(under, stamp) if params.blend == "lighten" else stamp
        boxes, kinds = np.vstack([boxes, box]), [*kinds, int(labels[chosen])]
    return canvas, boxes.astype(np.float32), np.array(kinds, np.int64)


def _background(params: ComposeParams, random: np.random.Generator) -> np.ndarray:
    """Dark, so that bright objects show: one colour, or soft noise about it."""
    canvas = np.full((params.size, params.size, 3), random.integers(0, 70, 3), np.float32)
    if params.background == "noise":
        coarse = random.normal(0, 12, (params.size // 8, params.size // 8, 3)).repeat(8, 0).repeat(8, 1)
        canvas += coarse + random.normal(0, 8, canvas.shape)
    return np.asarray(canvas.clip(0, 255).astype(np.uint8))


def _stamp(image: np.ndarray, params: ComposeParams, random: np.random.Generator) -> np.ndarray:
    """An object (C, h, w) as uint8 (H, W, 3) at a random size; with "lighten" cut to its bright part."""
    from PIL import Image

    if params.blend == "lighten":
        bright = image.max(0) > max(1, int(image.max()) // 5)
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        if len(rows):
            image = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    longest = params.size * random.uniform(*params.object_scale)
    factor = longest / max(pixels.shape[:2])
    sides = [min(params.size, max(4, round(side * factor))) for side in (pixels.shape[1], pixels.shape[0])]
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(pixels)).resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    )


def _room(
    stamp: np.ndarray, boxes: np.ndarray, params: ComposeParams, random: np.random.Generator
) -> np.ndarray | None:
    """A random place that shares little with the boxes already there; None when thirty tries find none."""
    height, width = stamp.shape[:2]
    for _ in range(30):
        left, top = random.integers(0, params.size - width + 1), random.integers(0, params.size - height + 1)
        box = np.array([left, top, left + width, top + height], np.float32)
        shared = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(min=0).prod(-1)
        smaller = np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(-1), width * height)
        if (shared <= params.overlap * smaller).all():
            return box
    return None


# ------------------------------------------------------------------------------------------------ arrays


def _handed_on(
    run: Run,
    name: str,
    splits: Mapping[str, list[tuple[str, Scene]]],
    classes: tuple[str, ...],
    size: int,
    cleaned: CleaningCounts,
) -> Artifact:
    """Save all splits, and say what is in them."""
    most = max(1, *(len(scene[2]) for items in splits.values() for _, scene in items), 1)
    arrays = dict[str, np.ndarray]()
    for split, items in splits.items():
        arrays |= {
            f"{split}_{part}": array
            for part, array in _arrays([scene for _, scene in items], most, size).items()
        }
    counts = {split: len(items) for split, items in splits.items()}
    spec = DataSpec(shape=(3, size, size), classes=classes, counts=counts, boxes=most)
    meta = {"classes": list(classes), "names_test": [item for item, _ in splits["test"]]}
    saved = run.save("boxes", spec, arrays, meta)
    run.data(name, saved.digest, spec=spec)
    few = {part: arrays[f"train_{part}"][:MOST_SHOWN] for part in ("images", "boxes", "labels")}
    run.picture("boxes", samples(few["images"], few["boxes"], few["labels"], names(classes)))
    boxes = {split: int((arrays[f"{split}_labels"] >= 0).sum()) for split in splits}
    run.metrics({f"data/{split}_boxes": count for split, count in boxes.items()})
    said = ", ".join(f"{split} {counts[split]} images with {boxes[split]} boxes" for split in splits)
    run.note("; ".join(filter(None, (f"{name}: {said}", cleaned.sentence()))))
    return saved


def _arrays(scenes: Iterable[Scene], most: int, size: int) -> dict[str, np.ndarray]:
    """Arrays images (N, 3, H, W), boxes (N, M, 4) and labels (N, M) of one split."""
    scenes = list(scenes)
    images = np.zeros((len(scenes), 3, size, size), np.uint8)
    boxes, labels = np.zeros((len(scenes), most, 4), np.float32), np.full((len(scenes), most), -1, np.int64)
    for i, (image, corners, kinds) in enumerate(scenes):
        images[i] = image.transpose(2, 0, 1)
        boxes[i, : len(kinds)], labels[i, : len(kinds)] = corners, kinds
    return {"images": images, "boxes": boxes, "labels": labels}
