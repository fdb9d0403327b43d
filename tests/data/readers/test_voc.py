"""Annotations as people have them: understood by a stated rule and counted, or refused with the file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overnight.errors import DataError

W, H = 40, 30
BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def thing(name: str = "cat", box: tuple = (4, 6, 20, 16), inside: str | None = None) -> str:
    return f"<object><name>{name}</name>{BOX.format(*box) if inside is None else inside}</object>"


def xml(*objects: str, size: tuple | None = (W, H)) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>x.jpg</filename>{stated}{''.join(objects)}</annotation>"


def put(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def picture(path: Path, orientation: int = 1, box: tuple = (4, 6, 20, 16)) -> None:
    """As stored 40 x 30, black, and white in the box."""
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    pixels[0, 0] = path.stem.encode()[-1] % 100  # no two are copies
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, quality=100)


def pair(folder: Path, name: str, annotation: str | bytes | None = None, ending: str = "png") -> None:
    picture(folder / "JPEGImages" / f"{name}.{ending}")
    put(folder / "Annotations" / f"{name}.xml", xml(thing()) if annotation is None else annotation)


def boxes(content, split: str = "train") -> list:
    return [item.boxes.tolist() for item in content.splits[split]]


TURNED = "<robndbox><cx>12</cx><cy>11</cy><w>10</w><h>16</h><angle>{}</angle></robndbox>"
WHOLE = [[[4, 6, 20, 16]]]


@pytest.mark.parametrize(
    "annotation",
    [
        xml(thing()).replace("<annotation>", '<annotation xmlns="http://a.example/voc">'),
        xml(thing())
        .replace("annotation>", "v:annotation>")
        .replace("<v:", "<v:", 1)
        .replace("<v:annotation>", '<v:annotation xmlns:v="urn:voc">', 1),
        xml(thing()).replace("object>", "Object>"),
        xml(thing())
        .replace("bndbox>", "bndBox>")
        .replace("xmin>", "XMin>")
        .replace("annotation>", "Annotation>"),
        xml(f"<objects>{thing()}</objects>"),
        xml(thing(box=(" 4.0", "6.00 ", "2e1", "16"))),
        "\N{BYTE ORDER MARK}<?xml version='1.0' encoding='utf-8'?>\r\n" + xml(thing()),
        ("<?xml version='1.0' encoding='utf-16'?>" + xml(thing())).encode("utf-16"),
        xml(thing(inside=f"<polygon><x1>9</x1><y1>9</y1></polygon>{BOX.format(4, 6, 20, 16)}")),
        xml(thing(), size=None),
        xml(thing(), size=(0, 0)),
        xml(thing(), size=("40.0", "unknown")),
        xml("<weather>rain</weather>", thing()),
    ],
)
def test_an_annotation_is_understood_however_it_is_written(load, folder, annotation) -> None:
    pair(folder, "a", annotation)
    content = load("voc", {})
    assert (boxes(content), content.classes, content.cleaned) == (WHOLE, ("cat",), {})


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (xml(thing()).replace("object>", "item>"), "<bndbox> is not understood"),
        (xml(thing().replace("object>", "instance>")), "a.xml: <bndbox> is not understood"),
        (xml("<item><class>cat</class><left>4</left></item>"), "<item> is not understood"),
        (xml(thing(), f"<hidden>{BOX.format(1, 1, 9, 9)}</hidden>"), "<bndbox> is not understood"),
        (xml(thing()).replace("annotation>", "annotations>"), "its root is <annotations>"),
        ("<html><body/></html>", "its root is <html>"),
        (xml(thing(inside="")), "lacks a corner"),
        (
            xml(thing(inside="<bndbox><x>4</x><y>6</y><width>9</width><height>9</height></bndbox>")),
            "lacks a corner",
        ),
        (xml(thing(box=("4,5", 6, 20, 16))), "lacks a corner"),
        (xml(thing(box=("nan", 6, 20, 16))), "lacks a corner"),
        (xml(thing(box=(4, 6, "1e999", 16))), "lacks a corner"),
        (
            xml(thing(inside=TURNED.format("3"))),
            r"a\.xml: its box is rotated by 3 .* `options: {angles: radians}`",
        ),
        (xml(thing(inside=TURNED.format("1.57"))), "may be radians or degrees"),
        (xml(thing(inside=TURNED.format(""))), "lacks a corner"),
        (xml(thing(inside=TURNED.format("inf"))), "lacks a corner"),
        (
            xml(thing(inside=BOX.format(4, 6, 20, 16).replace("</bndbox>", "<angle>30</angle></bndbox>"))),
            "a box has corners and an <angle>",
        ),
        ("<annotation/>", "the annotation says nothing"),
        ("", "the file is empty"),
        (xml(thing())[:-30], "expected an xml annotation"),
        (xml(thing("")), "1 of 1 boxes have no class name"),
        (xml(thing("  ")), "have no class name"),
    ],
)
def test_what_is_not_understood_is_never_an_image_without_boxes(
    load, folder, annotation: str, said: str
) -> None:
    pair(folder, "a", annotation)
    with pytest.raises(DataError, match=said):
        load("voc", {})


@pytest.mark.parametrize(
    ("inside", "expected", "rule"),
    [
        (
            "<polygon><x1>4</x1><y1>6</y1><x2>20</x2><y2>8</y2><x3>9</x3><y3>16</y3></polygon>",
            WHOLE[0],
            "polygon",
        ),
        ("<polygon><pt><x>4</x><y>16</y></pt><pt><x>20</x><y>6</y></pt></polygon>", WHOLE[0], "polygon"),
        (
            "<bndbox><x0>4</x0><y0>6</y0><x1>20</x1><y1>6</y1><x2>20</x2><y2>16</y2></bndbox>",
            WHOLE[0],
            "polygon",
        ),
        (
            "<robndbox><cx>12</cx><cy>11</cy><w>10</w><h>16</h><angle>1.5707963267948966</angle></robndbox>",
            WHOLE[0],
            "rotated box, its angle in radians,",
        ),
    ],
)
def test_other_shapes_become_the_upright_box_around_them(
    load, folder, inside: str, expected, rule: str
) -> None:
    pair(folder, "a", xml(thing(inside=inside)))
    content = load("voc", {})
    np.testing.assert_allclose(content.splits["train"][0].boxes, expected, atol=1e-4)
    assert content.cleaned == {f"{rule} replaced by the upright box around it": 1}


def test_corners_in_0_to_1_are_scaled_file_by_file(load, folder) -> None:
    pair(folder, "a", xml(thing(box=(0.1, 0.2, 0.5, 16 / 30))))
    pair(folder, "b", xml(thing(box=(0, 0, 1, 1))))
    pair(folder, "c")
    content = load("voc", {})
    np.testing.assert_allclose(
        boxes(content), [[[4, 6, 20, 16]], [[0, 0, 40, 30]], [[4, 6, 20, 16]]], rtol=1e-6
    )
    assert content.cleaned == {"annotation with corners in 0..1 scaled to its image": 2}
    pair(folder, "a")  # without fractions anywhere 0 0 1 1 is a pixel
    assert boxes(load("voc", {}))[1] == [[0, 0, 1, 1]]


def test_names_of_classes_are_tidied_and_those_nearly_equal_are_named(load, folder) -> None:
    pair(folder, "a", xml(thing("cat"), thing(" cat\n"), thing("Cat"), thing(""), thing("gre\u0301y  cat")))
    content = load("voc", {})
    assert content.classes == ("Cat", "cat", "gr\u00e9y cat")
    assert (
        content.cleaned
        == {
            "class name with blanks or accents in another form tidied": 2,
            "classes 'Cat' and 'cat' of nearly one name kept apart": 1,
            "box without a class name dropped": 1,
        }
        or content.cleaned["classes 'cat' and 'Cat' of nearly one name kept apart"] == 1
    )
    with pytest.raises(
        DataError, match="no box is of the entry's classes dog; those of the boxes are Cat, cat"
    ):
        load("voc", {"classes": ["dog"]})


def test_a_class_of_val_alone_is_a_class(load, folder) -> None:
    pair(folder, "a")
    pair(folder, "b", xml(thing("dog")))
    put(folder / "ImageSets/Main/train.txt", "a\n")
    put(folder / "ImageSets/Main/val.txt", "b\n")
    assert load("voc", {}).classes == ("cat", "dog")


# ------------------------------------------------------------------------------------------------ partners


def test_what_finds_no_partner_is_counted_with_its_name(load, folder) -> None:
    for name in ("a", "b", "c"):
        pair(folder, name)
    picture(folder / "JPEGImages" / "street.jpg")
    put(folder / "JPEGImages" / "._a.png", b"\0\5\26\7")
    put(folder / "Annotations" / "._a.xml", b"\0\5\26\7")
    put(folder / "Annotations" / "gone.xml", xml(thing()))
    put(folder / "Annotations" / "b.xml", "")
    put(folder / "JPEGImages" / "@eaDir" / "a.png" / "thumb.jpg", b"x")
    content = load("voc", {})
    assert [item.name for item in content.splits["train"]] == ["a.png", "c.png", "street.jpg"]
    assert content.cleaned == {
        "image without an annotation kept as background": 1,
        "annotation without its image left out": 1,
        "image whose annotation is damaged left out": 1,
        "folder of the system's own passed over": 1,
    }
    assert content.cleaned.first["image without an annotation kept as background"] == "street.jpg"
    assert content.cleaned.first["annotation without its image left out"] == "gone.xml"
    assert (
        "Annotations/b.xml: the file is empty"
        in content.cleaned.first["image whose annotation is damaged left out"]
    )
    dropped = load("voc", {"unannotated": "drop"})
    assert [item.name for item in dropped.splits["train"]] == ["a.png", "c.png"]


def test_names_in_another_case_meet_and_boxes_that_are_all_dropped_are_named(load, folder) -> None:
    pair(folder, "a")
    (folder / "Annotations/a.xml").rename(folder / "Annotations/A.xml")
    pair(folder, "b", xml(thing(box=(4, 6, 4, 6))))
    content = load("voc", {})
    assert boxes(content) == [*WHOLE, []]
    assert content.cleaned == {
        "annotation given the image of its name in another case": 1,
        "box of zero size dropped": 1,
        "image whose boxes were all dropped left without any": 1,
    }


def test_most_images_without_an_annotation_are_refused_unless_the_entry_says_what_they_are(
    load, folder
) -> None:
    pair(folder, "a")
    for name in ("b", "c"):
        picture(folder / "JPEGImages" / f"{name}.jpg")
    with pytest.raises(
        DataError, match=r"1 of 3 images have an annotation; .*unannotated: background.*'b.jpg', 'c"
    ):
        load("voc", {})
    assert boxes(load("voc", {"unannotated": "background"})) == [*WHOLE, [], []]
    assert boxes(load("voc", {"unannotated": "drop"})) == WHOLE
    (folder / "Annotations" / "a.xml").rename(folder / "Annotations" / "other.xml")
    with pytest.raises(DataError, match="0 of 1 annotations have an image"):
        load("voc", {"unannotated": "background"})


@pytest.mark.parametrize(
    "line",
    ["{}", "{}.png", "JPEGImages/{}.png", "./JPEGImages/{}.png", "/x/set/JPEGImages/{}.png",
     "JPEGImages\\{}.png",
     "{} 1", "{}  -1", "{}.png 0", '"{}.png"', "Annotations/{}.xml"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a", "my photo", "my photo 1", "b.c", "\u00e4h"])
def test_a_list_names_images_in_many_ways(load, folder, line: str, name: str) -> None:
    pair(folder, name)
    pair(folder, "my")
    put(folder / "ImageSets/Main/train.txt", line.format(name) + "\r\n")
    content = load("voc", {})
    assert [item.name for item in content.splits["train"]] == [f"{name}.png"]
    assert content.cleaned == {}


def test_lists_that_name_others_or_one_twice(load, folder) -> None:
    for name in ("a", "b", "c"):
        pair(folder, name)
    put(folder / "ImageSets/Main/train.txt", "a\nb\na.png\nnever\n")
    content = load("voc", {})
    assert [item.name for item in content.splits["train"]] == ["a.png", "b.png"]
    assert content.cleaned == {
        "image listed twice kept once": 1,
        "listed image that is not there left out": 1,
    }
    put(folder / "ImageSets/Main/train.txt", "a\nx1\nx2\nx3\n")
    with pytest.raises(
        DataError, match=r"train.txt: there is no such image for 3 of 4 names.*'x1', 'x2', 'x3' beside 'a"
    ):
        load("voc", {})


def test_two_images_of_one_list_name_in_two_folders_are_refused(load, folder) -> None:
    for place in ("day", "night"):
        picture(folder / place / "a.png")
        put(folder / place / "a.xml", xml(thing()))
    put(folder / "mine.txt", "a\n")
    with pytest.raises(DataError, match="several images are called 'a'; write their folders too"):
        load("voc", {"splits": {"train": "mine.txt"}})
    put(folder / "mine.txt", "night/a.png\n")
    assert boxes(load("voc", {"splits": {"train": "mine.txt"}})) == WHOLE


# ------------------------------------------------------------------------------------------------ photographs


def shown(item) -> list[int]:
    """Where the white part is, as x1 y1 x2 y2."""
    white = np.asarray(item.open().convert("L")) > 128
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    return [int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def seen_box(orientation: int) -> tuple:
    """The box 4 6 20 16 of an image 40 x 30, where Pillow shows it."""
    pixels = np.zeros((H, W), np.uint8)
    pixels[6:16, 4:20] = 255
    turn = {2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.T,
            6: lambda p: np.rot90(p, -1), 7: lambda p: p[::-1, ::-1].T, 8: np.rot90}  # fmt: skip
    turned = turn.get(orientation, lambda p: p)(pixels)
    rows, columns = np.flatnonzero(turned.any(1)), np.flatnonzero(turned.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("means", ["seen", "stored"])
def test_boxes_lie_on_the_right_pixels_whichever_an_annotation_means(
    load, folder, ending: str, orientation: int, means: str
) -> None:
    """A photograph on its side tells by its size; the others follow it, as theirs does not tell."""
    for name, turned in (("a", orientation), ("b", 6)):
        picture(folder / "JPEGImages" / f"{name}.{ending}", turned)
        size = (H, W) if turned > 4 and means == "seen" else (W, H)
        box = seen_box(turned) if means == "seen" else (4, 6, 20, 16)
        put(folder / "Annotations" / f"{name}.xml", xml(thing(box=box), size=size))
    content = load("voc", {})
    for item in content.splits["train"]:
        assert np.abs(np.array(shown(item)) - item.boxes[0]).max() <= (1 if ending in ("jpg", "webp") else 0)
    assert sum(content.cleaned.values()) == (orientation in (2, 3, 4))


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_without_a_size_boxes_are_as_seen_unless_they_fit_or_the_entry_says_otherwise(
    load, folder, orientation: int
) -> None:
    picture(folder / "JPEGImages" / "a.png", orientation)
    put(folder / "Annotations" / "a.xml", xml(thing(box=seen_box(orientation)), size=None))
    item = load("voc", {}).splits["train"][0]
    assert shown(item) == item.boxes[0].tolist()
    put(folder / "Annotations" / "a.xml", xml(thing(box=(4, 6, 20, 16)), size=None))
    item = load("voc", {"orientation": "stored"}).splits["train"][0]
    assert shown(item) == item.boxes[0].tolist()
    put(folder / "Annotations" / "a.xml", xml(thing(), thing(box=(0, 0, 40, 30)), size=None))
    content = load("voc", {})
    if orientation > 4:  # reaches beyond the image as seen
        assert shown(content.splits["train"][0]) == content.splits["train"][0].boxes[0].tolist()


def test_an_image_of_another_size_than_its_annotation_states_is_left_out(load, folder) -> None:
    pair(folder, "a")
    pair(folder, "b", xml(thing(box=(400, 60, 2000, 160)), size=(4000, 3000)))
    content = load("voc", {})
    assert [item.name for item in content.splits["train"]] == ["a.png"]
    rule = "image of another size than its annotation states left out"
    assert content.cleaned == {rule: 1}
    assert content.cleaned.first[rule] == "b.xml states 4000 x 3000, b.png has 40 x 30 pixels"
    pair(folder, "a", xml(thing(), size=(H, W)))
    with pytest.raises(DataError, match="2 of 2 annotations state another size than their image has"):
        load("voc", {})


def test_objects_that_are_deleted_or_of_an_unknown_tag(load, folder) -> None:
    pair(folder, "a", xml(thing("dog").replace("<bndbox>", "<deleted>1</deleted><bndbox>"), thing()))
    content = load("voc", {})
    assert boxes(content) == WHOLE
    assert content.cleaned["object that is marked as deleted left out"] == 1
    other = "<thing><name>dog</name><rect><left>1</left><top>1</top></rect></thing>"
    pair(folder, "b", xml(thing(), other))
    with pytest.raises(DataError, match=r"b\.xml: <thing> is not understood"):
        load("voc", {})


def test_an_annotation_that_names_another_image_of_the_set_is_counted(load, folder) -> None:
    pair(folder, "a", xml(thing()).replace("x.jpg", "b.png"))
    pair(folder, "b", xml(thing()).replace("x.jpg", "C:\\old\\b.png"))
    cleaned = load("voc", {}).cleaned
    rule = "annotation that names another image kept with that of its own name"
    assert (cleaned[rule], cleaned.first[rule]) == (1, "a.png has an annotation of b.png")


def test_lists_of_classes_alone_are_no_splits_and_counted(load, folder) -> None:
    pair(folder, "a")
    put(folder / "ImageSets" / "Main" / "cat_train.txt", "a 1\n")
    assert load("voc", {}).cleaned["list that is not called like a split left out"] == 1


@pytest.mark.parametrize(
    ("angles", "options", "unit"),
    [
        (["90", "2"], {}, "degrees"),
        (["-270", "0"], {}, "degrees"),
        (["1.5707963", "3"], {}, "radians"),
        (["90", "0"], {"angles": "degrees"}, "degrees"),
        (["1.57", "0"], {"angles": "radians"}, "radians"),
    ],
)
def test_angles_of_a_set_are_of_one_unit_and_it_is_said(
    load, folder, angles: list, options: dict, unit: str
) -> None:
    for name, angle in zip("ab", angles, strict=True):
        pair(folder, name, xml(thing(inside=TURNED.format(angle))))
    content = load("voc", options)
    np.testing.assert_allclose(content.splits["train"][0].boxes, WHOLE[0], atol=0.02)
    assert content.cleaned == {f"rotated box, its angle in {unit}, replaced by the upright box around it": 2}


def test_a_box_that_is_not_turned_needs_no_unit(load, folder) -> None:
    pair(folder, "a", xml(thing(inside=TURNED.format("0"))))
    assert boxes(load("voc", {})) == [[[7, 3, 17, 19]]]
