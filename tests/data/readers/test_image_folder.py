"""Folders as people and systems leave them: which are classes, and what is counted or refused."""

import io
import os
from random import Random

import pytest
import yaml
from PIL import Image

from overnight.data.images import decode, to_mode
from overnight.errors import DataError


def picture(path, form: str = "PNG", level: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (level, level, level)).save(stream, form)
    path.write_bytes(stream.getvalue())


def fill(folder, *names: str) -> None:
    for level, name in enumerate(names):
        picture(folder / name, level=level)


LEAVINGS = ["__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN", "System Volume Information",
            ".Trash-1000", "#recycle", ".git", "__pycache__"]  # fmt: skip


@pytest.mark.parametrize("name", LEAVINGS)
@pytest.mark.parametrize("place", ["", "cat/", "train/"])
def test_what_systems_leave_is_neither_class_nor_sample(load, folder, name: str, place: str) -> None:
    below = "train/" if place == "train/" else ""
    fill(folder, f"{below}cat/1.png", f"{below}dog/2.png", f"{place}{name}/3.png", f"{place}{name}/cat/4.png")
    content = load("image_folder", {})
    assert content.classes == ("cat", "dog")
    assert len(content.splits["train"]) == 2
    assert content.cleaned == {"folder of the system's own passed over": 1}


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", ".DS_Store", "._1.png"])
def test_files_of_systems_are_passed_over(load, folder, name: str) -> None:
    fill(folder, "cat/1.png", "dog/2.png")
    (folder / "cat" / name).write_bytes(b"x")
    assert load("image_folder", {}).cleaned == {}


@pytest.mark.parametrize(
    ("paths", "where", "splits"),
    [
        (["my/train/cat/1.png", "my/train/dog/2.png", "my/val/cat/3.png"], "my",
         {"train": "my/train", "val": "my/val"}),
        (["my/cat/1.png", "my/dog/2.png"], "my", {"train": "my"}),
        (["my, set: 2/cat/1.png", "my, set: 2/dog/2.png"], "my, set: 2", {"train": "my, set: 2"}),
        (["my/deep/cat/1.png", "my/deep/dog/2.png"], "my/deep", {"train": "my/deep"}),
        (["a/Training/cat/1.png", "a/Training/dog/2.png"], "a", {"train": "a/Training"}),
        (["fold1/cat/1.png", "fold1/dog/2.png", "fold2/cat/3.png", "fold2/dog/4.png"], "fold1",
         {"train": ["fold1", "fold2"]}),
        (["cat/1.png", "dog/2.png", "more/cat/3.png", "more/dog/4.png"], "more", {"train": "more"}),
        (["test/cat/1.png", "test/dog/2.png"], "test", {"train": "test"}),
        (["train/a/cat/1.png", "train/a/dog/2.png", "train/b/cat/3.png", "train/b/dog/4.png"], "train/a",
         {"train": ["train/a", "train/b"]}),
        (["train/x/cat/1.png", "train/x/dog/2.png"], "train/x", {"train": "train/x"}),
        (["train/train/cat/1.png", "train/train/dog/2.png", "test/test/cat/3.png", "test/test/dog/4.png",
          "val/cat/5.png"], "train/train", {"train": "train/train", "val": "val", "test": "test/test"}),
    ],
)  # fmt: skip
def test_a_wrapper_or_split_is_no_class_and_the_line_that_is_told_mends_it(
    load, folder, paths, where, splits
) -> None:
    fill(folder, *paths)
    with pytest.raises(DataError, match=rf"made/{where}: it holds no image of its own") as caught:
        load("image_folder", {})
    line = str(caught.value).split("`")[1]
    assert yaml.safe_load(line) == {"options": {"splits": splits}}
    found = load("image_folder", yaml.safe_load(line)["options"])
    assert set(found.classes) <= {"cat", "dog"}
    assert set(found.splits) == set(splits)


@pytest.mark.parametrize(
    "paths",
    [
        ["cat/images/1.png", "dog/images/2.png"],
        ["cat/1.png", "cat/session/2.png", "dog/3.png"],
        ["cat/2024/may/1.png", "dog/2024/june/2.png"],
    ],
)
def test_images_deeper_below_a_class_are_its_own(load, folder, paths) -> None:
    fill(folder, *paths)
    assert load("image_folder", {}).classes == ("cat", "dog")


def test_classes_that_the_entry_lists_may_hold_folders(load, folder) -> None:
    fill(folder, "cat/a/1.png", "cat/b/2.png", "dog/a/3.png", "dog/b/4.png")
    content = load("image_folder", {"classes": ["cat", "dog"]})
    assert [item.label for item in content.splits["train"]] == [0, 0, 1, 1]


def test_classes_of_nearly_one_name_and_empty_ones_are_named(load, folder) -> None:
    fill(folder, "Cat/1.png", "cat/2.png", "dog/3.png", "loose.png")
    (folder / "bird").mkdir()
    content = load("image_folder", {})
    assert content.classes == ("Cat", "bird", "cat", "dog")
    assert content.cleaned == {
        "classes 'Cat' and 'cat' of nearly one name kept apart": 1,
        "empty class kept": 1,
        "image in no class's folder left out": 1,
    }
    assert content.cleaned.first["empty class kept"] == "bird"


