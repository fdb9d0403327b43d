"""Which grid cell learns which box.

Task-aligned assignment (Feng et al. 2021, TOOD), for a whole batch at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.detection.boxes import pairwise_iou

CANDIDATES = 13  # cells that learn one box (TOOD)
SCORE_POWER, IOU_POWER = 1.0, 6.0  # of the alignment between class score and overlap (TOOD)


@dataclass(frozen=True)
class Targets:
    """For each of A cells of B images.

    The box to learn (B, A, 4), and how sure it should be of each class (B, A, C) in 0..1.
    """

    boxes: Tensor
    scores: Tensor

    @property
    def weights(self) -> Tensor:
        """How much each cell's box counts (B, A); 0 for background."""
        return self.scores.sum(-1)


@torch.no_grad()
def assign(
    scores: Tensor, boxes: Tensor, centres: Tensor, least: float, true_boxes: Tensor, true_labels: Tensor
) -> Targets:
    """Targets from what the model believes now and what is true.

    scores (B, A, C) in 0..1, boxes (B, A, 4), centres (A, 2); true_boxes (B, M, 4), true_labels (B, M) with
    -1 for padding. A box thinner than `least` pixels (the finest stride) is taken as that wide when asking
    which centres lie in it, so that none is missed. Works on fixed shapes, without a branch on data: nothing
    waits for the device. All arithmetic is float32.
    """
    real = true_labels >= 0  # B M
    classes = true_labels.clamp(min=0)
    believed = scores.transpose(1, 2).gather(1, classes[..., None].expand(-1, -1, scores.shape[1]))  # B M A
    iou = pairwise_iou(true_boxes, boxes)
    # Never 0: a box that no cell sees yet is still assigned to some.
    alignment = believed.pow(SCORE_POWER) * iou.pow(IOU_POWER) + 1e-9
    alignment = alignment * (_inside(centres, true_boxes, least) & real[..., None])
    chosen = _best(alignment)
    chosen = chosen & (_owner(iou, chosen) == torch.arange(iou.shape[1], device=iou.device)[:, None])
    alignment = alignment * chosen
    top = alignment.amax(-1, keepdim=True)
    quality = (
        alignment / top.clamp(min=1e-12) * (iou * chosen).amax(-1, keepdim=True)
    )  # the best cell aims at its own overlap
    owner = chosen.to(torch.int64).argmax(1)  # B A
    learnt = true_boxes.gather(1, owner[..., None].expand(-1, -1, 4))
    target = torch.zeros_like(scores)
    target.scatter_(2, classes.gather(1, owner)[..., None], quality.amax(1)[..., None])
    return Targets(learnt, target)


def _inside(centres: Tensor, boxes: Tensor, least: float) -> Tensor:
    """Which centres lie in which box: bool (B, M, A)."""
    middle, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    away = (centres - middle[..., None, :]).abs()
    return (away <= half.clamp(min=least / 2)[..., None, :]).all(-1)


def _best(alignment: Tensor) -> Tensor:
    """The best aligned cells of each box: bool (B, M, A)."""
    values, index = alignment.topk(min(CANDIDATES, alignment.shape[-1]), dim=-1)
    return torch.zeros_like(alignment, dtype=torch.bool).scatter_(-1, index, values > 0)


def _owner(iou: Tensor, chosen: Tensor) -> Tensor:
    """The one box each cell learns: of those that chose it, the one it overlaps most (B, 1, A)."""
    return torch.where(chosen, iou, -1.0).argmax(1, keepdim=True)
