"""Average precision and suppression, by cases whose answer is known by hand."""

import numpy as np
import pytest
import torch

from tasks.detection.boxes import detections, giou, suppress
from tasks.detection.coco_ap import precision

SQUARE = [10.0, 10.0, 20.0, 20.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def rows(*found):
    return np.array(found, np.float32).reshape(-1, 6)


def truth(*boxes):
    return np.array(boxes, np.float32).reshape(-1, 4)


def score(found, boxes, labels, classes=1):
    return precision([found], [boxes], [np.array(labels)], classes)


def test_a_perfect_detector_scores_one():
    scores = score(rows([*SQUARE, 0.9, 0], [*FAR, 0.8, 0]), truth(SQUARE, FAR), [0, 0]).scores
    assert scores == {"map50": pytest.approx(1), "map50_95": pytest.approx(1)}


def test_one_of_two_boxes_found_reaches_half_the_recall():
    # precision 1 at the recalls 0.00 .. 0.50: 51 of 101 levels
    assert score(rows([*SQUARE, 0.9, 0]), truth(SQUARE, FAR), [0, 0]).scores["map50"] == pytest.approx(
        51 / 101
    )


def test_a_better_scored_false_alarm_halves_precision_and_a_worse_one_costs_nothing():
    alarm = [80.0, 80.0, 90.0, 90.0]
    assert score(rows([*alarm, 0.9, 0], [*SQUARE, 0.5, 0]), truth(SQUARE), [0]).scores[
        "map50"
    ] == pytest.approx(0.5)
    assert score(rows([*alarm, 0.1, 0], [*SQUARE, 0.5, 0]), truth(SQUARE), [0]).scores[
        "map50"
    ] == pytest.approx(1)


def test_a_second_box_on_the_same_object_is_a_false_alarm():
    # hit, miss, hit over two objects: precision 1 up to recall 1/2, then 2/3
    found = rows([*SQUARE, 0.9, 0], [*SQUARE, 0.8, 0], [*FAR, 0.7, 0])
    assert score(found, truth(SQUARE, FAR), [0, 0]).scores["map50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_overlap_decides_at_which_thresholds_a_box_counts():
    # 10 x 10 against 10 x 8 inside it: overlap 0.8 counts at 0.5 .. 0.8, seven of ten thresholds
    found = precision([rows([10, 10, 20, 18, 0.9, 0])], [truth(SQUARE)], [np.array([0])], 1)
    assert found.scores["map50"] == pytest.approx(1)
    assert found.scores["map50_95"] == pytest.approx(0.7)


def test_scores_rank_across_images_not_within_them():
    sure_alarm, unsure_hit = rows([*FAR, 0.9, 0]), rows([*SQUARE, 0.2, 0])
    found = precision([sure_alarm, unsure_hit], [truth(), truth(SQUARE)], [np.array([]), np.array([0])], 1)
    assert found.scores["map50"] == pytest.approx(0.5)


def test_a_box_of_the_wrong_class_is_a_miss_for_one_and_an_alarm_for_nobody():
    found = score(rows([*SQUARE, 0.9, 1]), truth(SQUARE), [0], classes=3)
    assert found.ap[0, 0] == 0
    assert np.isnan(found.ap[1:]).all()  # classes without boxes have no precision
    assert found.scores == {"map50": 0, "map50_95": 0}


def test_the_mean_is_over_classes_that_occur():
    found = rows([*SQUARE, 0.9, 0])
    assert score(found, truth(SQUARE, FAR), [0, 2], classes=4).scores["map50"] == pytest.approx(0.5)


def test_padding_counts_neither_as_box_nor_as_detection():
    padded = np.vstack([rows([*SQUARE, 0.9, 0]), np.full((3, 6), -1, np.float32)])
    found = precision([padded], [truth(SQUARE, [0, 0, 0, 0])], [np.array([0, -1])], 1)
    assert found.scores["map50"] == pytest.approx(1)


def test_no_boxes_at_all_have_no_score():
    assert precision([], [], [], 2).scores == {}
    assert precision([rows([*SQUARE, 0.9, 0])], [truth()], [np.array([], int)], 2).scores == {}


# ------------------------------------------------------------------------------------------------ suppression


def greedy(boxes, scores, labels, threshold):
    """The textbook rule, one box at a time."""
    kept = []
    for i in range(len(boxes)):
        rivals = [j for j in kept if labels[j] == labels[i]]
        overlaps = [float(giou_free_iou(boxes[i], boxes[j])) for j in rivals]
        if scores[i] > 0 and all(o <= threshold for o in overlaps):
            kept.append(i)
    return kept


def giou_free_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("seed", range(5))
def test_suppression_in_rounds_equals_the_greedy_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    corner, side = (
        torch.rand(3, 60, 2, generator=generator) * 40,
        torch.rand(3, 60, 2, generator=generator) * 30 + 5,
    )
    boxes = torch.cat([corner, corner + side], -1)
    scores = (
        torch.rand(3, 60, generator=generator)
        .sort(1, descending=True)
        .values.masked_fill(torch.arange(60) > 55, 0)
    )
    labels = torch.randint(0, 2, (3, 60), generator=generator)
    kept = suppress(boxes, scores, labels, 0.4)
    for image in range(3):
        expected = greedy(boxes[image].tolist(), scores[image].tolist(), labels[image].tolist(), 0.4)
        assert kept[image].nonzero()[:, 0].tolist() == expected
        assert 5 < len(expected) < 55


def test_a_box_suppressed_by_a_suppressed_one_stays():
    boxes = torch.tensor(
        [[[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]]
    )  # each overlaps its neighbour by 0.43, not the next
    assert suppress(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3), 0.4).tolist() == [
        [True, False, True]
    ]


def test_detections_are_sorted_padded_and_one_box_may_have_two_classes():
    boxes = torch.tensor([[SQUARE, FAR, SQUARE]])
    scores = torch.tensor([[[0.3, 0.6], [0.9, 0.0], [0.2, 0.0]]])
    found = detections(scores, boxes, least=0.1, limit=5)
    assert found.shape == (1, 5, 6)
    assert found[0, :3, 4].tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert found[0, :3, 5].tolist() == [0, 1, 0]
    assert (found[0, 3:] == -1).all()


def test_giou_of_boxes_apart_falls_with_their_distance():
    a = torch.tensor([0.0, 0, 10, 10])
    near, far = torch.tensor([12.0, 0, 22, 10]), torch.tensor([40.0, 0, 50, 10])
    assert giou(a, a) == pytest.approx(1)
    assert giou(a, near) == pytest.approx(-2 / 22)  # hull 220, union 200
    assert giou(a, far) < giou(a, near)