def test_several_folders_make_a_split(load, folder) -> None:
    fill(folder, "day/cat/1.png", "night/cat/1.png", "night/dog/2.png")
    content = load("image_folder", {"splits": {"train": ["day", "night"]}})
    assert [item.label for item in content.splits["train"]] == [0, 0, 1]


@pytest.mark.parametrize(
    ("ending", "form"),
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("j2k", "JPEG2000"), ("tga", "TGA"),
     ("pbm", "PPM"), ("apng", "PNG"), ("mpo", "JPEG"), ("dib", "BMP")],
)  # fmt: skip
def test_formats_that_pillow_opens_are_read(load, folder, ending: str, form: str) -> None:
    picture(folder / "cat" / f"1.{ending.upper()}", form)
    item = load("image_folder", {}).splits["train"][0]
    assert item.open().size == (12, 10)


def test_formats_that_are_not_read_are_named(load, folder) -> None:
    fill(folder, "cat/1.png", "cat/2.HEIC", "cat/3.cr2", "cat/notes.txt", "dog/1.png")
    assert load("image_folder", {}).cleaned == {
        "image of the format heic, which is not read, left out": 1,
        "image of the format cr2, which is not read, left out": 1,
        "file that is no image left out": 1,
    }


def test_folders_that_are_links_to_one_another_end(load, folder) -> None:
    fill(folder, "cat/1.png", "other/2.png")
    (folder / "cat" / "again").symlink_to(folder)
    (folder / "dog").symlink_to(folder / "other")
    content = load("image_folder", {"classes": ["cat", "dog"]})
    assert [item.label for item in content.splits["train"]] == [0, 1]


def test_links_to_nothing_and_pipes_are_counted(load, folder) -> None:
    fill(folder, "cat/1.png", "dog/2.png")
    (folder / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "dog" / "pipe.png")
    content = load("image_folder", {})
    assert content.cleaned == {"link to nothing, or no regular file, left out": 2}
    assert len(content.splits["train"]) == 2


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "JPEG2000", "AVIF", "BMP", "TGA", "PPM"]
)
def test_damaged_files_decode_or_are_refused(form: str) -> None:
    """Bytes of a good file changed at random: no exception of a decoder comes through."""
    stream, random = io.BytesIO(), Random(0)
    Image.linear_gradient("L").resize((24, 20)).convert("RGB").save(stream, form)
    refused = 0
    for _ in range(60):
        data = bytearray(stream.getvalue())
        for _ in range(random.choice([1, 3, 9])):
            data[random.randrange(min(len(data), random.choice([40, 400])))] = random.randrange(256)
        try:
            to_mode(decode("a", bytes(data)))
        except DataError:
            refused += 1
    assert refused


def test_folders_beside_those_of_the_splits_are_named(load, folder) -> None:
    fill(folder, "train/cat/1.png", "val/cat/2.png", "valid/cat/3.png", "extra/dog/4.png", "train/dog/5.png")
    content = load("image_folder", {})
    assert content.cleaned == {"folder beside those of the splits left out": 2}
    assert content.cleaned.first["folder beside those of the splits left out"] == "extra"


@pytest.mark.parametrize(
    ("images", "notes", "said"),
    [
        ("images", "labels/1.txt", "images/ beside labels/ is the layout of YOLO"),
        ("images/train", "labels/train/1.txt", "the layout of YOLO .* reader: voc"),
        ("train/images", "train/labels/1.txt", "the layout of YOLO"),
        ("Images", "annotations/instances.json", "in json, such as COCO"),
        ("JPEGImages", "Annotations/1.xml", "PASCAL VOC: .* set kind: boxes and reader: voc"),
        ("imgs", "masks/1.png", "images with annotations of their own"),
    ],
)
def test_images_beside_annotations_are_no_classes(load, folder, images: str, notes: str, said: str) -> None:
    fill(folder, f"{images}/1.png", f"{images}/2.png")
    (folder / notes).parent.mkdir(parents=True)
    if notes.endswith(".png"):
        picture(folder / notes)
    else:
        (folder / notes).write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=said):
        load("image_folder", {})


def test_folders_called_so_are_classes_where_the_entry_says_it(load, folder) -> None:
    fill(folder, "images/1.png", "labels/2.png")
    assert load("image_folder", {"classes": ["images", "labels"]}).classes == ("images", "labels")


def test_one_class_alone_is_named_until_the_entry_lists_it(load, folder) -> None:
    fill(folder, "train/cat/1.png", "test/cat/2.png")
    content = load("image_folder", {})
    rule = "class alone, with no other to tell it from, kept"
    assert (content.cleaned, content.cleaned.first) == ({rule: 1}, {rule: "cat"})
    assert load("image_folder", {"classes": ["cat"]}).cleaned == {}
