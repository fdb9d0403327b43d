"""Scenes: letterboxed from images with boxes, or composed from images of single objects."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overnight import DataSpec, RecordingRun
from overnight.artifact import save
from overnight.config import ConfigError
from overnight.data import dataset
from overnight.data.content import Boxes, BoxItem, CleaningCounts, Images
from overnight.data.dataset import Dataset
from overnight.errors import DataError
from tasks.detection.scenes import ComposeParams, SceneParams, compose_scenes, load_boxes


class MadeUp(Dataset):
    """An entry whose content is at hand."""

    content: object = None

    def load(self, *_args, **_kwargs):
        return self.content


def entry(content, kind="boxes"):
    return MadeUp(name="made_up", kind=kind, reader="voc", content=content)


def photo(width, height, boxes, labels=None, mode="RGB", name="a.png"):
    """Black, and white where the boxes are."""
    pixels = np.zeros((height, width), np.uint8)
    for left, top, right, bottom in np.array(boxes, int).reshape(-1, 4).clip(0):
        pixels[top:bottom, left:right] = 255
    image = Image.fromarray(pixels).convert(mode)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels, np.int64)
    return BoxItem(name, lambda: image, np.array(boxes, np.float32).reshape(-1, 4), labels)


def loaded(tmp_path, splits, size=64, cleaned=None, **values):
    run = RecordingRun(tmp_path)
    content = Boxes(("thing", "other"), splits, CleaningCounts(cleaned or {}))
    out = load_boxes.body(run, SceneParams(size=size, **values), entry(content))
    return run, out, out.arrays()


def white(image):
    rows, columns = (np.flatnonzero((image.min(0) > 170).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (64, 64), (33, 47), (640, 40)])
def test_boxes_follow_their_image_onto_the_canvas(tmp_path, width, height):
    box = [width // 4, height // 4, 3 * width // 4, 3 * height // 4]
    _, out, arrays = loaded(tmp_path, {"train": [photo(width, height, [box])], "val": []})
    assert arrays["train_images"].shape == (1, 3, 64, 64)
    assert np.abs(white(arrays["train_images"][0]) - arrays["train_boxes"][0, 0]).max() <= 1.5
    assert out.spec == DataSpec(
        shape=(3, 64, 64), classes=("thing", "other"), counts={"train": 1, "val": 0, "test": 0}, boxes=1
    )


def test_training_images_are_shown_with_their_boxes(tmp_path):
    run, _, _ = loaded(tmp_path, {"train": [photo(64, 32, [[0, 0, 64, 32]], [1])], "val": []})
    assert [Path(event["path"]).name for event in run.of("publish")] == ["boxes.png"]
    out = RecordingRun(tmp_path / "composed")
    compose_scenes.body(out, ComposeParams(size=96, train=2), objects(tmp_path, {"train": 6}))
    assert [Path(event["path"]).name for event in out.of("publish")] == ["boxes.png"]


def test_margins_are_grey_and_padding_is_marked(tmp_path):
    splits = {
        "train": [photo(64, 32, [[0, 0, 64, 32]], [1]), photo(64, 64, [[0, 0, 10, 10], [20, 20, 40, 40]])],
        "val": [photo(8, 8, [])],
    }
    _, _, arrays = loaded(tmp_path, splits)
    assert (arrays["train_images"][0, :, :16] == 114).all()
    assert (arrays["train_images"][0, :, 48:] == 114).all()
    assert arrays["train_boxes"][0].tolist() == [[0, 16, 64, 48], [0, 0, 0, 0]]
    assert arrays["train_labels"].tolist() == [[1, -1], [0, 0]]
    assert (arrays["val_labels"] == -1).all()
    assert arrays["test_images"].shape == (0, 3, 64, 64)


def test_boxes_beyond_the_image_are_clipped_and_counted(tmp_path):
    boxes = [[-5, -5, 32, 32], [10, 10, 10.2, 20], [70, 70, 90, 90]]
    run, _, arrays = loaded(
        tmp_path, {"train": [photo(64, 64, boxes)], "val": []}, cleaned={"box of zero size dropped": 2}
    )
    assert arrays["train_boxes"][0].tolist() == [[0, 0, 32, 32]]
    lines = {event["text"] for event in run.of("log")}
    assert "data: box clipped to its image: 2" in lines
    assert "data: box under a pixel after resizing dropped: 2" in lines
    assert "data: box of zero size dropped: 2" in lines
    assert "box of zero size dropped 2" in run.of("note")[0]["text"]


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "P", "CMYK", "I;16", "LA"])
def test_images_of_any_mode_become_three_channels(tmp_path, mode):
    _, _, arrays = loaded(tmp_path, {"train": [photo(64, 64, [[0, 0, 32, 64]], mode=mode)], "val": []})
    assert arrays["train_images"].shape == (1, 3, 64, 64)


def test_an_image_that_does_not_decode_is_left_out_and_counted(tmp_path):
    def broken():
        raise DataError("b.png: does not decode")

    bad = BoxItem("b.png", broken, np.zeros((1, 4), np.float32), np.zeros(1, np.int64))
    run, out, _ = loaded(tmp_path, {"train": [bad, photo(8, 8, [])], "val": []})
    assert out.spec.counts["train"] == 1
    assert any("does not decode" in event["text"] for event in run.of("log"))
    with pytest.raises(DataError, match=r"b\.png"):
        loaded(tmp_path, {"train": [bad]})


def test_a_missing_val_is_cut_from_train_by_the_seed(tmp_path):
    items = [photo(64, 64, [[i, 0, i + 9, 9]], name=f"{i}.png") for i in range(10)]
    _, out, arrays = loaded(tmp_path, {"train": items, "test": items[:3]}, val=0.3)
    assert out.spec.counts == {"train": 7, "val": 3, "test": 3}
    assert sorted([*arrays["train_boxes"][:, 0, 0], *arrays["val_boxes"][:, 0, 0]]) == list(range(10))
    again = loaded(tmp_path / "again", {"train": items, "test": items[:3]}, val=0.3)[1]
    assert again.digest == out.digest
    assert out.meta()["names_test"] == ["0.png", "1.png", "2.png"]
    assert loaded(tmp_path / "one", {"train": items[:1]})[1].spec.counts == {"train": 1, "val": 0, "test": 0}


def test_copies_of_an_image_stay_in_one_split(tmp_path):
    items = [
        replace(photo(64, 64, [[i, 0, i + 9, 9]], name=f"{i}.png"), group=str(i // 3)) for i in range(12)
    ]
    for seed in range(5):
        content = Boxes(("thing", "other"), {"train": items}, CleaningCounts())
        run = RecordingRun(tmp_path / str(seed), seed=seed)
        out = load_boxes.body(run, SceneParams(size=64, val=0.25), entry(content))
        arrays = out.arrays()
        groups = {s: {int(x) // 3 for x in arrays[f"{s}_boxes"][:, 0, 0]} for s in ("train", "val")}
        assert out.spec.counts == {"train": 9, "val": 3, "test": 0}
        assert not groups["train"] & groups["val"]


def test_another_kind_of_set_and_no_training_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds images, not boxes"):
        load_boxes.body(RecordingRun(tmp_path), SceneParams(), entry(Images((), {}), kind="images"))
    with pytest.raises(DataError, match="'train' has no images"):
        loaded(tmp_path, {"val": [photo(8, 8, [])]})


# ------------------------------------------------------------------------------------------------ compose


def objects(tmp_path, counts, channels=1):
    """Images 8 x 8 whose brightness tells the split, bright in a 4 x 6 part."""
    arrays = {}
    for split, level in (("train", 100), ("val", 150), ("test", 200)):
        images = np.zeros((counts.get(split, 0), channels, 8, 8), np.uint8)
        images[:, :, 1:7, 2:6] = level
        arrays |= {f"{split}_images": images, f"{split}_labels": np.arange(len(images)) % 2}
    spec = DataSpec(shape=(channels, 8, 8), classes=("a", "b"), counts=counts)
    return save(tmp_path / "objects", "images", spec, arrays, {})


def composed(tmp_path, images, seed=0, **values):
    run = RecordingRun(tmp_path, seed=seed)
    out = compose_scenes.body(
        run, ComposeParams(**{"size": 96, "train": 8, "val": 3, "test": 3, **values}), images
    )
    return out, out.arrays()


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_are_tight_around_the_objects(tmp_path, channels):
    out, arrays = composed(
        tmp_path,
        objects(tmp_path, {"train": 6, "val": 2, "test": 2}, channels),
        objects=(1, 1),
        background="plain",
    )
    assert out.spec == DataSpec(
        shape=(3, 96, 96), classes=("a", "b"), counts={"train": 8, "val": 3, "test": 3}, boxes=1
    )
    for image, box in zip(arrays["train_images"], arrays["train_boxes"][:, 0].astype(int), strict=True):
        bright = image.min(0) >= 95
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == box.tolist()
        assert bright[box[1] : box[3], box[0] : box[2]].all()


def test_scenes_of_a_split_hold_objects_of_that_split(tmp_path):
    _, arrays = composed(tmp_path, objects(tmp_path, {"train": 6, "val": 2, "test": 2}), background="plain")
    assert [int(arrays[f"{split}_images"].max()) for split in ("train", "val", "test")] == [100, 150, 200]


def test_objects_overlap_little_and_number_what_was_asked(tmp_path):
    _, arrays = composed(tmp_path, objects(tmp_path, {"train": 6}), train=30, objects=(2, 8), overlap=0.1)
    counts = (arrays["train_labels"] >= 0).sum(1)
    assert counts.min() >= 1
    assert counts.max() <= 8
    assert len(set(counts.tolist())) > 2
    for boxes in arrays["train_boxes"]:
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                shared = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0).prod()
                smaller = min((c[2:] - c[:2]).prod() for c in (a, b))
                assert shared <= 0.1 * smaller + 1e-6


def test_the_seed_decides_the_scenes_and_missing_splits_stay_empty(tmp_path):
    images = objects(tmp_path, {"train": 6})
    first, arrays = composed(tmp_path / "a", images)
    assert first.digest == composed(tmp_path / "b", images)[0].digest
    assert first.digest != composed(tmp_path / "c", images, seed=1)[0].digest
    assert first.spec.counts == {"train": 8, "val": 0, "test": 0}
    assert arrays["val_images"].shape == (0, 3, 96, 96)
    with pytest.raises(DataError, match="no images to compose"):
        composed(tmp_path / "d", objects(tmp_path / "none", {"val": 2}))


def test_pasted_objects_keep_their_whole_square(tmp_path):
    _, arrays = composed(tmp_path, objects(tmp_path, {"train": 6}), blend="paste", objects=(1, 1))
    sides = arrays["train_boxes"][:, 0, 2:] - arrays["train_boxes"][:, 0, :2]
    assert (sides[:, 0] == sides[:, 1]).all()


# ------------------------------------------------------------------------------------------------ config


def problems(tmp_path, text):
    from flows.detect import Detect

    path = tmp_path / "made.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Detect.load(path)
    return "\n".join(caught.value.problems)


def test_a_config_says_what_does_not_fit(tmp_path):
    assert "multiple of 32" in problems(tmp_path, "data: bccd\nscenes: {size: 200}\n")
    assert "'digits' is of kind 'images', expected 'boxes'" in problems(tmp_path, "data: digits\n")
    assert "'bccd' is of kind 'boxes', expected 'images'" in problems(tmp_path, "data: bccd\ncompose: {}\n")
    assert "set compose.size instead" in problems(tmp_path, "data: digits\ncompose: {}\nscenes: {size: 96}\n")
    assert "add a compose section" in problems(tmp_path, "data: bccd\nimages: {}\n")
    assert "the fewest, then the most" in problems(tmp_path, "data: digits\ncompose: {objects: [3, 1]}\n")


# ------------------------------------------------------------------------------------------------ real images


def test_blood_cells_are_letterboxed_whole(tmp_path, shared_data):
    run = RecordingRun(tmp_path)
    out = load_boxes.body(run, SceneParams(size=96), dataset.load_entry("bccd"))
    arrays = out.arrays()
    assert out.spec.counts == {"train": 205, "val": 87, "test": 72}
    assert (
        sum(int((arrays[f"{split}_labels"] >= 0).sum()) for split in out.spec.counts) == 4886
    )  # 4,888 less the two of zero size
    assert run.last("data/box_of_zero_size_dropped") == 2
    for split in out.spec.counts:
        real = arrays[f"{split}_boxes"][arrays[f"{split}_labels"] >= 0]
        assert (real[:, 1] >= 12).all()  # 640 x 480 in a square: grey above and below
        assert (real[:, 3] <= 84).all()
        assert (real[:, 2:] - real[:, :2] >= 1).all()
