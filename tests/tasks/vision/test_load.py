"""Images of any size, mode and completeness become arrays, by rules that are counted."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overnight import RecordingRun
from overnight.data.dataset import Dataset
from overnight.errors import DataError, Stopped
from tasks.vision.load import ImageParams, _samples, load_images

MADE = Dataset(name="made", kind="images", reader="image_folder")


def picture(path: Path, size: tuple[int, int] = (10, 8), mode: str = "RGB", level: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((size[1], size[0]), level, np.uint16 if mode == "I;16" else np.uint8)
    array[-1, -1] = zlib.crc32("/".join(path.parts[-3:]).encode()) % 200  # no two are copies
    image = Image.fromarray(array * 256) if mode == "I;16" else Image.fromarray(array).convert(mode)
    image.save(path)


def classes(folder: Path, counts: dict[str, int], split: str = "", **style: object) -> None:
    for name, count in counts.items():
        for i in range(count):
            picture(folder / split / name / f"{i:03}.png", level=10 + i % 200, **style)


def loaded(tmp_path: Path, entry: Dataset = MADE, seed: int = 0, **params: object):
    run = RecordingRun(tmp_path / f"run{seed}", seed=seed)
    run.folder.mkdir(parents=True)
    return run, load_images.body(run, ImageParams(**params), entry)


def test_own_size_and_grey_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 10, "b": 10}, mode="L")
    run, images = loaded(tmp_path)
    arrays = images.arrays()
    assert images.spec.shape == (1, 8, 10)
    assert images.spec.counts == {"train": 14, "val": 2, "test": 4}
    assert all(a.dtype == np.uint8 for name, a in arrays.items() if name.endswith("images"))
    levels = np.concatenate([arrays[f"{s}_images"][:, 0, 0, 0] for s in ("train", "val", "test")])
    assert sorted(levels) == sorted(2 * list(range(10, 20)))
    assert run.of("data")[0]["digest"] == images.digest
    assert "2 classes" in run.of("note")[0]["text"]


def test_every_mode_and_size_is_converted_and_counted(folder: Path, tmp_path: Path) -> None:
    modes = ["RGB", "L", "RGBA", "P", "1", "LA", "I;16", "CMYK"]
    for i, mode in enumerate(modes):
        for copy in range(3):
            suffix = "tif" if mode == "CMYK" else "png"
            picture(
                folder / "ab"[copy % 2] / f"{mode.replace(';', '')}{copy}.{suffix}",
                (20 + i, 9 + i),
                mode,
                level=200,
            )
    run, images = loaded(tmp_path, size=16)
    assert images.spec.shape == (3, 16, 16)
    assert sum(images.spec.counts.values()) == 24
    assert run.last("data/image_resized") == 24
    assert run.last("data/image_of_mode_I;16_converted") == 3
    scaled = np.concatenate([images.arrays()[f"{s}_images"] for s in images.spec.counts])
    assert np.sort(scaled.mean((1, 2, 3)))[:20].min() > 150  # none is clipped to black


def test_one_channel_when_asked(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 10, "b": 10})
    _, images = loaded(tmp_path, channels=1)
    assert images.spec.shape == (1, 8, 10)


def test_different_sizes_need_a_size(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 5, "b": 5})
    picture(folder / "b" / "large.png", (50, 40))
    with pytest.raises(DataError, match=r"50x40 px.*set images\.size"):
        loaded(tmp_path)


def test_splits_that_differ_in_size_need_a_size(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 5, "b": 5}, "train")
    classes(folder, {"a": 5, "b": 5}, "test", size=(12, 12))
    with pytest.raises(DataError, match=r"set images\.size"):
        loaded(tmp_path)


def test_cuts_are_seeded_disjoint_and_by_class(folder: Path, tmp_path: Path) -> None:
    for name, count in {"a": 40, "b": 20, "c": 1}.items():
        for i in range(count):
            picture(folder / name / f"{i:03}.png", mode="L", level=i + 50 * "abc".index(name))
    first, again, other = (loaded(tmp_path / str(i), seed=seed)[1] for i, seed in enumerate((0, 0, 1)))
    assert first.digest == again.digest != other.digest
    arrays = first.arrays()
    assert {
        s: np.bincount(arrays[f"{s}_labels"], minlength=3).tolist() for s in ("train", "val", "test")
    } == {
        "train": [29, 14, 1],
        "val": [3, 2, 0],
        "test": [8, 4, 0],
    }
    levels = [set(arrays[f"{s}_images"][:, 0, 0, 0].tolist()) for s in ("train", "val", "test")]
    assert sum(map(len, levels)) == len(set.union(*levels)) == 61


def test_given_splits_are_kept(folder: Path, tmp_path: Path) -> None:
    for split, count in {"train": 6, "val": 3, "test": 2}.items():
        classes(folder, {"a": count, "b": count}, split)
    run, images = loaded(tmp_path)
    assert images.spec.counts == {"train": 12, "val": 6, "test": 4}
    assert not [e for e in run.of("log") if "cut" in e["text"]]


def test_a_class_without_training_images_is_logged(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 10, "b": 10}, "train")
    classes(folder, {"a": 2, "猫": 2}, "test")
    run, images = loaded(tmp_path)
    assert images.spec.classes == ("a", "b", "猫")
    assert run.last("data/class_without_a_training_image_kept") == 1


def test_images_that_do_not_decode_are_counted(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 10, "b": 10}, "train")
    classes(folder, {"a": 3, "b": 3}, "test")
    whole = (folder / "test" / "a" / "000.png").read_bytes()
    (folder / "test" / "a" / "000.png").write_bytes(whole[: len(whole) // 2])
    run, images = loaded(tmp_path)
    assert images.spec.counts["test"] == 5
    assert run.last("data/image_that_does_not_decode_dropped") == 1
    assert len(images.meta()["names_test"]) == 5


def test_too_few_images_say_so(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"2 training images are too few"):
        loaded(tmp_path)


def test_unlabelled_images_are_left_out(folder: Path, tmp_path: Path) -> None:
    import io

    import polars as pl

    def png(level: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(buffer, "png")
        return buffer.getvalue()

    pl.DataFrame({"image": [png(i) for i in range(20)], "label": ["x", "y"] * 10}).write_parquet(
        folder / "train.parquet"
    )
    pl.DataFrame(
        {"image": [png(i) for i in range(5)], "label": [None] * 5}, schema_overrides={"label": pl.String}
    ).write_parquet(folder / "test.parquet")
    entry = Dataset(
        name="made",
        kind="images",
        reader="image_parquet",
        options={"splits": {"train": "train.parquet", "test": "test.parquet"}},
    )
    run, images = loaded(tmp_path, entry)
    assert run.last("data/unlabelled_image_left_out") == 5
    assert images.spec.counts == {"train": 14, "val": 2, "test": 4}  # a test split of its own, with labels


def test_it_stops_when_asked(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 400, "b": 400}, size=(8, 8), mode="L")
    run = RecordingRun(tmp_path)
    run.should_stop = lambda: True
    with pytest.raises(Stopped):
        load_images.body(run, ImageParams(), MADE)


def test_another_kind_of_data_is_refused(checkout: Path, tmp_path: Path) -> None:
    (checkout / "datasets" / "made").mkdir()
    (checkout / "datasets" / "made" / "input.txt").write_text("words")
    entry = Dataset(name="made", kind="text", reader="text", options={"splits": {"train": "input.txt"}})
    with pytest.raises(DataError, match="holds texts, not images"):
        loaded(tmp_path, entry)


def test_val_can_be_off_and_a_strict_set_refuses_what_decoding_finds(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 10, "b": 10})
    _, images = loaded(tmp_path, val=False)
    assert images.spec.counts == {"train": 16, "val": 0, "test": 4}
    assert images.arrays()["val_images"].shape == (0, 3, 8, 10)
    (folder / "a" / "broken.png").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"is strict: image that does not decode dropped: 1 \(first: .*broken"
    ):
        loaded(tmp_path / "strict", MADE.model_copy(update={"strict": True}))


def test_samples_of_every_class_are_shown(folder: Path, tmp_path: Path) -> None:
    classes(folder, {"a": 40, "b": 10, "c": 3})
    run, images = loaded(tmp_path)
    assert [Path(event["path"]).name for event in run.of("publish")] == ["samples.png"]
    arrays = images.arrays("train_images", "train_labels")
    figure = _samples(*arrays.values(), images.spec.classes)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:6] == ["a", "b", "c", "a", "b", "c"]
    assert len(titles) == 24
    for axes, label in zip(figure.axes[:3], range(3), strict=True):
        first = arrays["train_images"][np.flatnonzero(arrays["train_labels"] == label)[0]]
        assert np.array_equal(axes.images[0].get_array(), first.transpose(1, 2, 0))
