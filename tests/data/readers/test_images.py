"""Images in every format and mode: the same shapes come out, odd ones are counted, damaged files named."""

import gzip
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from overnight.data.content import CleaningCounts, ImageItem
from overnight.data.images import DROPPED, decode, opened, to_mode
from overnight.errors import DataError


def png(value: int = 0, size: tuple[int, int] = (3, 2), mode: str = "RGB", form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, value).save(stream, form)
    return stream.getvalue()


def counts(content) -> dict[str, int]:
    return {split: len(items) for split, items in content.splits.items()}


def labels(content, split: str) -> list[int]:
    return [item.label for item in content.splits[split]]


# ------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "I", "F", "I;16"]
)
@pytest.mark.parametrize("wanted", ["RGB", "L"])
def test_every_mode_converts(mode: str, wanted: str) -> None:
    image = to_mode(Image.new(mode, (5, 4)), wanted)
    assert (image.mode, image.size) == (wanted, (5, 4))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 257 * 7, 32896, 65535]], dtype=np.uint16))
    stream = io.BytesIO()
    deep.save(stream, "PNG")
    assert np.asarray(to_mode(decode("x", stream.getvalue()), "L")).tolist() == [[0, 7, 128, 255]]


def test_floats_keep_their_range() -> None:
    assert np.asarray(to_mode(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "L")).tolist() == [
        [0, 128, 255]
    ]
    assert np.asarray(to_mode(Image.fromarray(np.array([[-1, 0, 1]], dtype=np.float32)), "L")).tolist() == [
        [0, 128, 255]
    ]
    assert np.asarray(to_mode(Image.fromarray(np.array([[0, 9, 200]], dtype=np.float32)), "L")).tolist() == [
        [0, 9, 200]
    ]


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    half = Image.new("LA", (1, 1), (0, 128))
    assert to_mode(clear).getpixel((0, 0)) == (255, 255, 255)
    assert abs(to_mode(half, "L").getpixel((0, 0)) - 127) <= 1
    palette = Image.new("P", (1, 1), 0)
    palette.info["transparency"] = 0
    assert to_mode(palette).getpixel((0, 0)) == (255, 255, 255)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(
        stream, "GIF", save_all=True, append_images=[Image.new("RGB", (2, 2), "blue")]
    )
    assert to_mode(decode("x", stream.getvalue())).getpixel((0, 0)) == (255, 0, 0)


def test_images_that_do_not_decode_are_counted() -> None:
    items = [ImageItem(str(i), lambda i=i: decode(str(i), png() if i else b"no image"), 0) for i in range(3)]
    cleaned = CleaningCounts()
    assert [item.name for item, _ in opened(items, cleaned)] == ["1", "2"]
    assert cleaned == {DROPPED: 1}


def test_when_none_decodes_it_is_an_error() -> None:
    items = [ImageItem("a", lambda: decode("a.png", png()[:-30]), 0)]
    with pytest.raises(DataError, match=r"a\.png: expected an image, but it does not decode"):
        list(opened(items, CleaningCounts()))


# ------------------------------------------------------------------------------------------------ parquet


def write_parquet(path, images, labels, metadata=None, rows: int = 2) -> None:
    columns = {
        "image": pa.array(images),
        "label": pa.array(labels),
        "name": pa.array([f"n{i}" for i in range(len(labels))]),
    }
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=rows)


def test_parquet_reads_bytes_across_row_groups(load, folder) -> None:
    write_parquet(
        folder / "a.parquet", [png(i) for i in range(5)], [0, 1, 0, 2, 1], {"classes": "ape,bär,猫"}
    )
    content = load("image_parquet", {"splits": {"train": "a.parquet"}, "name": "name"})
    assert content.classes == ("ape", "bär", "猫")
    assert labels(content, "train") == [0, 1, 0, 2, 1]
    for i in (4, 0, 3, 1, 2):  # any order
        item = content.splits["train"][i]
        assert item.name == f"n{i}"
        assert item.open().getpixel((0, 0))[0] == i


def test_parquet_with_structs_text_labels_and_several_files(load, folder) -> None:
    for name in ("a", "b"):
        write_parquet(folder / f"{name}.parquet", [{"bytes": png(), "path": "x"}] * 2, ["dog", "cat"])
    content = load("image_parquet", {"splits": {"train": ["a.parquet", "b.parquet"]}})
    assert content.classes == ("cat", "dog")
    assert labels(content, "train") == [1, 0, 1, 0]
    assert content.splits["train"][0].open().size == (3, 2)


def test_parquet_refuses_labels_that_are_no_whole_numbers(load, folder) -> None:
    write_parquet(folder / "a.parquet", [png(i) for i in range(3)], [1.0, 2.5, 3.0])
    with pytest.raises(DataError, match=r"a\.parquet: row 2: the label 2\.5 is no class"):
        load("image_parquet", {"splits": {"train": "a.parquet"}})


