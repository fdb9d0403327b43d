"""Box geometry on tensors: overlaps, and a batched non-maximum suppression that needs torch alone.

A box is x1 y1 x2 y2 in pixels. Everything here expects float32: half precision is too coarse for coordinates
above 256.
"""

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4); 0 for an inside-out box."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union's area, of boxes that broadcast against each other."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    union = area(a) + area(b) - shared
    return shared / union.clamp(min=1e-6), union


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, M) from boxes (..., N, 4) and (..., M, 4)."""
    return overlap(a[..., :, None, :], b[..., None, :, :])[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU in -1..1, which has a slope for boxes apart as well (Rezatofighi et al. 2019)."""
    iou, union = overlap(a, b)
    hull = (
        (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2]))
        .prod(-1)
        .clamp(min=1e-6)
    )
    return iou - (hull - union) / hull


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Which of the boxes (B, K, 4), sorted by falling score, survive greedy suppression within their class.

    bool (B, K).

    The greedy rule "a box falls to any kept better one" is iterated from "all are kept" to its fixed point,
    which is the greedy result itself (Zheng et al. 2021, Cluster-NMS) after as many rounds as the longest
    chain of boxes that suppress each other.
    """
    clash = (pairwise_iou(boxes, boxes) > threshold) & (labels[:, :, None] == labels[:, None, :])
    clash = clash.triu(1).float()
    alive = (scores > 0).float()
    kept = alive
    for _ in range(boxes.shape[1]):
        after = alive * ((kept[:, None] @ clash)[:, 0] == 0)
        if torch.equal(after, kept):
            break
        kept = after
    return kept.bool()


def detections(
    scores: Tensor,
    boxes: Tensor,
    least: float,
    threshold: float = 0.6,
    candidates: int = 300,
    limit: int = 100,
) -> Tensor:
    """The best boxes of each image: (B, limit, 6) x1 y1 x2 y2 score class, by falling score, padded with -1.

    scores (B, A, C) in 0..1 and boxes (B, A, 4). The `candidates` best pairs of box and class scoring at
    least `least` compete.
    """
    size, _, classes = scores.shape
    flat = scores.flatten(1)
    best, index = flat.topk(min(candidates, flat.shape[1]), dim=1)
    best = torch.where(best >= least, best, 0.0)
    chosen = boxes.gather(1, (index // classes)[..., None].expand(-1, -1, 4))
    labels = index % classes
    kept = suppress(chosen, best, labels, threshold)
    rows = torch.cat([chosen, best[..., None], labels[..., None].to(chosen.dtype)], -1)
    rows = torch.where(kept[..., None], rows, -1.0)
    order = rows[..., 4].argsort(dim=1, descending=True, stable=True)[:, :limit]
    rows = rows.gather(1, order[..., None].expand(-1, -1, 6))
    short = limit - rows.shape[1]
    return rows if short <= 0 else torch.cat([rows, rows.new_full((size, short, 6), -1.0)], 1)
