"""Pictures of a detector: what it found beside what is there, and precision against recall."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.detection.coco_ap import RECALLS, Precision
from tasks.shared.figures import fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST, LARGEST = 480, 1600  # pixels of the longer side of a drawn image
DPI = 100


def drawn(
    images: np.ndarray,
    found: Sequence[np.ndarray],
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
) -> "Figure":
    """A grid of images (N, 3, H, W): found boxes solid with class and score, true ones dashed white."""
    from matplotlib.figure import Figure

    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, ours, truth, kinds in zip(grid.flat, images, found, boxes, labels, strict=False):
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        for box in truth[kinds >= 0]:
            _rectangle(axes, box, "white", "--", 1.2)
        for row in ours[::-1]:
            _labelled(axes, row, classes)
    figure.suptitle("test images: found (solid, with score) and true (dashed)")
    return figure


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
    """One found box. The name stands as written: a $ in it is no formula."""
    from matplotlib import colormaps

    colour = colormaps["tab10"](int(row[5]) % 10)
    _rectangle(axes, row[:4], colour, "-", 1.8)
    above = float(row[1]) > 0.05 * axes.get_ylim()[0]  # at the upper edge the name goes inside
    axes.text(
        row[0],
        row[1] - 1 if above else row[1] + 1,
        f"{classes[int(row[5])]} {row[4]:.2f}",
        color="white",
        fontsize=7,
        fontfamily=list(fonts()),
        parse_math=False,
        verticalalignment="bottom" if above else "top",
        clip_on=True,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
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
