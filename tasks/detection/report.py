"""Pictures of boxes: those a detector learns from, and what it found beside what is there."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.detection.coco_ap import RECALLS, THRESHOLDS, Precision, iou
from tasks.shared import figures
from tasks.shared.figures import fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST, LARGEST = 480, 1600  # pixels of the longer side of a drawn image
DPI = 100
IMAGES = 8  # of a picture at most
NAMED = 12  # boxes on an image, up to which each has its name beside it
RIGHT, WRONG, TRUE = "#2b8a3e", "#d9480f", "#ffffff"


@dataclass(frozen=True)
class Judged:
    """What was found on one image: found (K, 6), the true boxes (M, 4) and labels (M,), without padding.

    partner: of each found box the true one that it overlaps by half or more, -1: none.
    """

    found: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    partner: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Bool (K,): found where one of its class is."""
        kinds = np.append(self.labels, -1)[self.partner]
        return np.asarray((self.partner >= 0) & (kinds == self.found[:, 5]))

    @property
    def missed(self) -> np.ndarray:
        """Bool (M,): true boxes that no found one of their class overlaps."""
        return ~np.isin(np.arange(len(self.boxes)), self.partner[self.right])

    @property
    def mistakes(self) -> int:
        return int((~self.right).sum() + self.missed.sum())


def judged(found: np.ndarray, boxes: np.ndarray, labels: np.ndarray, least: float) -> Judged:
    """Of one image, with what pads it. Of the score least and more; partners of its own class come first."""
    ours, kept = found[(found[:, 5] >= 0) & (found[:, 4] >= least)], labels >= 0
    truth, kinds = boxes[kept], labels[kept]
    overlaps = iou(ours[:, :4], truth)
    same = ours[:, 5][:, None] == kinds[None]
    partner, free = np.full(len(ours), -1), np.ones(len(truth), bool)
    for wanted in (same, ~same):
        for row in np.argsort(-ours[:, 4], kind="stable"):
            able = free & wanted[row] & (overlaps[row] >= THRESHOLDS[0])
            if partner[row] < 0 and able.any():
                partner[row] = np.where(able, overlaps[row], -1).argmax()
                free[partner[row]] = False
    return Judged(ours, truth, kinds, partner)


def best_guesses(found: np.ndarray, labels: np.ndarray, least: float) -> float:
    """The score from which on boxes are drawn: least, or lower so that there are as many as true ones."""
    scores = np.sort(found[found[:, 5] >= 0, 4])[::-1]
    true = max(1, int((labels >= 0).sum()))
    return least if (scores >= least).sum() >= true or not len(scores) else float(scores[:true][-1])


def drawn(
    images: np.ndarray,
    found: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    least: float,
) -> "Figure":
    """Images (N, 3, H, W) with the best guesses and their scores, and the true boxes; most mistakes first."""
    images_judged = [
        judged(f, b, k, best_guesses(f, k, least)) for f, b, k in zip(found, boxes, labels, strict=True)
    ]
    order = np.argsort([-one.mistakes for one in images_judged], kind="stable")[:IMAGES]
    figure, grid = _grid(len(order))
    for axes, i in zip(grid, order, strict=False):
        one = images_judged[i]
        axes.imshow(images[i].transpose(1, 2, 0), interpolation="nearest")
        axes.set_title(
            f"{one.right.sum()} right, {(~one.right).sum()} wrong, {one.missed.sum()} missed", fontsize=9
        )
        for box, kind, lost in zip(one.boxes, one.labels, one.missed, strict=True):
            named = lost or len(one.boxes) <= NAMED
            _rectangle(axes, box, TRUE, "--", 1.4 if lost else 0.8)
            _name(axes, box, classes[kind] if named else "", "black", TRUE, below=True)
        for row, right in list(zip(one.found, one.right, strict=True))[::-1]:
            colour = RIGHT if right else WRONG
            _rectangle(axes, row, colour, "-", 1.8)
            name = f"{classes[int(row[5])]} " if not right or len(one.found) <= NAMED else ""
            _name(axes, row, f"{name}{row[4]:.2f}", TRUE, colour)
    figure.suptitle(
        f"test images with the most mistakes: found with its score (green right, orange wrong; "
        f"from {least:.2f} on, or the best), true boxes dashed",
        fontsize=11,
    )
    return figure


