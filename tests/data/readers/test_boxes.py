"""PASCAL VOC: boxes that are odd are mended or dropped by a rule, and counted."""

import numpy as np
import pytest
from PIL import Image

from overnight.errors import DataError


class Set:
    """Writes a small set in the layout of PASCAL VOC."""

    def __init__(self, folder) -> None:
        self.folder = folder
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)

    def image(
        self,
        name: str,
        *boxes: tuple,
        ending: str = "jpg",
        claimed: tuple[int, int] = (40, 30),
        more: str = "",
    ) -> None:
        images = len(list((self.folder / "JPEGImages").iterdir()))  # no two are copies
        Image.new("RGB", (40, 30), (9 * images, 9 * images, 9 * images)).save(
            self.folder / "JPEGImages" / f"{name}.{ending}"
        )
        objects = "".join(
            f"<object><name>{label}</name>{more}<bndbox>"
            f"<ymin>{y1}</ymin><xmin>{x1}</xmin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for label, x1, y1, x2, y2 in boxes
        )
        size = f"<size><width>{claimed[0]}</width><height>{claimed[1]}</height></size>"
        (self.folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation>{size}{objects}</annotation>", encoding="utf-8"
        )

    def listed(self, split: str, *names: str) -> None:
        (self.folder / "ImageSets" / "Main" / f"{split}.txt").write_bytes(
            "\r\n".join([*names, "", ""]).encode()
        )


@pytest.fixture
def made(folder) -> Set:
    return Set(folder)


def test_splits_classes_and_corners(load, made) -> None:
    made.image("a", ("猫", 1, 2, 11, 12), ("Hund", 0, 0, 40, 30))
    made.image("b.c", ("Hund", 3.5, 4, 5, 6), ending="PNG")
    made.listed("train", "a  1")
    made.listed("test", "b.c")
    made.listed("trainval", "a", "b.c")
    content = load("voc", {})
    assert content.classes == ("Hund", "猫")
    assert set(content.splits) == {"train", "test"}
    item = content.splits["train"][0]
    assert item.boxes.tolist() == [[1, 2, 11, 12], [0, 0, 40, 30]]
    assert (item.labels.tolist(), item.boxes.dtype, item.labels.dtype) == ([1, 0], np.float32, np.int64)
    assert (item.name, item.open().size) == ("a.jpg", (40, 30))
    assert content.cleaned == {}


def test_odd_boxes_are_mended_or_dropped_and_counted(load, made) -> None:
    made.image(
        "a",
        ("x", 5, 5, 5, 9),
        ("x", 5, 5, 9, 5),
        ("x", -3, 5, 50, 35),
        ("x", 90, 5, 99, 9),
        ("x", 9, 8, 2, 3),
        ("odd", 1, 1, 2, 2),
    )
    made.image("b")
    made.listed("train", "a", "b")
    content = load("voc", {"classes": ["x", "never"]})
    boxes = [item.boxes.tolist() for item in content.splits["train"]]
    assert boxes == [[[0, 5, 40, 30], [2, 3, 9, 8]], []]
    assert content.splits["train"][1].boxes.shape == (0, 4)
    assert content.cleaned == {
        "box of zero size dropped": 2,
        "box clipped to its image": 1,
        "box outside its image dropped": 1,
        "box with swapped corners turned": 1,
        "box of the unlisted class 'odd' dropped": 1,
        "image without boxes kept": 1,
        "empty class kept": 1,
    }


def test_corners_that_count_from_one(load, made) -> None:
    made.image("a", ("x", 1, 1, 1, 1), ("x", 1, 1, 40, 30))
    made.listed("train", "a")
    content = load("voc", {"first_pixel": 1})
    assert content.splits["train"][0].boxes.tolist() == [[0, 0, 1, 1], [0, 0, 40, 30]]
    assert content.cleaned == {}


def test_difficult_boxes_can_be_left_out(load, made) -> None:
    made.image("a", ("x", 1, 1, 5, 5), more="<difficult>1</difficult>")
    made.listed("train", "a")
    assert len(load("voc", {}).splits["train"][0].boxes) == 1
    content = load("voc", {"drop_difficult": True})
    assert content.cleaned == {"difficult box dropped": 1, "image without boxes kept": 1}


def test_parts_of_an_object_are_not_taken_for_its_box(load, made) -> None:
    made.image("a", ("x", 1, 1, 20, 20))
    xml = made.folder / "Annotations" / "a.xml"
    part = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox>"
    part = f"<part><name>head</name>{part}</part>"
    xml.write_text(xml.read_text().replace("<name>x</name>", f"<name>x</name>{part}"))
    made.listed("train", "a")
    assert load("voc", {}).splits["train"][0].boxes.tolist() == [[1, 1, 20, 20]]


def test_without_lists_everything_is_train_and_the_entry_cuts(load, made) -> None:
    for i in range(10):
        made.image(f"{i}", ("x", 1, 1, 5, 5))
    content = load("voc", {}, splits={"test": 0.3, "val": 0.2})
    assert {k: len(v) for k, v in content.splits.items()} == {"train": 6, "test": 3, "val": 1}


def test_lists_of_ones_own(load, made) -> None:
    made.image("a", ("x", 1, 1, 5, 5))
    (made.folder / "mine.txt").write_text("a\n")
    assert set(load("voc", {"splits": {"test": "mine.txt"}}).splits) == {"test"}


def test_two_images_of_one_name(load, made) -> None:
    made.image("a", ("x", 1, 1, 5, 5))
    made.image("a", ("x", 1, 1, 5, 5), ending="png")
    made.listed("train", "a")
    content = load("voc", {})
    assert (content.splits["train"][0].name, content.cleaned) == (
        "a.jpg",
        {"second image of the same name left out": 1},
    )


def test_an_image_that_does_not_decode_is_left_to_its_opening(load, made) -> None:
    made.image("a", ("x", 1, 1, 5, 5))
    (made.folder / "JPEGImages" / "a.jpg").write_bytes(b"no image")
    made.listed("train", "a")
    item = load("voc", {}).splits["train"][0]
    with pytest.raises(DataError, match=r"a\.jpg: expected an image"):
        item.open()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: (f / "JPEGImages" / "a.jpg").unlink(),
            r"0 of 1 annotations have an image of their name.*none beside 'a\.xml'",
        ),
        (
            lambda f: (f / "Annotations" / "a.xml").unlink(),
            r"0 of 1 images have an annotation.*'a\.jpg' beside none",
        ),
        (
            lambda f: (f / "Annotations" / "a.xml").write_text("<annotation><obj"),
            r"a\.xml: expected an xml annotation",
        ),
        (lambda f: (f / "Annotations" / "a.xml").write_text(""), r"a\.xml: the file is empty"),
        (
            lambda f: (f / "Annotations" / "a.xml").write_text(
                "<annotation><object><name>x</name></object></annotation>"
            ),
            r"a\.xml: a box of 'x' lacks a corner",
        ),
        (lambda f: (f / "ImageSets" / "Main" / "train.txt").write_text(""), r"train\.txt: the file is empty"),
    ],
)
def test_errors_name_the_file(load, made, spoil, said: str) -> None:
    made.image("a", ("x", 1, 1, 5, 5))
    made.listed("train", "a")
    spoil(made.folder)
    with pytest.raises(DataError, match=said):
        load("voc", {})