def test_parquet_as_hugging_face_writes_it(load, folder) -> None:
    names = {
        "info": {
            "features": {
                "label": {"names": ["猫", "dog"], "_type": "ClassLabel"},
                "image": {"_type": "Image"},
            }
        }
    }
    for shard in (1, 0):
        images = [{"bytes": png(shard), "path": None}]
        write_parquet(
            folder / f"train-{shard:05}-of-2.parquet", images, [shard], {"huggingface": json.dumps(names)}
        )
    content = load("image_parquet", {"splits": {"train": "train-*.parquet"}})
    assert (content.classes, labels(content, "train")) == (("猫", "dog"), [0, 1])
    with pytest.raises(DataError, match=r"test-\*\.parquet: no file fits"):
        load("image_parquet", {"splits": {"train": "test-*.parquet"}})


def test_parquet_odd_labels(load, folder) -> None:
    write_parquet(folder / "a.parquet", [png(), png(1), b"", None], [0, None, -1, 0])
    content = load("image_parquet", {"splits": {"train": "a.parquet"}, "classes": ["one", "two"]})
    assert labels(content, "train") == [0, -1, -1, 0]
    assert content.cleaned == {"unlabelled image kept": 2, "empty class kept": 1}
    cleaned = CleaningCounts()
    assert len(list(opened(content.splits["train"], cleaned))) == 2
    assert cleaned == {DROPPED: 2}


@pytest.mark.parametrize(
    ("given", "classes", "expected"),
    [
        ([1.0, 0.0, None, float("nan")], ("0", "1"), [1, 0, -1, -1]),
        (["cat", "Cat ", " cat", ""], ("Cat", "cat"), [1, 0, 1, -1]),
        ([True, False, True, None], ("0", "1"), [1, 0, 1, -1]),
    ],
)
def test_parquet_labels_of_other_types(load, folder, given, classes, expected) -> None:
    write_parquet(folder / "a.parquet", [png(i) for i in range(4)], given)
    content = load("image_parquet", {"splits": {"train": "a.parquet"}})
    assert (content.classes, labels(content, "train")) == (classes, expected)
    assert content.cleaned["unlabelled image kept"] == expected.count(-1)


def test_parquet_errors(load, folder) -> None:
    write_parquet(folder / "a.parquet", [png()], [3])
    with pytest.raises(DataError, match=r"a\.parquet: row 1 has the label 3; the classes are x, y"):
        load("image_parquet", {"splits": {"train": "a.parquet"}, "classes": ["x", "y"]})
    with pytest.raises(DataError, match=r"a\.parquet: no column 'img'; the file has: image, label, name"):
        load("image_parquet", {"splits": {"train": "a.parquet"}, "image": "img"})
    whole = (folder / "a.parquet").read_bytes()
    for damaged in (whole[:-9], b"<html></html>", whole[:4] + b"\0" * 40 + whole[-8:]):
        (folder / "a.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet: expected"):
            load("image_parquet", {"splits": {"train": "a.parquet"}})


# ------------------------------------------------------------------------------------------------ idx


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(np.uint8).tobytes()
    )


IDX = {"splits": {"train": {"images": "i.gz", "labels": "l"}}}


def test_idx_plain_and_gz_of_any_size(load, folder) -> None:
    pixels = np.arange(3 * 5 * 4).reshape(3, 5, 4)
    (folder / "i.gz").write_bytes(gzip.compress(idx(pixels)))
    (folder / "l").write_bytes(idx(np.array([2, 0, 2])))
    content = load("idx", IDX)
    assert content.classes == ("0", "1", "2")
    assert content.cleaned == {"empty class kept": 1}
    assert np.asarray(content.splits["train"][1].open()).tolist() == pixels[1].tolist()


def test_idx_in_colour_without_labels(load, folder) -> None:
    (folder / "i").write_bytes(idx(np.zeros((2, 5, 4, 3))))
    content = load("idx", {"splits": {"train": {"images": "i"}}})
    assert labels(content, "train") == [-1, -1]
    assert content.splits["train"][0].open().mode == "RGB"


@pytest.mark.parametrize(
    ("images", "classes", "said"),
    [
        (gzip.compress(idx(np.zeros((3, 2, 2))), mtime=0)[:-12], None, "damaged or cut short"),
        (gzip.compress(idx(np.zeros((3, 2, 2)))[:-1], mtime=0), None, "11 bytes of data, expected 12"),
        (idx(np.zeros((4, 2, 2))), None, r"\(3,\) labels for 4 images"),
        (idx(np.zeros(12)), None, "expected bytes"),
        (b"<html>", None, "expected an idx file"),
        (b"", None, "empty"),
        (idx(np.zeros((3, 2, 2))), ["a", "b"], "a label is 2, but the entry names 2 classes"),
    ],
)
def test_idx_errors(load, folder, images: bytes, classes, said: str) -> None:
    (folder / "i.gz").write_bytes(images)
    (folder / "l").write_bytes(idx(np.array([2, 0, 2])))
    with pytest.raises(DataError, match=said):
        load("idx", IDX | ({"classes": classes} if classes else {}))