def samples(images: np.ndarray, boxes: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> "Figure":
    """Images (N, 3, H, W) that are trained on, with boxes (N, M, 4) and the names of their classes."""
    from matplotlib import colormaps

    with_boxes = np.argsort((labels < 0).all(1), kind="stable")[:IMAGES]
    figure, grid = _grid(len(with_boxes))
    for axes, i in zip(grid, with_boxes, strict=False):
        axes.imshow(images[i].transpose(1, 2, 0), interpolation="nearest")
        kept = labels[i] >= 0
        axes.set_title(f"{kept.sum()} boxes" if kept.sum() != 1 else "1 box", fontsize=9)
        for box, kind in zip(boxes[i][kept], labels[i][kept], strict=True):
            colour = colormaps["tab10"](int(kind) % 10)
            _rectangle(axes, box, colour, "-", 1.4)
            _name(axes, box, classes[kind], TRUE, colour)
    figure.suptitle("training images with their boxes", fontsize=11)
    return figure


def confusion(images: Sequence[Judged], classes: Sequence[str]) -> "Figure":
    """True boxes by row, found ones by column; the last of both: nothing is there, nothing was found."""
    nothing = len(classes)
    true, said = list[int](), list[int]()
    for one in images:
        partners = np.append(one.labels, nothing)[one.partner]
        alone = ~np.isin(np.arange(len(one.boxes)), one.partner)
        true += [*partners.tolist(), *one.labels[alone].tolist()]
        said += [*one.found[:, 5].astype(int).tolist(), *[nothing] * int(alone.sum())]
    right = sum(int(one.right.sum()) for one in images)
    boxes = sum(len(one.boxes) for one in images)
    found = sum(len(one.found) for one in images)
    title = f"{right} of {boxes} boxes found\n{found - right} of {found} found wrongly"
    shown = [*classes, "(nothing)"]
    return figures.confusion(np.array(true, int), np.array(said, int), shown, title, last_is_none=True)


def by_class(path: Path, images: Sequence[Judged], tested: Precision, classes: Sequence[str]) -> None:
    """A csv with a row for each class: boxes, average precision, recall and precision at the threshold."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "test boxes", "AP50", "AP50:95", "found", "recall", "precision"])
        for kind, name in enumerate(classes):
            boxes = sum(int((one.labels == kind).sum()) for one in images)
            found = sum(int((one.found[:, 5] == kind).sum()) for one in images)
            right = sum(int((one.right & (one.found[:, 5] == kind)).sum()) for one in images)
            scores = [
                tested.ap[kind, 0],
                tested.ap[kind].mean(),
                right / max(boxes, 1),
                right / max(found, 1),
            ]
            shown = ["" if not boxes else f"{score:.4f}" for score in scores]
            table.writerow([name, boxes, *shown[:2], found, *shown[2:]])


def _grid(count: int) -> "tuple[Figure, list[Axes]]":
    """Axes without ticks, four in a row."""
    from matplotlib.figure import Figure

    columns = max(1, min(4, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(4 * columns, 4.3 * rows + 0.4), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    return figure, grid


def on_image(image: np.ndarray, found: np.ndarray, classes: Sequence[str]) -> "Figure":
    """One image (H, W, 3) in its own pixels, large ones smaller, with found boxes (k, 6)."""
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    scale = min(max(1.0, SMALLEST / max(height, width)), LARGEST / max(height, width))
    figure = Figure(figsize=(width * scale / DPI, height * scale / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(image, interpolation="nearest" if scale > 1 else None, aspect="auto")
    for row in found[::-1]:
        _labelled(axes, row, classes)
    return figure


def _labelled(axes: "Axes", row: np.ndarray, classes: Sequence[str]) -> None:
    """One found box with class and score."""
    from matplotlib import colormaps

    colour = colormaps["tab10"](int(row[5]) % 10)
    _rectangle(axes, row[:4], colour, "-", 1.8)
    _name(axes, row, f"{classes[int(row[5])]} {row[4]:.2f}", TRUE, colour)


def _name(axes: "Axes", box: np.ndarray, text: str, ink: str, ground: object, below: bool = False) -> None:
    """Above a box, or below it. The name stands as written: a $ in it is no formula."""
    high = abs(axes.get_ylim()[0])
    at = float(box[3]) + 1 if below else float(box[1]) - 1
    inside = at > 0.95 * high if below else at < 0.05 * high  # at the edge of the image the name goes inside
    if not text:
        return
    over = below == inside
    edge = float(box[3] if below else box[1])
    axes.text(
        float(box[0]),
        edge if inside else at,
        text,
        color=ink,
        fontsize=7,
        fontfamily=list(fonts()),
        parse_math=False,
        verticalalignment="bottom" if over else "top",
        clip_on=True,
        bbox={"facecolor": ground, "edgecolor": "none", "pad": 0.8, "alpha": 0.75},
    )


def _rectangle(axes: "Axes", box: np.ndarray, colour: object, style: str, width: float) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = (float(v) for v in box[:4])
    edge = {"edgecolor": colour, "linestyle": style, "linewidth": width}
    patch = Rectangle((left, top), right - left, bottom - top, fill=False, **edge)  # type: ignore[arg-type]
    axes.add_patch(patch)


def curves(precision: Precision, classes: Sequence[str]) -> "Figure":
    """Precision against recall at an overlap of 0.5, a line for each class that occurs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for kind in precision.seen:
        label = f"{classes[kind]}  AP50 {precision.ap[kind, 0]:.2f}".replace("$", r"\$")
        axes.plot(RECALLS, precision.curves[kind], label=label)
    axes.set(
        xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="test images, overlap 0.5"
    )
    if axes.lines:
        axes.legend(
            prop={"family": list(fonts()), "size": 8}, loc="lower left", ncols=1 + len(axes.lines) // 20
        )
    return figure
