"""A trained detector for images of any size and form: a row for each box."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overnight import predictor as contract
from overnight.artifact import Artifact
from overnight.data.images import as_image, to_mode
from overnight.errors import BadInput
from overnight.predictor import ItemLosses
from tasks.detection import report
from tasks.detection.coco_ap import f1
from tasks.detection.model import Yolo
from tasks.detection.params import YoloParams
from tasks.detection.scenes import on_canvas
from tasks.detection.training import found as found_in
from tasks.shared.figures import names as drawable
from tasks.shared.predictors import current_keys, load_model

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 16
DRAWN = 64  # images


def predictor(folder: Path) -> "Detector":
    """The detector in that folder."""
    return Detector(folder)


class Detector:
    """Images to boxes with a class and a score."""

    def __init__(self, folder: Path) -> None:
        config, weights = load_model(folder)
        config = current_keys(YoloParams, config)
        self.interface = contract.interface(folder)
        self.classes: list[str] = config["classes"]
        self.height, self.width = config["shape"][1:]
        self.least_score: float = config["least_score"]
        self.model = Yolo(len(self.classes), config["width_multiplier"]).eval()
        self.model.load_state_dict(weights)

    def predict(self, frame: "pd.DataFrame", least_score: float | None = None) -> "pd.DataFrame":
        """A row for each box found in the images of the column `image`, the best of an image first.

        `image` is the number of the row; x1 y1 x2 y2 are pixels of the image as it is seen, its EXIF applied.
        least_score: the score of the best F1 on val when left out; at most 100 boxes an image. Raises
        BadInput.
        """
        import pandas as pd

        least = self.least_score if least_score is None else float(least_score)
        if not 0 < least <= 1:
            raise BadInput(f"least_score is {least:g}; give a number above 0, at most 1")
        contract.check_columns(frame, ["image"])
        parts = [np.zeros((0, 7)), *self._rows(list(frame["image"]), least)]
        rows = np.concatenate(parts)
        columns = {"image": rows[:, 0].astype(np.int64)}
        columns |= {"class": np.asarray(self.classes, object)[rows[:, 6].astype(int)], "score": rows[:, 5]}
        columns |= {name: rows[:, 1 + i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
        return pd.DataFrame(columns)

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """1 - F1 at overlap 0.5 of each test image of a "boxes" artifact, by boxes of `least_score` and more.

        That score was chosen on val, so that a loss is what a user of the defaults sees. 0 for an image
        without objects in which nothing is found. Equal images share a cluster; the group is the commonest
        class of an image.
        """
        (boxes,) = artifacts
        arrays = boxes.expect("boxes").arrays("test_images", "test_boxes", "test_labels")
        images, classes = arrays["test_images"], boxes.spec.classes
        ours = {name: number for number, name in enumerate(self.classes)}
        # A class that this model does not know is always missed.
        kinds = np.array([ours.get(name, len(ours) + i) for i, name in enumerate(classes)] + [-1])
        losses, groups = list[float](), list[str]()
        for number, rows in enumerate(self._rows(list(images), self.least_score)):
            labels = arrays["test_labels"][number]
            losses.append(1 - f1(rows[:, 1:], arrays["test_boxes"][number], kinds[labels]))
            there = labels[labels >= 0]
            groups.append(classes[np.bincount(there).argmax()] if len(there) else "(no object)")
        names = boxes.meta().get("names_test") or range(len(images))
        return ItemLosses(
            np.array(losses, np.float64),
            np.array([f"{number} {name}" for number, name in enumerate(names)], str),
            contract.clusters([image.tobytes() for image in images]),
            np.array(groups, str),
        )

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:
        """The first images with the boxes found, one file each."""
        paths = list[Path]()
        kinds = found["class"].map({name: number for number, name in enumerate(self.classes)})
        rows = (
            np.column_stack([found[["x1", "y1", "x2", "y2", "score"]], kinds])
            if len(found)
            else np.zeros((0, 6))
        )
        for number, given in enumerate(list(frame["image"])[:DRAWN]):
            image = np.asarray(to_mode(as_image(given, f"image {number}")))
            name = Path(given).stem if isinstance(given, str | Path) and len(str(given)) < 1000 else "image"
            short = name.encode()[:80].decode(errors="ignore")  # a file's name has at most 255 bytes
            paths.append(folder / f"{number:03d}-{short}.png")
            mine = rows[(found["image"] == number).to_numpy()]
            report.on_image(image, mine, drawable(self.classes)).savefig(paths[-1])
        return paths

    def _rows(self, given: Sequence[object], least: float) -> Iterator[np.ndarray]:
        """For each image its boxes (k, 7): number of the image, x1 y1 x2 y2 in its pixels, score, class."""
        for start in range(0, len(given), AT_ONCE):
            some = [
                self._canvas(one, f"image {start + i}")
                for i, one in enumerate(given[start : start + AT_ONCE])
            ]
            canvases = np.stack([canvas for canvas, _scale, _offset, _size in some])
            for i, padded in enumerate(found_in(self.model, canvases, AT_ONCE, least)):
                _canvas, scale, offset, size = some[i]
                rows = padded[padded[:, 5] >= 0].astype(np.float64)
                corners = ((rows[:, :4].reshape(-1, 2, 2) - offset) * scale).clip(0, size).reshape(-1, 4)
                yield np.column_stack([np.full(len(rows), start + i), corners, rows[:, 4:]])

    def _canvas(self, given: object, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """uint8 (3, H, W) of the model's size; and (x, y) to multiply by, to take off first, its size."""
        if (
            isinstance(given, np.ndarray)
            and given.dtype == np.uint8
            and given.shape == (3, self.height, self.width)
        ):
            return given, np.ones(2), np.zeros(2), np.array([self.width, self.height])
        image = np.asarray(to_mode(as_image(given, name)))
        canvas, sides, offset = on_canvas(image, self.height, self.width)
        size = np.array([image.shape[1], image.shape[0]])
        return canvas.transpose(2, 0, 1), size / sides, np.array(offset), size
