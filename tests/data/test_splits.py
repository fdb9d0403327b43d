"""Cutting a part off the training data: seeded, in proportion, and never what must stay."""

from collections import Counter

import numpy as np
import pytest

from overnight.data.content import Boxes, BoxItem, Graph, ImageItem, Images
from overnight.data.splits import cut, stratified


@pytest.mark.parametrize("fraction", [0.1, 0.125, 0.2, 1 / 3, 0.5])
def test_each_class_gives_its_share_and_the_whole_is_right(fraction: float) -> None:
    labels = [0] * 100 + [1] * 50 + [2] * 25 + [3] * 7
    found = Counter(labels[i] for i in stratified(labels, fraction))
    for label, there in Counter(labels).items():
        assert abs(found[label] - there * fraction) < 1
    assert abs(sum(found.values()) - len(labels) * fraction) <= 1


def test_the_seed_decides_and_the_order_stays() -> None:
    labels = [0, 1] * 50
    assert stratified(labels, 0.2, 1) == stratified(labels, 0.2, 1) != stratified(labels, 0.2, 2)
    assert stratified(labels, 0.2) == sorted(set(stratified(labels, 0.2)))


def test_unlabelled_samples_and_the_last_of_a_class_stay() -> None:
    labels = [-1] * 50 + [0] + [1] * 9
    assert all(labels[i] == 1 for i in stratified(labels, 0.9))
    assert len(stratified(labels, 0.9)) == 8
    assert stratified([0], 0.9) == []
    assert stratified([], 0.5) == []


def images(labels: list[int], **more: list[ImageItem]) -> Images:
    return Images(
        ("a", "b"),
        {"train": [ImageItem(str(i), lambda: None, label) for i, label in enumerate(labels)], **more},
    )


def test_splits_that_are_there_stay_as_they_are() -> None:
    own = [ImageItem("own", lambda: None, 0)]
    content = cut(images([0, 1] * 50, test=own), {"test": 0.2, "val": 0.1})
    assert content.splits["test"] == own
    assert {s: len(items) for s, items in content.splits.items()} == {"train": 90, "test": 1, "val": 10}


def test_an_empty_split_counts_as_none() -> None:
    assert len(cut(images([0, 1] * 50, test=[]), {"test": 0.2}).splits["test"]) == 20


def test_boxes_are_cut_with_and_without_boxes_in_proportion() -> None:
    def item(i: int, n: int) -> BoxItem:
        return BoxItem(str(i), lambda: None, np.zeros((n, 4), np.float32), np.zeros(n, np.int64))

    content = cut(Boxes(("x",), {"train": [item(i, i % 2) for i in range(40)]}), {"test": 0.5})
    assert Counter(len(item.labels) for item in content.splits["test"]) == {0: 10, 1: 10}


def test_graphs_and_tables_are_left_to_their_tasks() -> None:
    graph = Graph(np.zeros((2, 0), np.int64), 1, None, np.zeros(1, np.int64), ("a",))
    assert cut(graph, {"test": 0.5}) is graph
