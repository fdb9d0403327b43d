"""Average precision as COCO defines it, in numpy: matched by score, precision at 101 levels of recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Precision:
    """ap (C, 10): average precision by class and overlap threshold, NaN for a class without boxes.

    curves (C, 101): precision at overlap 0.5.
    """

    ap: np.ndarray
    curves: np.ndarray

    @property
    def scores(self) -> dict[str, float]:
        """The means over the classes that occur; nothing where no class occurs."""
        ap = self.ap[self.seen]
        return {"map50": float(ap[:, 0].mean()), "map50_95": float(ap.mean())} if len(ap) else {}

    @property
    def seen(self) -> list[int]:
        """The classes that occur."""
        return [int(kind) for kind in np.flatnonzero(~np.isnan(self.ap[:, 0]))]


def precision(
    found: Sequence[np.ndarray], boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int
) -> Precision:
    """Of all images: found (K, 6) x1 y1 x2 y2 score class, true boxes (M, 4) and labels (M,).

    Rows with a negative class are padding.
    """
    matched, true = _matched(found, boxes, labels, classes)
    ap, curves = np.full((classes, len(THRESHOLDS)), np.nan), np.full((classes, len(RECALLS)), np.nan)
    for kind in (kind for kind in range(classes) if true[kind]):
        levels = _precision_at_recall(np.concatenate(matched[kind]), true[kind])
        ap[kind], curves[kind] = levels.mean(1), levels[0]
    return Precision(ap, curves)


def _matched(
    found: Sequence[np.ndarray], boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int
) -> tuple[list[list[np.ndarray]], list[int]]:
    """For each class the matches of every image that has it, and how many true boxes there are."""
    matched: list[list[np.ndarray]] = [[] for _ in range(classes)]
    true = [0] * classes
    for detections, truth, kinds in zip(found, boxes, labels, strict=True):
        for kind in {int(k) for k in (*detections[:, 5], *kinds) if k >= 0}:
            ours, theirs = detections[detections[:, 5] == kind], truth[kinds == kind]
            true[kind] += len(theirs)
            matched[kind].append(match(ours, theirs))
    return matched, true


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlaps (N, M) of boxes (N, 4) and (M, 4)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clip(min=0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9))


def match(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """For each detection of one image and class: its score, then whether it hits at each threshold (K, 11).

    The better score picks first.
    """
    # Levels of recall are compared in double precision: 0.7 as a float32 is another level.
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    ours = ours[np.argsort(-ours[:, 4], kind="stable")]
    hits = np.zeros((len(ours), len(THRESHOLDS)), bool)
    overlaps = iou(ours[:, :4], theirs)
    free = np.ones((len(THRESHOLDS), len(theirs)), bool)
    for row in np.flatnonzero(overlaps.max(1, initial=0) >= THRESHOLDS[0]):
        open_to = np.where(free & (overlaps[row] >= THRESHOLDS[:, None]), overlaps[row], -1)
        best = open_to.argmax(1)
        hits[row] = open_to[np.arange(len(THRESHOLDS)), best] >= 0
        free[np.flatnonzero(hits[row]), best[hits[row]]] = False
    return np.column_stack([ours[:, 4], hits])


def best_threshold(
    found: Sequence[np.ndarray], boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int
) -> float | None:
    """The score from which on detections have the best F1 at overlap 0.5, all classes together.

    None where no image has a box or a detection.
    """
    matched, counts = _matched(found, boxes, labels, classes)
    true = sum(counts)
    ordered = np.concatenate([np.zeros((0, 11)), *(rows for some in matched for rows in some)])
    ordered = ordered[np.argsort(-ordered[:, 0], kind="stable")]
    if not true or not len(ordered):
        return None
    at_each = 2 * ordered[:, 1].cumsum() / (np.arange(1, len(ordered) + 1) + true)
    return float(ordered[at_each.argmax(), 0])


def f1(found: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> float:
    """Of one image at overlap 0.5: found (K, 6), true boxes (M, 4) and labels (M,); 1 where both are none."""
    found, boxes, labels = found[found[:, 5] >= 0], boxes[labels >= 0], labels[labels >= 0]
    kinds = {int(kind) for kind in (*found[:, 5], *labels)}
    hits = sum(int(match(found[found[:, 5] == k], boxes[labels == k])[:, 1].sum()) for k in kinds)
    return 2 * hits / (len(found) + len(labels)) if len(found) + len(labels) else 1.0


def _precision_at_recall(rows: np.ndarray, true: int) -> np.ndarray:
    """Precision (10, 101) at each threshold and level of recall.

    The best that is reached at that recall or a higher one.
    """
    rows = rows[np.argsort(-rows[:, 0], kind="stable")]
    hits = rows[:, 1:].T.cumsum(1)  # thresholds, detections
    levels = np.zeros((len(THRESHOLDS), len(RECALLS)))
    if not len(rows):
        return levels
    envelope = np.maximum.accumulate((hits / np.arange(1, len(rows) + 1))[:, ::-1], axis=1)[:, ::-1]
    for threshold, recall in enumerate(hits / true):
        at = np.searchsorted(recall, RECALLS, side="left")
        reached = at < len(rows)
        levels[threshold, reached] = envelope[threshold, at[reached]]
    return levels
