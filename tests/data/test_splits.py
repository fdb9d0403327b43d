"""Cutting a part off the training data: seeded, in proportion, and never what must stay."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from overnight.data.content import Boxes, BoxItem, CleaningCounts, Graph, ImageItem, Images
from overnight.data.splits import cut, stratified
from overnight.errors import DataError


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


# ------------------------------------------------------------------------------------------------ copies


@pytest.fixture
def pictures(folder):
    """Write pictures, each of one level; equal levels are copies."""

    def write(levels: dict[str, int]) -> None:
        for name, level in levels.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), level).save(path)

    return write


def test_copies_are_counted_within_and_across_splits(load, pictures) -> None:
    levels = {"train/a/1.png": 1, "train/a/2.png": 1, "train/b/3.png": 3, "val/a/4.png": 1, "test/b/5.png": 3}
    pictures({**levels, "test/a/6.png": 3, "test/a/7.png": 7})
    content = load("image_folder", {})
    assert content.cleaned == {
        "copy of another sample of train kept": 1,
        "copy of another sample of test kept": 1,
        "sample of val that train has too kept": 1,
        "sample of test that train has too kept": 2,
        "copy that is labelled in another way kept": 3,
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_copies_stay_in_one_split(load, pictures, share: float, seed: int) -> None:
    pictures({f"{'ab'[i % 2]}/{i}.png": i % 30 for i in range(40)})
    content = cut(load("image_folder", {}), {"test": share, "val": share}, seed)
    seen = {s: {item.open().getpixel((0, 0)) for item in items} for s, items in content.splits.items()}
    assert not seen["train"] & seen["test"] | seen["train"] & seen["val"] | seen["test"] & seen["val"]
    assert sum(map(len, content.splits.values())) == 40
    assert abs(len(content.splits["test"]) - 40 * share) <= 4


@pytest.mark.parametrize("pattern", [r"^(\w+)_", r"p\d+(?=_)", r"(p\d+)_\d"])
def test_groups_by_name_stay_in_one_split(load, pictures, pattern: str) -> None:
    pictures({f"{'ab'[p % 2]}/p{p}_{i}.png": 10 * p + i for p in range(10) for i in range(5)})
    pattern = pattern.replace("^", "/")
    content = load("image_folder", {}, groups=pattern, splits={"test": 0.2})
    people = {s: {item.name.split("_")[0] for item in items} for s, items in content.splits.items()}
    assert not people["train"] & people["test"]
    assert len(people["test"]) == 2


def test_equal_pixels_and_equal_lines_are_copies_too(load, folder) -> None:
    (folder / "i").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 1, 5, 6, 5]))
    content = load("idx", {"splits": {"train": {"images": "i"}}})
    assert content.cleaned == {"copy of another sample of train kept": 1}
    (folder / "t").write_text("1 good\n0 bad\n1 good\n0 good\n" * 3)
    content = load("text_lines", {"splits": {"train": "t"}}, splits={"test": 0.5})
    assert content.cleaned == {
        "copy of another sample of train kept": 10,
        "copy that is labelled in another way kept": 9,
    }
    seen = {split: {text for text, _ in items} for split, items in content.splits.items()}
    assert not seen["train"] & seen["test"]


def test_a_split_that_is_off_is_there_and_empty(load, pictures) -> None:
    pictures({f"{'ab'[i % 2]}/{i}.png": i for i in range(20)})
    content = load("image_folder", {}, splits={"test": 0.2, "val": False})
    assert {split: len(items) for split, items in content.splits.items()} == {
        "train": 16,
        "test": 4,
        "val": 0,
    }


def test_a_strict_set_refuses_what_a_rule_would_drop_or_repair(load, pictures, folder) -> None:
    pictures({"a/1.png": 1, "b/2.png": 1})
    assert load("image_folder", {}, strict=True).cleaned["copy of another sample of train kept"] == 1
    (folder / "a" / "notes.txt").write_text("x")
    (folder / "a" / "3.heic").write_text("x")
    with pytest.raises(DataError) as caught:
        load("image_folder", {}, strict=True)
    assert [problem.removeprefix("data set 'made' is strict: ") for problem in caught.value.problems] == [
        "file that is no image left out: 1 (first: notes.txt); mend it, or remove `strict`",
        "image of the format heic, which is not read, left out: 1 (first: 3.heic); mend it, or remove `strict`",
    ]


def test_the_sentence_names_what_was_applied_most() -> None:
    counts = CleaningCounts({f"rule {i}": i for i in range(8)})
    said = "odd data: rule 7 7, rule 6 6, rule 5 5, rule 4 4, rule 3 3, 2 more in the log"
    assert counts.sentence() == said
    assert CleaningCounts({"none": 0}).sentence() == ""
