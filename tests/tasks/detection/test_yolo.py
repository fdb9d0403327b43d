"""The detector: what its loss promises, and that it learns."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from overnight import DataSpec, RecordingRun
from overnight.artifact import save
from overnight.errors import BadInput, DataError
from tasks.detection import augment
from tasks.detection.boxes import detections
from tasks.detection.coco_ap import precision
from tasks.detection.loss import detection_loss
from tasks.detection.model import Yolo, decode, places
from tasks.detection.predictor import Detector
from tasks.detection.scenes import on_canvas
from tasks.detection.yolo import YoloParams, train_yolo, yolo_recipe
from tests.support.loaded import by_mlflow

KINDS = ("square", "cross")


def shapes(count, size, seed, kinds=KINDS, most=3):
    """Bright squares and crosses on noise; every fifth image is empty."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 60, (count, 3, size, size), dtype=np.uint8)
    boxes, labels = np.zeros((count, most, 4), np.float32), np.full((count, most), -1)
    rows, columns = np.mgrid[:size, :size]
    for image in range(count):
        for slot in range(0 if image % 5 == 4 else random.integers(1, most + 1)):
            side = int(random.integers(size // 5, 2 * size // 5))
            left, top = (int(v) for v in random.integers(0, size - side, 2))
            box = np.array([left, top, left + side, top + side], np.float32)
            if any(
                (np.minimum(box[2:], other[2:]) > np.maximum(box[:2], other[:2])).all()
                for other in boxes[image, :slot]
            ):
                continue
            kind = int(random.integers(len(kinds)))
            inside = (columns >= left) & (columns < left + side) & (rows >= top) & (rows < top + side)
            if kind == 1:
                inside &= (
                    np.minimum(abs(columns - left - side // 2), abs(rows - top - side // 2)) <= side // 8
                )
            images[image, :, inside] = random.integers(120, 256, 3)
            boxes[image, slot], labels[image, slot] = box, kind
    return {"images": images, "boxes": boxes, "labels": labels.astype(np.int64)}


def scenes(folder, counts, size=96, kinds=KINDS):
    arrays = {}
    for seed, split in enumerate(("train", "val", "test")):
        arrays |= {
            f"{split}_{name}": array
            for name, array in shapes(counts.get(split, 0), size, seed, kinds).items()
        }
    spec = DataSpec(shape=(3, size, size), classes=kinds, counts=counts, boxes=3)
    return save(folder / "scenes", "boxes", spec, arrays, {"classes": list(kinds)})


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL = {"epochs": 1, "batch": 4, "width_multiplier": 0.25}


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.slow
def test_it_learns_made_up_shapes(tmp_path):
    params = YoloParams(
        epochs=12,
        batch=4,
        width_multiplier=0.5,
        lr=4e-3,
        flip_vertical_probability=0.5,
        mosaic=0,
        scale_jitter=0.1,
        color_jitter=0,
    )
    run = RecordingRun(tmp_path, seed=1)
    data = scenes(tmp_path, {"train": 64, "val": 20, "test": 40})
    model = train_yolo.body(run, params, data)
    assert run.last("test/map50") > 0.8
    assert 0.3 < run.last("test/map50_95") <= run.last("test/map50")
    assert {name for name in KINDS if run.last(f"test/ap50/{name}") > 0.7} == set(KINDS)
    assert {event["path"].rpartition("/")[2] for event in run.of("publish")} == {
        "detections.png",
        "precision_recall.png",
        "confusion.png",
        "classes.csv",
    }
    assert f"mAP50 {run.last('test/map50'):.3f}" in run.of("note")[0]["text"]
    check_predictor(run, model, data, tmp_path)


def check_predictor(run, model, data, folder):
    """The model in MLflow finds what was logged, and the same objects in every layout, size and form."""
    loaded = by_mlflow(model, folder / "packed")
    arrays = data.arrays("test_images", "test_boxes", "test_labels")
    every = loaded.predict(list(arrays["test_images"]), {"least_score": 0.001})
    found = [
        np.column_stack([rows[["x1", "y1", "x2", "y2", "score"]], rows["class"].map(KINDS.index)])
        for rows in (every[every["image"] == i] for i in range(40))
    ]
    again = precision(found, arrays["test_boxes"], arrays["test_labels"], 2).scores
    for name, value in again.items():
        assert value == pytest.approx(run.last(f"test/{name}"), abs=1e-6)
    usual = loaded.predict(list(arrays["test_images"]))
    assert usual["score"].min() >= model.meta()["config"]["least_score"]
    losses = Detector(model.path).item_losses(data)
    assert 0 <= losses.loss.min() <= losses.loss.mean() < 0.4
    assert set(losses.group) == {*KINDS, "(no object)"}
    whole = arrays["test_images"][0]
    want = usual[usual["image"] == 0]
    forms = [whole.transpose(1, 2, 0), whole / 255, Image.fromarray(whole.transpose(1, 2, 0))]
    for given in forms:
        pd.testing.assert_frame_equal(loaded.predict(given), want, check_exact=False, atol=0.01)
    large = Image.fromarray(
        np.pad(whole.repeat(3, 1).repeat(3, 2), ((0, 0), (96, 0), (0, 0))).transpose(1, 2, 0)
    )
    boxes = loaded.predict(large)  # boxes come back in pixels of the image given, below a black band
    assert boxes.empty or (boxes[["x2", "y2"]].max() <= [288, 384]).all()
    turned = Image.fromarray(whole.transpose(1, 2, 0)[::-1, ::-1].copy())
    turned.getexif()[0x0112] = 3  # a photograph that was taken upside down
    turned.save(folder / "turned.png", exif=turned.getexif())
    pd.testing.assert_frame_equal(
        loaded.predict(str(folder / "turned.png")), want, check_exact=False, atol=0.01
    )


def test_boxes_return_to_the_pixels_of_an_image_of_any_size(tmp_path):
    """A detector that finds nothing true still places the boxes of its canvas within a pixel."""
    run = RecordingRun(tmp_path)
    model = train_yolo.body(run, YoloParams(**SMALL), scenes(tmp_path, {"train": 4, "val": 4}, size=64))
    detector = Detector(model.path)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 333, 3), dtype=np.uint8)
    canvas, sides, offset = on_canvas(pixels, 64, 64)
    inside = detector.predict(pd.DataFrame({"image": [canvas]}), least_score=0.001)
    outside = detector.predict(pd.DataFrame({"image": [pixels]}), least_score=0.001)
    assert len(inside) == len(outside) > 0
    for low, high, side, left, length in (
        ("x1", "x2", sides[0], offset[0], 333),
        ("y1", "y2", sides[1], offset[1], 150),
    ):
        for name in (low, high):
            want = ((inside[name] - left) * length / side).clip(0, length)
            assert (outside[name] - want).abs().max() < 1e-3
    drawn = detector.draw(pd.DataFrame({"image": [pixels]}), outside, tmp_path)
    with Image.open(drawn[0]) as picture:
        assert abs(picture.width / picture.height - 333 / 150) < 0.02
    assert detector.predict(pd.DataFrame({"image": []})).empty
    for given, why in (
        ([np.zeros((5, 4, 7))], "is no image"),
        (["nowhere.jpg"], "no such file"),
        ([pixels / 100 - 1], "go from -1 to"),
    ):
        with pytest.raises(BadInput, match=why):
            detector.predict(pd.DataFrame({"image": given}))
    with pytest.raises(BadInput, match="least_score is 2"):
        detector.predict(pd.DataFrame({"image": [pixels]}), least_score=2)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    data = scenes(tmp_path, {"train": 8, "val": 4}, size=64)
    first, second = (
        train_yolo.body(RecordingRun(tmp_path / name), YoloParams(**SMALL), data) for name in "ab"
    )
    assert first.digest == second.digest


def test_one_class_and_images_without_boxes_and_empty_splits(tmp_path):
    data = scenes(tmp_path, {"train": 5}, size=64, kinds=("any/thing $x$",))
    run = RecordingRun(tmp_path)
    model = train_yolo.body(run, YoloParams(**SMALL), data)
    assert "val has no boxes to choose by" in run.of("note")[0]["text"]
    assert not run.curve("test/map50")
    assert model.meta()["interface"]["options"] == {"least_score": 0.3}


def test_training_on_nothing_but_background_stays_finite(tmp_path):
    arrays = {f"{split}_{k}": v for split in ("train", "val", "test") for k, v in shapes(4, 64, 0).items()}
    arrays |= {name: np.full_like(array, -1) for name, array in arrays.items() if name.endswith("labels")}
    empty = save(
        tmp_path / "empty",
        "boxes",
        DataSpec(shape=(3, 64, 64), classes=KINDS, counts={"train": 4}, boxes=3),
        arrays,
    )
    run = RecordingRun(tmp_path)
    train_yolo.body(run, YoloParams(**SMALL), empty)
    assert np.isfinite(run.curve("train/loss")).all()


def test_class_names_of_any_script_name_metrics_and_pictures(tmp_path):
    data = scenes(tmp_path, {"train": 4, "test": 4}, size=64, kinds=("红 细胞/$a$", "Тромбоцит"))
    run = RecordingRun(tmp_path)
    train_yolo.body(run, YoloParams(**SMALL), data)
    names = {name for event in run.of("metrics") for name in event["values"] if name.startswith("test/ap50/")}
    assert names <= {"test/ap50/红_细胞_a", "test/ap50/Тромбоцит"}
    assert names
    assert (tmp_path / "detections.png").stat().st_size > 1000


def test_odd_sizes_and_no_training_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="divisible by 32"):
        yolo_recipe(YoloParams(), DataSpec(shape=(3, 100, 100), classes=KINDS))
    with pytest.raises(DataError, match="no classes"):
        yolo_recipe(YoloParams(), DataSpec(shape=(3, 96, 96)))
    with pytest.raises(DataError, match="'train' has no images"):
        train_yolo.body(RecordingRun(tmp_path), YoloParams(), scenes(tmp_path, {"val": 2}))


# ------------------------------------------------------------------------------------------------ loss


def test_a_batch_in_parts_has_the_gradients_of_the_whole():
    params = YoloParams(batch=5, width_multiplier=0.25)
    recipe = yolo_recipe(params, DataSpec(shape=(3, 64, 96), classes=KINDS, counts={"train": 5}, boxes=3))
    batch = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in recipe.example_batch(5).items()
    }
    batch["labels"][1], batch["labels"][3, 1:] = -1, -1  # an image without boxes, one with few
    torch.manual_seed(0)
    model = (
        recipe.build().double().eval()
    )  # batch norm by its running statistics: in train mode it depends on the whole batch

    def gradients(size):
        model.zero_grad()
        parts = [recipe.loss(model, part) for part in recipe.micro_batches(batch, size)]
        sum(loss for loss, _ in parts).backward()
        count = sum(float(count) for _, count in parts)
        return torch.cat([p.grad.flatten() / count for p in model.parameters() if p.grad is not None]), count

    (whole, count), (parts, parts_count) = gradients(5), gradients(1)
    assert parts_count == pytest.approx(count, rel=1e-12)
    assert float(whole.abs().max()) > 1e-3
    assert torch.allclose(whole, parts, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_give_the_loss_in_float32(kind):
    torch.manual_seed(0)
    logits, sides = torch.randn(2, 84, 2) - 3, torch.randn(2, 84, 4, 16)
    boxes, labels = torch.tensor([[[8.0, 8, 40, 48]], [[0, 0, 64, 64]]]), torch.tensor([[0], [1]])
    exact, _ = detection_loss(logits.to(kind).float(), sides.to(kind).float(), (64, 64), boxes, labels)
    with torch.autocast("cpu", torch.bfloat16):
        half, count = detection_loss(logits.to(kind), sides.to(kind), (64, 64), boxes, labels)
    assert half.dtype == count.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), rel=1e-6)


