"""One set in many layouts is one set; an entry can say which."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overnight import RecordingRun
from overnight.data.dataset import Dataset
from overnight.errors import DataError
from tasks.detection.scenes import SceneParams, load_boxes
from tests.data.readers.test_voc import thing, xml
from tests.support.undrawn import UndrawnRun

SPLITS = {"train": ["a", "b", "c"], "val": ["d"], "test": ["e", "f"]}


def write(images: Path, annotations: Path, names: list[str]) -> None:
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    for name in names:
        level = ord(name) - 90
        Image.fromarray(np.full((30, 40, 3), level, np.uint8)).save(images / f"{name}.png")
        box = (level, level, level + 9, level + 8)
        (annotations / f"{name}.xml").write_text(
            xml(thing("cat" if level % 2 else "dog", box)), encoding="utf-8"
        )


def lists(folder: Path, form: str = "{}") -> None:
    (folder / "ImageSets/Main").mkdir(parents=True)
    for split, names in SPLITS.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text(
            "\n".join(form.format(n) for n in reversed(names))
        )


def voc(folder: Path) -> dict:
    write(folder / "JPEGImages", folder / "Annotations", [n for names in SPLITS.values() for n in names])
    lists(folder)
    return {}


def lists_with_paths(folder: Path) -> dict:
    write(folder / "images", folder / "xml", [n for names in SPLITS.values() for n in names])
    lists(folder, "images/{}.png xml/x.xml")
    return {}


def lists_in_capitals(folder: Path) -> dict:
    voc(folder)
    lists = folder / "ImageSets/Main"
    for split, name in {"train": "Train.txt", "val": "Validation.txt", "test": "TEST.TXT"}.items():
        (lists / f"{split}.txt").rename(lists / name)
    (lists / "cat_train.txt").write_text("a 1\nb -1\n")
    return {}


def lists_beside(folder: Path) -> dict:
    """Lists of pairs beside the folders."""
    voc(folder)
    for split, names in SPLITS.items():
        (folder / "ImageSets/Main" / f"{split}.txt").unlink()
        pairs = [f"./JPEGImages/{name}.png ./Annotations/{name}.xml" for name in names]
        (folder / f"{split}.txt").write_text("\n".join(pairs))
    (folder / "label_list.txt").write_text("cat\ndog\n")
    return {}


def beside(folder: Path) -> dict:
    for split, names in SPLITS.items():
        write(folder / split, folder / split, names)
    return {}


def folders_by_split(folder: Path) -> dict:
    for split, names in SPLITS.items():
        name = {"val": "Valid"}.get(split, split)
        write(folder / name / "JPEGImages", folder / name / "Annotations", names)
    return {}


def splits_below(folder: Path) -> dict:
    for split, names in SPLITS.items():
        write(folder / "images" / split, folder / "annotations" / split, names)
    return {}


def two_folders(folder: Path) -> dict:
    write(folder / "day", folder / "day", ["a", "c"])
    write(folder / "night", folder / "night", ["b"])
    write(folder / "v", folder / "v", SPLITS["val"])
    write(folder / "t", folder / "t", SPLITS["test"])
    return {"splits": {"train": ["day", "night"], "val": "v", "test": "t"}}


def two_pairs_of_folders(folder: Path) -> dict:
    write(folder / "i1", folder / "x1", ["a", "d", "e"])
    write(folder / "i2", folder / "x2", ["b", "c", "f"])
    lists(folder)
    return {"images": ["i1", "i2"], "annotations": ["x1", "x2"]}


def deep(folder: Path) -> dict:
    write(folder / "JPEGImages/one", folder / "Annotations/one", ["a", "d", "e"])
    write(folder / "JPEGImages/two/more", folder / "Annotations/two/more", ["b", "c", "f"])
    lists(folder)
    return {}


LAYOUTS = [voc, beside, folders_by_split, splits_below, two_folders, two_pairs_of_folders, deep, lists_with_paths,
           lists_in_capitals, lists_beside]  # fmt: skip


@pytest.fixture
def digest(checkout, tmp_path):
    def made(layout) -> str:
        folder = checkout / "datasets" / layout.__name__
        folder.mkdir()
        entry = Dataset(name=layout.__name__, kind="boxes", reader="voc", options=layout(folder))
        run = UndrawnRun(tmp_path / layout.__name__)
        out = load_boxes.body(run, SceneParams(size=64), entry)
        assert out.spec.counts == {"train": 3, "val": 1, "test": 2}
        assert not [event for event in run.of("log") if event["text"].startswith("data:")]
        return out.digest

    return made


def test_one_set_has_one_digest_in_every_layout(digest) -> None:
    assert len({digest(layout) for layout in LAYOUTS}) == 1


def test_a_flat_folder_and_val_off(load, folder, tmp_path) -> None:
    write(folder, folder, ["a", "b", "c"])
    assert {s: len(i) for s, i in load("voc", {}).splits.items()} == {"train": 3}
    entry = Dataset(name="made", kind="boxes", reader="voc")
    counts = [
        load_boxes.body(RecordingRun(tmp_path / str(val)), SceneParams(size=64, val=val), entry).spec.counts
        for val in (0.4, False)
    ]
    assert counts == [{"train": 2, "val": 1, "test": 0}, {"train": 3, "val": 0, "test": 0}]


def test_a_list_of_train_and_val_is_not_read_beside_one_of_val(load, folder) -> None:
    voc(folder)
    (folder / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\nd\n")
    assert set(load("voc", {}).splits) == {"train", "val", "test"}
    for split in ("train", "val"):
        (folder / f"ImageSets/Main/{split}.txt").unlink()
    assert {s: len(i) for s, i in load("voc", {}).splits.items()} == {"train": 4, "test": 2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": "nowhere"}, "nowhere: there is no such folder"),
        ({"annotations": "nowhere"}, "nowhere: there is no such folder"),
        ({"splits": {"train": "nowhere"}}, "nowhere: there is no such file"),
        ({"images": "Annotations", "annotations": "Annotations"}, "annotations have an image of their name"),
    ],
)
def test_options_that_name_nothing(load, folder, options: dict, said: str) -> None:
    voc(folder)
    with pytest.raises(DataError, match=said):
        load("voc", options)
