"""Which cells learn which box."""

import pytest
import torch

from tasks.detection.assign import assign
from tasks.detection.model import places


def assigned(true_boxes, true_labels, classes=2, scores=None, boxes=None, size=64):
    centres, strides = places(size, size, torch.device("cpu"))
    scores = torch.full((1, len(centres), classes), 0.01) if scores is None else scores
    boxes = torch.cat([centres - 2 * strides, centres + 2 * strides], -1)[None] if boxes is None else boxes
    return centres, assign(
        scores, boxes, centres, 8.0, torch.tensor([true_boxes]), torch.tensor([true_labels])
    )


def test_cells_learn_a_box_they_lie_in_and_its_class():
    box = [8.0, 8.0, 40.0, 40.0]
    centres, targets = assigned([box, [0.0] * 4], [1, -1])
    learning = targets.weights[0] > 0
    assert 0 < int(learning.sum()) <= 13
    assert ((centres[learning] >= 8) & (centres[learning] <= 40)).all()
    assert torch.equal(targets.boxes[0][learning], torch.tensor([box]).expand(int(learning.sum()), 4))
    assert (targets.scores[0, :, 0] == 0).all()
    assert (targets.scores[0, :, 1][learning] > 0).all()


def test_the_best_cell_aims_at_its_overlap():
    centres, strides = places(64, 64, torch.device("cpu"))
    boxes = torch.cat([centres - strides, centres + strides], -1)[None]
    _, targets = assigned([[8.0, 8.0, 24.0, 24.0]], [0], boxes=boxes)
    # the middle cell of stride 16 believes in 8 8 40 40 shifted by half a cell: the best overlap is computed
    # here by hand
    overlaps = [
        max(0, min(24, b[2]) - max(8, b[0])) * max(0, min(24, b[3]) - max(8, b[1])) for b in boxes[0].tolist()
    ]
    areas = ((boxes[0, :, 2:] - boxes[0, :, :2]).prod(-1)).tolist()
    inside = ((centres >= 8) & (centres <= 24)).all(-1).tolist()
    best = max(o / (256 + a - o) for o, a, i in zip(overlaps, areas, inside, strict=True) if i)
    assert float(targets.scores.max()) == pytest.approx(best, rel=1e-5)


def test_a_box_smaller_than_a_cell_is_not_missed():
    for corner in torch.linspace(0, 60, 23).tolist():
        _, targets = assigned([[corner, corner, corner + 2, corner + 2]], [0])
        assert float(targets.weights.sum()) > 0, corner


def test_two_boxes_on_one_place_both_find_cells_and_no_cell_learns_both():
    _, targets = assigned([[0.0, 0.0, 64.0, 64.0], [16.0, 16.0, 48.0, 48.0]], [0, 1])
    assert (targets.scores[0] > 0).any(0).all()
    assert ((targets.scores[0] > 0).sum(-1) <= 1).all()


def test_no_boxes_means_background_everywhere():
    _, targets = assigned([[0.0] * 4], [-1])
    assert float(targets.scores.abs().max()) == 0
