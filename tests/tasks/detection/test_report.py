"""Pictures and tables of a detector agree with its scores: what is right, wrong and missed."""

import csv

import numpy as np
import pytest

from tasks.detection import report
from tasks.detection.coco_ap import precision

BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 0, 0, 0]], np.float32)
LABELS = np.array([0, 1, 1, -1])


def guess(at: float, score: float, kind: int, shift: float = 0) -> list[float]:
    return [at + shift, 0, at + 10 + shift, 10, score, kind]


PADDING = [-1.0] * 6


def found(*rows: list[float]) -> np.ndarray:
    return np.array([*rows, PADDING], np.float32)


@pytest.mark.parametrize(
    ("rows", "right", "missed"),
    [
        ([guess(0, 0.9, 0), guess(20, 0.8, 1)], [True, True], [False, False, True]),
        ([guess(0, 0.9, 1)], [False], [True, True, True]),  # another class
        (
            [guess(0, 0.9, 0), guess(0, 0.95, 0, 1)],
            [False, True],
            [False, True, True],
        ),  # one box, found twice
        ([guess(0, 0.9, 0, 6)], [False], [True, True, True]),  # overlaps by a quarter
        ([guess(0, 0.05, 0)], [], [True, True, True]),  # of too low a score
        (
            [guess(0, 0.9, 1), guess(0, 0.5, 0, 1)],
            [False, True],
            [False, True, True],
        ),  # its own class comes first
        ([], [], [True, True, True]),
    ],
)
def test_a_guess_is_right_when_it_lies_on_one_of_its_class(rows, right, missed) -> None:
    one = report.judged(found(*rows), BOXES, LABELS, 0.1)
    assert one.right.tolist() == right
    assert one.missed.tolist() == missed
    assert one.mistakes == right.count(False) + missed.count(True)


def test_best_guesses_are_shown_though_their_scores_are_low() -> None:
    low = found(*(guess(20 * i, 0.1 - i / 100, 0) for i in range(5)))
    assert report.best_guesses(low, LABELS, 0.3) == pytest.approx(0.08)  # as many as there are boxes
    assert report.best_guesses(found(*(guess(0, 0.9, 0) for _ in range(4))), LABELS, 0.3) == 0.3
    assert report.best_guesses(found(), LABELS, 0.3) == 0.3


def test_images_with_the_most_mistakes_come_first_with_all_names() -> None:
    good = found(guess(0, 0.9, 0), guess(20, 0.8, 1), guess(40, 0.7, 1))
    bad = found(guess(60, 0.2, 1))
    images = np.stack([np.full((3, 64, 64), level, np.uint8) for level in range(10)])
    every = [good if i != 7 else bad for i in range(10)]
    many = np.stack([np.vstack([f, *[PADDING] * (4 - len(f))]) for f in every])
    figure = report.drawn(
        images, many, np.stack([BOXES] * 10), np.stack([LABELS] * 10), ["cat", "$dog$"], 0.5
    )
    first = figure.axes[0]
    assert int(first.images[0].get_array().max()) == 7
    assert first.get_title() == "0 right, 1 wrong, 3 missed"
    assert [text.get_text() for text in first.texts] == ["cat", "$dog$", "$dog$", "$dog$ 0.20"]
    assert len(figure.axes) == 8


def test_confusion_and_table_count_the_same_boxes(tmp_path) -> None:
    rows = found(guess(0, 0.9, 1), guess(20, 0.8, 1), guess(60, 0.7, 0))
    one = report.judged(rows, BOXES, LABELS, 0.1)
    figure = report.confusion([one], ["cat", "dog"])
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert cells == {(1, 0): "1", (1, 1): "1", (2, 1): "1", (0, 2): "1"}  # (found, true)
    assert figure.axes[0].get_title(loc="left") == "1 of 3 boxes found\n2 of 3 found wrongly"
    report.by_class(tmp_path / "c.csv", [one], precision([rows], [BOXES], [LABELS], 2), ["cat", "dog"])
    with (tmp_path / "c.csv").open(encoding="utf-8") as file:
        table = {row["class"]: row for row in csv.DictReader(file)}
    assert [table["cat"][key] for key in ("test boxes", "found", "recall", "precision")] == [
        "1",
        "1",
        "0.0000",
        "0.0000",
    ]
    assert [table["dog"][key] for key in ("test boxes", "found", "recall", "precision")] == [
        "2",
        "2",
        "0.5000",
        "0.5000",
    ]


def test_images_to_learn_from_are_shown_with_names_those_with_boxes_first() -> None:
    labels = np.stack([np.full(4, -1), LABELS])
    figure = report.samples(np.zeros((2, 3, 64, 64), np.uint8), np.stack([BOXES] * 2), labels, ["cat", "dog"])
    assert [axes.get_title() for axes in figure.axes] == ["3 boxes", "0 boxes"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["cat", "dog", "dog"]