# ------------------------------------------------------------------------------------------------ CIFAR's
# binary version


def test_cifar_binary(load, folder) -> None:
    colours = [(255, 0, 7), (1, 2, 3)]
    records = [bytes([label]) + b"".join(bytes([v]) * 1024 for v in colours[label]) for label in (1, 0, 1)]
    (folder / "a.bin").write_bytes(b"".join(records[:2]))
    (folder / "b.bin").write_bytes(records[2])
    (folder / "names.txt").write_text("plane\nauto\n\n")
    content = load("cifar_binary", {"splits": {"train": ["a.bin", "b.bin"]}, "classes": "names.txt"})
    assert content.classes == ("plane", "auto")
    assert labels(content, "train") == [1, 0, 1]
    image = content.splits["train"][1].open()
    assert (image.size, image.mode, image.getpixel((31, 0))) == ((32, 32), "RGB", (255, 0, 7))


def test_cifar_100_has_two_labels(load, folder) -> None:
    (folder / "a.bin").write_bytes(bytes([1, 4]) + bytes(3072))
    both = {"splits": {"train": ["a.bin"]}, "labels": 2}
    assert labels(load("cifar_binary", both), "train") == [4]
    assert labels(load("cifar_binary", both | {"label": 0}), "train") == [1]


def test_cifar_errors(load, folder) -> None:
    (folder / "a.bin").write_bytes(bytes(3072))
    with pytest.raises(DataError, match=r"a\.bin: 3072 bytes, expected a multiple of 3073"):
        load("cifar_binary", {"splits": {"train": ["a.bin"]}})
    (folder / "a.bin").write_bytes(gzip.compress(bytes(3073)))
    with pytest.raises(DataError, match="found a gzip file"):
        load("cifar_binary", {"splits": {"train": ["a.bin"]}})
    (folder / "a.bin").write_bytes(bytes([7]) + bytes(3072))
    with pytest.raises(DataError, match="a label is 7, but there are 2 class names"):
        load("cifar_binary", {"splits": {"train": ["a.bin"]}, "classes": ["a", "b"]})


# ------------------------------------------------------------------------------------------------ folders


def put(path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_folders_with_splits(load, folder) -> None:
    put(folder / "train" / "Ähre" / "1.png", png())
    put(folder / "train" / "Ähre" / "deep" / "2.JPG", png(form="JPEG"))
    put(folder / "train" / "猫" / "3.gif", png(mode="P", form="GIF"))
    put(folder / "train" / "猫" / ".DS_Store", b"x")
    put(folder / "train" / "猫" / "notes.txt", b"x")
    put(folder / "valid" / "猫" / "4.bmp", png(form="BMP"))
    put(folder / "Test" / "Ähre" / "5.webp", png(form="WEBP"))
    content = load("image_folder", {})
    assert content.classes == ("Ähre", "猫")
    assert counts(content) == {"train": 3, "val": 1, "test": 1}
    assert labels(content, "train") == [0, 0, 1]
    assert content.cleaned == {"file that is no image left out": 1}
    assert [item.open().size for item in content.splits["train"]] == [(3, 2)] * 3


def test_folders_without_splits_are_cut_by_the_entry(load, folder) -> None:
    for i in range(40):
        put(folder / ("cat" if i % 4 else "dog") / f"{i}.png", png(i))
    content = load("image_folder", {}, splits={"test": 0.25, "val": 0.1})
    assert counts(content) == {"train": 27, "test": 10, "val": 3}
    assert (
        sorted(labels(content, "test")) == [0] * 8 + [1] * 2
        or sorted(labels(content, "test")) == [0] * 7 + [1] * 3
    )
    names = [item.name for items in content.splits.values() for item in items]
    assert sorted(names) == sorted({*names})
    again = load("image_folder", {}, splits={"test": 0.25, "val": 0.1})
    assert [i.name for i in again.splits["test"]] == [i.name for i in content.splits["test"]]


def test_folders_listed_by_the_entry(load, folder) -> None:
    put(folder / "a" / "cat" / "1.png", png())
    put(folder / "a" / "other" / "2.png", png())
    content = load("image_folder", {"splits": {"train": "a"}, "classes": ["dog", "cat"]})
    assert labels(content, "train") == [1]
    assert content.cleaned == {"empty class kept": 1, "folder of the unlisted class 'other' left out": 1}


def test_folder_errors(load, folder) -> None:
    with pytest.raises(DataError, match="there is no image in folders named after classes"):
        load("image_folder", {})
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        load("image_folder", {"splits": {"train": "nowhere"}})