def test_the_loss_is_least_where_the_outputs_are_the_truth():
    """Outputs that are free to be anything become the boxes and classes they are asked for."""
    boxes = torch.tensor([[[8.0, 8, 40, 48], [44, 20, 60, 30]], [[0, 0, 64, 64], [0, 0, 0, 0]]])
    labels = torch.tensor([[0, 1], [1, -1]])
    centres, strides = places(64, 64, torch.device("cpu"))
    logits = torch.full((2, len(centres), 2), -3.0).requires_grad_()
    sides = (-0.5 * torch.arange(16.0)).repeat(2, len(centres), 4, 1).requires_grad_()
    optimizer = torch.optim.Adam([logits, sides], lr=0.2)
    for _ in range(150):
        optimizer.zero_grad()
        detection_loss(logits, sides, (64, 64), boxes, labels)[0].backward()
        optimizer.step()
    found = detections(logits.sigmoid(), decode(sides, centres, strides), least=0.3).detach()
    assert (found[..., 5] >= 0).sum(1).tolist() == [2, 1]
    for image, row, label in ((0, 0, 0), (0, 1, 1), (1, 0, 1)):
        best = (found[image, :2, :4] - boxes[image, row]).abs().amax(-1).argmin()
        assert (found[image, best, :4] - boxes[image, row]).abs().max() < 1
        assert found[image, best, 5] == label


