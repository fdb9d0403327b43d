"""What the detector minimises: class scores that tell how good the box is, and boxes that overlap."""

import torch
from torch import Tensor, nn

from tasks.detection.assign import Targets, assign
from tasks.detection.boxes import giou
from tasks.detection.model import BINS, STRIDES, decode, places

BOX_GAIN, SIDES_GAIN = 2.0, 0.5  # beside 1 for the classes


def detection_loss(
    logits: Tensor, sides: Tensor, shape: tuple[int, int], boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Detection loss as (sum, count).

    logits (B, A, C), sides (B, A, 4, K), images of `shape` (H, W), true boxes (B, M, 4) and labels (B,
    M).
    The count is, summed over images, how much object each holds: the sum of its target scores, at least 1.
    Both parts are sums over images, so a batch may be cut anywhere: sums and counts of the parts add up to
    those of the whole. Computed in float32 (or float64, when the model is).
    """
    with torch.autocast(logits.device.type, enabled=False):
        kind = torch.promote_types(logits.dtype, torch.float32)
        logits, sides, boxes = logits.to(kind), sides.to(kind), boxes.to(kind)
        centres, strides = (t.to(kind) for t in places(*shape, logits.device))
        found = decode(sides, centres, strides)
        targets = assign(logits.detach().sigmoid(), found.detach(), centres, float(STRIDES[0]), boxes, labels)
        box = (1 - giou(found, targets.boxes)) * targets.weights
        loss = (
            _classes(logits, targets).sum()
            + BOX_GAIN * box.sum()
            + SIDES_GAIN * _sides(sides, centres, strides, targets).sum()
        )
        return loss, targets.weights.sum(1).clamp(min=1).sum()


def _classes(logits: Tensor, targets: Targets) -> Tensor:
    """Cross entropy towards the overlap.

    Background counts by how wrong it is (after the quality focal loss, Li et al. 2020).

    Where a box is learnt, its class counts fully and every other class as much as the box does: with the
    focal weight for those, telling ten classes apart takes many times as many steps as finding the boxes;
    with full weight, rare classes of small objects suffer.
    """
    off = (targets.scores - logits.detach().sigmoid()).abs()
    others = torch.maximum(off.square(), targets.weights[..., None])
    weight = torch.where(targets.scores > 0, 1.0, others)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets.scores, reduction="none") * weight


def _sides(sides: Tensor, centres: Tensor, strides: Tensor, targets: Targets) -> Tensor:
    """Distribution focal loss: the two bins around the true distance share the blame (Li et al. 2020)."""
    low, high = targets.boxes[..., :2], targets.boxes[..., 2:]
    distance = (torch.cat([centres - low, high - centres], -1) / strides).clamp(0, BINS - 1 - 1e-3)
    left = distance.floor()
    share = distance - left
    logs = sides.log_softmax(-1)
    at = left.long()[..., None]
    near, far = logs.gather(-1, at)[..., 0], logs.gather(-1, at + 1)[..., 0]
    return -(near * (1 - share) + far * share).mean(-1) * targets.weights
