"""Labelled images of any size and mode become one uint8 array per split."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from overnight.artifact import Artifact, DataSpec
from overnight.config import Params
from overnight.data.content import CleaningCounts, ImageItem, Images
from overnight.data.dataset import Dataset
from overnight.data.entry import Entry
from overnight.data.images import opened, to_mode
from overnight.data.splits import cut
from overnight.errors import DataError
from overnight.run import Run
from overnight.step import step
from tasks.shared import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

SPLITS = ("train", "val", "test")
SHOWN = 24  # images of the picture of samples
GREY = ("1", "L", "I", "F")  # how the names of PIL's grey modes begin: also LA, La, I;16


class ImageParams(Params):
    """How images become one array."""

    size: int | None = Field(
        None,
        ge=8,
        le=1024,
        description="px of the square they are resized to; the set's own size when left out",
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; by the data when left out")
    val: float = Field(
        0.1, ge=0, lt=1, description="share of train that is cut for val when the set has none; off: none"
    )
    test: float = Field(
        0.2, gt=0, lt=1, description="share of train that is cut for test when the set has none"
    )


def images_spec(params: ImageParams, data: Entry) -> DataSpec | None:
    """What load_images will hand on, as far as the entry tells."""
    seen = data.expected
    channels = params.channels or (seen.shape[0] if seen.shape else None)
    sides = (params.size, params.size) if params.size else seen.shape[1:]
    if channels is None or not sides or not seen.classes:
        return None
    return seen.model_copy(update={"shape": (channels, *sides)})


@step(spec=images_spec)
def load_images(run: Run, params: ImageParams, data: Dataset) -> Artifact:
    """Decode every labelled image once, at one size and one number of channels.

    Out: artifact "images", {split}_images uint8 (N, C, H, W) and {split}_labels int64 (N,) for train, val and
    test. Resizing is bilinear with antialiasing and does not keep the aspect ratio. A missing test, then a
    missing val, is cut from train, seeded, the same share of every class. Logs what was cleaned. Raises
    DataError: no images, or sizes that differ while none is set.
    """
    content = data.load_as(Images)
    cleaned = CleaningCounts(content.cleaned)
    items = _labelled(run, params, content, data, cleaned)
    splits = {name: _decode(run, params, name, items[name], cleaned) for name in SPLITS}
    for label in sorted(set(range(len(content.classes))) - set(splits["train"].labels)):
        cleaned.at("class without a training image kept", content.classes[label])
    data.refuse(cleaned)
    run.cleaned(+cleaned)
    return _save(run, params, data.name, content.classes, splits, cleaned)


def _labelled(
    run: Run, params: ImageParams, content: Images, data: Dataset, cleaned: CleaningCounts
) -> dict[str, list[ImageItem]]:
    """The labelled images of all three splits; a missing one is cut from train."""
    found = {split: [item for item in items if item.label >= 0] for split, items in content.splits.items()}
    cleaned.update(
        {"unlabelled image left out": sum(map(len, content.splits.values())) - sum(map(len, found.values()))}
    )
    if not found.get("train"):
        raise DataError(f"data set {data.name!r}: no labelled training image; see datasets/{data.name}.yaml")
    for split, share in (("test", params.test), ("val", params.val)):
        if found.get(split) or data.splits.get(split) == 0 or not share:
            found.setdefault(split, [])
            continue
        whole = len(found["train"])
        parts = cut(replace(content, splits=found), {split: share}, run.seed)
        assert isinstance(parts, Images)  # what goes in comes out
        found = {name: list(items) for name, items in parts.splits.items()}
        if not found[split]:
            raise DataError(
                f"data set {data.name!r}: {whole} training images are too few to cut {share:.0%} for "
                f"{split} (copies stay together); raise images.{split}"
            )
        run.log(
            f"data: no {split} split: {len(found[split])} of {whole} training images were cut for it, by "
            f"class, seed {run.seed}"
        )
    return found


class _Split:
    """The images of one split, (H, W) or (H, W, 3) each, with label and name."""

    def __init__(self) -> None:
        self.images, self.labels, self.names = list[np.ndarray](), list[int](), list[str]()

    def add(self, image: np.ndarray, label: int, name: str) -> None:
        """One image more; DataError when it is not as large as the first."""
        if self.images and image.shape[:2] != self.images[0].shape[:2]:
            _sizes_differ(self.names[0], self.images[0], name, image)
        self.images.append(image)
        self.labels.append(label)
        self.names.append(name)

    def pixels(self, channels: int, sides: tuple[int, ...]) -> np.ndarray:
        """uint8 (N, C, H, W); sides: height and width where there is no image."""
        sides = self.images[0].shape[:2] if self.images else sides
        out = np.empty((len(self.images), channels, *sides), np.uint8)
        for i, image in enumerate(self.images):
            out[i] = image.transpose(2, 0, 1) if image.ndim == 3 else image
        return out


def _sizes_differ(first: str, one: np.ndarray, second: str, other: np.ndarray) -> None:
    a, b = (f"{image.shape[1]}x{image.shape[0]} px" for image in (one, other))
    raise DataError(
        f"images differ in size ({first}: {a}, {second}: {b}); set images.size to the px of the square they "
        "are resized to"
    )


def _decode(
    run: Run, params: ImageParams, split: str, items: Sequence[ImageItem], cleaned: CleaningCounts
) -> _Split:
    found = _Split()
    for seen, (item, image) in enumerate(opened(items, cleaned), 1):
        found.add(_array(image, params, cleaned), item.label, item.name)
        if seen % 500 == 0:
            run.progress(seen, len(items), f"decoding {split}")
    return found


def _array(image: "Image", params: ImageParams, cleaned: CleaningCounts) -> np.ndarray:
    """uint8 (H, W) of a grey image or (H, W, 3) of a coloured one."""
    from PIL.Image import Resampling

    grey = params.channels == 1 if params.channels else image.mode.startswith(GREY)
    image = to_mode(image, "L" if grey else "RGB", cleaned)
    if params.size and image.size != (params.size, params.size):
        cleaned["image resized"] += 1
        image = image.resize((params.size, params.size), Resampling.BILINEAR)
    return np.asarray(image)


def _save(
    run: Run,
    params: ImageParams,
    name: str,
    classes: tuple[str, ...],
    splits: dict[str, _Split],
    cleaned: CleaningCounts,
) -> Artifact:
    channels = params.channels or (3 if any(image.ndim == 3 for image in splits["train"].images) else 1)
    sides = splits["train"].images[0].shape[:2]
    arrays = {f"{split}_images": part.pixels(channels, sides) for split, part in splits.items()}
    arrays |= {f"{split}_labels": np.asarray(part.labels, np.int64) for split, part in splits.items()}
    shapes = {array.shape[1:] for key, array in arrays.items() if key.endswith("_images")}
    if len(shapes) > 1:
        raise DataError(f"splits differ in the size of their images: {sorted(shapes)}; set images.size")
    counts = {split: len(part.labels) for split, part in splits.items()}
    spec = DataSpec(shape=shapes.pop(), classes=classes, counts=counts)
    run.picture("samples", _samples(arrays["train_images"], arrays["train_labels"], classes))
    out = run.save("images", spec, arrays, {"classes": list(classes), "names_test": splits["test"].names})
    run.data(name, out.digest, f"datasets/{name}.yaml", spec)
    run.metrics({f"data/{split}_images": count for split, count in counts.items()})
    parts = ", ".join(f"{split} {count}" for split, count in counts.items())
    said = f"{name}: {sum(counts.values())} images of {spec.shape}, {len(classes)} classes, {parts}"
    run.note("; ".join(filter(None, (said, cleaned.sentence()))))
    return out


def _samples(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> "Figure":
    """Images as they are trained on, with their classes, in turn one of each class."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    turns = np.arange(len(labels)) - starts  # which image of its class
    chosen = order[np.lexsort((labels[order], turns))[:SHOWN]]
    shown = figures.names(classes)
    title = f"{len(chosen)} of {len(labels)} training images"
    return figures.grid(images[chosen], [shown[label] for label in labels[chosen]], title=title)