# ------------------------------------------------------------------------------------------------
# augmentation


def painted(boxes, size=64):
    """Images that are white exactly where their one box is."""
    images = torch.full((len(boxes), 3, size, size), 0, dtype=torch.uint8)
    for image, box in zip(images, boxes, strict=True):
        left, top, right, bottom = (int(v) for v in box)
        image[:, top:bottom, left:right] = 255
    return {
        "images": images,
        "boxes": torch.tensor(boxes)[:, None].float(),
        "labels": torch.zeros(len(boxes), 1, dtype=torch.int64),
    }


def bounds(image):
    rows, columns = (np.flatnonzero((image[0] > 200).any(axis).numpy()) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_boxes_move_with_the_pixels():
    batch = painted([[20, 24, 40, 36]] * 16)
    random = augment.draw(16, (0.5, 0.5), 0.4, 0.1, 0.0, torch.Generator().manual_seed(0))
    moved = augment.apply(batch | random)
    assert len({tuple(row) for row in random["warp"].tolist()}) == 16
    for image, box in zip(moved["images"], moved["boxes"][:, 0].numpy(), strict=True):
        assert np.abs(bounds(image) - box).max() <= 1.5


def test_the_closing_epochs_only_flip():
    data = {f"train_{name}": array for name, array in shapes(6, 64, 0).items()}
    spec = DataSpec(shape=(3, 64, 64), classes=KINDS, counts={"train": 6}, boxes=3)
    recipe = yolo_recipe(YoloParams(batch=4, flip_probability=0.5), spec)
    for batch in recipe.final_epoch_batches(data, torch.Generator().manual_seed(0)):
        assert set(batch["warp"].abs().flatten().tolist()) <= {0.0, 1.0}
        assert (batch["tint"] == 1).all()
        assert batch["boxes"].shape[1] == 3


def test_a_mosaic_keeps_what_stays_in_sight():
    batch = painted([[2, 2, 14, 14], [50, 2, 62, 14], [2, 50, 14, 62], [50, 50, 62, 62]] * 4)
    mixed = augment.mosaic(batch, 1.0, torch.Generator().manual_seed(0))
    assert mixed["images"].shape == batch["images"].shape
    for image, boxes, labels in zip(mixed["images"], mixed["boxes"], mixed["labels"], strict=True):
        covered = torch.zeros(64, 64, dtype=torch.bool)
        for left, top, right, bottom in boxes[labels >= 0].int().tolist():
            covered[top:bottom, left:right] = True
        assert torch.equal(covered, image[0] > 200)
    untouched = augment.mosaic(batch, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(untouched["images"], batch["images"])
    assert torch.equal(untouched["boxes"][:, :1], batch["boxes"])


def test_every_batch_has_the_shapes_of_the_example():
    data = {f"train_{name}": array for name, array in shapes(8, 64, 0).items()}
    spec = DataSpec(shape=(3, 64, 64), classes=KINDS, counts={"train": 8}, boxes=3)
    recipe = yolo_recipe(YoloParams(batch=4), spec)
    example = recipe.example_batch(4)
    for batch in recipe.batches(data, torch.Generator().manual_seed(0)):
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in example.items()
        }


def test_the_default_net_has_about_two_million_parameters():
    assert 1.8e6 < sum(p.numel() for p in Yolo(80).parameters()) < 2.5e6
