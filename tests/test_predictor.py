"""Input in any usual form becomes the table that a model takes."""

import numpy as np
import pandas as pd
import pytest

from overnight.errors import BadInput
from overnight.predictor import Column, class_losses, class_table, to_frame

PLAIN = (Column(name="node", type="long"),)
VECTOR = (Column(name="observation", type="double", dimensions=(1,)),)
IMAGE = (Column(name="image", type="any", dimensions=(0, 2, 3)),)
TWO = (Column(name="a", type="long"), Column(name="b", type="string"))


def cells(given: object, columns: tuple[Column, ...]) -> list[object]:
    frame = to_frame(given, columns)
    assert list(frame) == [columns[0].name]
    return list(frame[columns[0].name])


def test_one_value_or_many_of_the_only_column() -> None:
    for given in ([3, 4], np.array([3, 4]), pd.Series([3, 4]), {"node": [3, 4]}, [{"node": 3}, {"node": 4}]):
        assert cells(given, PLAIN) == [3, 4]
    assert cells(3, PLAIN) == cells({"node": 3}, PLAIN) == [3]
    for given in (np.zeros(4), [0.0] * 4, {"observation": np.zeros(4)}):
        (cell,) = cells(given, VECTOR)
        assert np.shape(cell) == (4,)
    for given in (np.zeros((3, 4)), [[0.0] * 4] * 3, {"observation": [[0.0] * 4] * 3}):
        assert [np.shape(cell) for cell in cells(given, VECTOR)] == [(4,)] * 3
    image = np.zeros((5, 6, 3), np.uint8)
    assert [np.shape(c) for c in cells(image, IMAGE)] == [np.shape(c) for c in cells(image.tolist(), IMAGE)]
    assert len(cells(np.stack([image] * 4), IMAGE)) == len(cells([image] * 4, IMAGE)) == 4
    assert len(cells([image.tolist(), image[:2].tolist()], IMAGE)) == 2  # of unequal sizes
    assert cells("a.png", IMAGE) == cells(["a.png"], IMAGE) == ["a.png"]
    assert cells([], IMAGE) == []


def test_a_row_by_name_and_a_table() -> None:
    want = pd.DataFrame({"a": [1], "b": ["x"]})
    for given in (want, {"a": 1, "b": "x"}, [{"a": 1, "b": "x"}], {"a": [1], "b": ["x"]}, want.iloc[0]):
        pd.testing.assert_frame_equal(to_frame(given, TWO), want, check_dtype=False)
    with pytest.raises(BadInput, match="a table with the columns 'a', 'b'; this is a list without names"):
        to_frame([[1, "x"]], TWO)
    with pytest.raises(BadInput, match="1 and 2 values"):
        to_frame({"a": [1, 2], "b": ["x"]}, TWO)


def test_classes_probabilities_and_losses() -> None:
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5]])
    table = class_table(("no", "yes"), probabilities)
    assert table.to_dict("list") == {
        "class": ["yes", "no"],
        "probability": [0.75, 0.5],
        "probability_no": [0.25, 0.5],
        "probability_yes": [0.75, 0.5],
    }
    losses = class_losses(("no", "yes"), ["yes", "yes"], probabilities, ["i", "j"], ["same", "same"])
    assert (losses.loss.tolist(), losses.cluster.tolist()) == ([0.0, 1.0], [0, 0])
    assert class_table(("no", "yes"), probabilities[:0]).shape == (0, 4)
