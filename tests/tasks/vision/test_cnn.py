"""The classifier learns real digits; its net, batches and augmentation are what they say."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from overnight import Artifact, DataSpec, RecordingRun
from overnight.artifact import save
from overnight.data.dataset import load_entry
from overnight.errors import ConfigError, DataError, Stopped
from tasks.vision.augment import apply, draw
from tasks.vision.cnn import CnnParams, cnn_recipe, train_cnn
from tasks.vision.load import ImageParams, load_images
from tasks.vision.nets.resnet20 import Net
from tasks.vision.predictor import ImageClassifier
from tasks.vision.training import batches, build
from tests.support.loaded import by_mlflow

ROOT = Path(__file__).resolve().parents[3]
DIGITS = CnnParams(epochs=8, batch=64, channels=12, blocks=2)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return load_images.body(
        RecordingRun(tmp_path_factory.mktemp("images")), ImageParams(), load_entry("digits")
    )


@pytest.fixture(scope="module")
def trained(digits: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordingRun, Artifact]:
    run = RecordingRun(tmp_path_factory.mktemp("cnn"))
    return run, train_cnn.body(run, DIGITS, digits)


def made(folder: Path, shape: tuple[int, ...] = (3, 12, 12), classes: int = 2, size: int = 40) -> Artifact:
    """Images whose class is their brightness."""
    rng, arrays = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        labels = np.arange(size) % classes
        noise = rng.integers(0, 20, (size, *shape))
        arrays[f"{split}_images"] = (noise + (labels * (230 // classes))[:, None, None, None]).astype(
            np.uint8
        )
        arrays[f"{split}_labels"] = labels
    spec = DataSpec(
        shape=shape,
        classes=tuple(f"c{i}" for i in range(classes)),
        counts=dict.fromkeys(("train", "val", "test"), size),
    )
    return save(folder / "made", "images", spec, arrays, {"classes": list(spec.classes)})


def test_digits_are_learnt(trained: tuple[RecordingRun, Artifact]) -> None:
    run, _ = trained
    assert run.last("test/accuracy") >= 0.95
    assert run.last("test/balanced_accuracy") >= 0.95
    assert 0.09 < run.last("test/majority") < 0.12
    assert run.curve("train/loss")[-1] < run.curve("train/loss")[0] / 2
    assert len(run.curve("val/accuracy")) == DIGITS.epochs


def test_what_happened_can_be_read_and_looked_at(trained: tuple[RecordingRun, Artifact]) -> None:
    run, _ = trained
    published = {Path(e["path"]).name: Path(e["path"]) for e in run.of("publish")}
    assert {"confusion.png", "mistakes.png", "classes.csv"} <= published.keys()
    with published["classes.csv"].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    hits = sum(float(row["recall"]) * int(row["test images"]) for row in rows)
    assert hits / 359 == pytest.approx(run.last("test/accuracy"), abs=1e-3)
    assert f"{run.last('test/accuracy'):.1%} of 359 test images" in run.of("note")[-1]["text"]


def test_the_model_in_mlflow_scores_what_was_logged(
    trained: tuple[RecordingRun, Artifact], digits: Artifact, tmp_path: Path
) -> None:
    run, model = trained
    items = load_images_raw(digits)
    found = by_mlflow(model, tmp_path / "packed").predict(pd.DataFrame({"image": items}))
    truth = [digits.spec.classes[label] for label in digits.arrays("test_labels")["test_labels"]]
    assert list(found)[:3] == ["class", "probability", "probability_0"]
    assert (found["class"] == truth).mean() == pytest.approx(run.last("test/accuracy"), abs=1e-6)
    assert found.filter(like="probability_").sum(axis=1).to_numpy() == pytest.approx(np.ones(359), abs=1e-5)
    losses = ImageClassifier(model.path).item_losses(digits)
    assert 1 - losses.loss.mean() == pytest.approx(run.last("test/accuracy"), abs=1e-9)
    assert len(set(losses.item)) == 359


def load_images_raw(images: Artifact) -> list[object]:
    """The test images as a user has them: every one in another form."""
    pixels = [one[0] for one in images.arrays("test_images")["test_images"]]
    forms = [
        lambda array: array,
        Image.fromarray,
        lambda array: array / 255,
        lambda array: np.repeat(array[..., None], 3, 2),
        lambda array: array[None].astype(np.int64),
    ]
    return [forms[i % len(forms)](array) for i, array in enumerate(pixels)]


def test_equal_seeds_give_equal_weights(tmp_path: Path) -> None:
    images, params = made(tmp_path), CnnParams(epochs=2, batch=16, channels=8, blocks=1, flip=True, crop=2)
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        digests.append(train_cnn.body(RecordingRun(tmp_path / name, seed=seed), params, images).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_both_optimizers_learn(optimizer: str, tmp_path: Path) -> None:
    run = RecordingRun(tmp_path)
    train_cnn.body(
        run, CnnParams(epochs=8, batch=10, channels=8, blocks=1, optimizer=optimizer, lr=0.02), made(tmp_path)
    )
    assert run.last("test/accuracy") > 0.9


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 13), (3, 28, 28), (1, 65, 65), (3, 200, 96)])
@pytest.mark.parametrize("classes", [2, 1000])
def test_the_net_takes_any_size(shape: tuple[int, ...], stem: int, classes: int) -> None:
    spec = DataSpec(shape=shape, classes=tuple(map(str, range(classes))))
    recipe = cnn_recipe(CnnParams(channels=8, blocks=1, stem=stem), spec)
    batch = recipe.example_batch(2)
    loss, count = recipe.loss(recipe.build().train(), batch)
    loss.backward()
    assert batch["images"].dtype == torch.uint8
    assert count == 2
    assert torch.isfinite(loss)


def test_a_step_can_be_traced_without_data_or_memory() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    recipe = cnn_recipe(CnnParams(batch=4096), DataSpec(shape=(3, 64, 64), classes=("a", "b")))
    with FakeTensorMode():
        model = recipe.build()
        optimizer = recipe.optimizer(model)
        loss, _ = recipe.loss(model, recipe.example_batch(4096))
        loss.backward()
        optimizer.step()
    assert model.head.weight.grad.shape == model.head.weight.shape


def test_large_images_are_halved_before_the_stages() -> None:
    def strides(side: int, stem: int = 1) -> int:
        net = Net((3, side, side), 2, 4, 1, stem)
        seen = net.body(torch.zeros(1, 3, side, side)).shape[-1]
        return round(side / seen / 4)  # the stages themselves divide by four

    assert [strides(s) for s in (32, 64, 128, 512)] == [1, 1, 2, 8]
    assert [strides(s, stem=2) for s in (8, 32, 64, 128)] == [1, 2, 2, 2]


def test_an_epoch_is_a_new_order_of_every_image() -> None:
    data = {
        "train_images": torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).expand(60, 1, 8, 8),
        "train_labels": torch.arange(60),
    }
    generator = torch.Generator().manual_seed(0)
    epochs = [list(batches(CnnParams(batch=20, flip=True, crop=2), data, generator)) for _ in range(2)]
    orders = [torch.cat([b["labels"] for b in epoch]).tolist() for epoch in epochs]
    assert [sorted(o) for o in orders] == [list(range(60))] * 2
    assert orders[0] != orders[1]
    for batch in epochs[0]:
        assert (batch["images"][:, 0, 0, 0] == batch["labels"]).all()
    assert len(list(batches(CnnParams(batch=100), data, generator))) == 1
    assert len(list(batches(CnnParams(batch=25), data, generator))) == 2  # the rest waits for another epoch


def test_augmentation_shifts_and_flips_and_nothing_else() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 8, 9)).astype(np.uint8))
    chosen = torch.tensor([3, 0, 4, 3] * 30)
    params = CnnParams(flip=True, crop=2)
    drawn = draw(params, (3, 8, 9), len(chosen), torch.Generator().manual_seed(0))
    found = apply({"images": images[chosen], **drawn}, params).numpy()
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    seen = set()
    for i, image in zip(chosen.tolist(), found, strict=True):
        windows = {
            (dy, dx, flip): padded[i][:, dy : dy + 8, dx : dx + 9][:, :, :: -1 if flip else 1]
            for dy in range(5)
            for dx in range(5)
            for flip in (False, True)
        }
        match = [key for key, window in windows.items() if (window == image).all()]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) > 30  # of 50 ways
    assert found.dtype == np.uint8


def test_no_augmentation_when_none_is_asked() -> None:
    params, images = CnnParams(), torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert draw(params, (1, 8, 8), 5, torch.Generator()) == {}
    assert apply({"images": images}, params) is images


def test_constants_come_from_train_alone_and_travel_with_the_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    images = made(tmp_path)
    model = train_cnn.body(RecordingRun(tmp_path), CnnParams(epochs=1, channels=8, blocks=1), images)
    weights, train = (
        load_file(model.path / "weights.safetensors"),
        images.arrays("train_images")["train_images"] / 255,
    )
    assert weights["mean"].flatten().numpy() == pytest.approx(train.mean((0, 2, 3)), abs=1e-5)
    assert weights["std"].flatten().numpy() == pytest.approx(train.std((0, 2, 3)), abs=1e-5)


def test_a_class_without_images_and_flat_images_do_no_harm(tmp_path: Path) -> None:
    arrays = {f"{s}_images": np.full((6, 1, 8, 8), 7, np.uint8) for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": np.array([0, 1, 0, 0, 1, 0]) for s in ("train", "val", "test")}
    spec = DataSpec(shape=(1, 8, 8), classes=("a", "b", "never"), counts={"train": 6, "val": 6, "test": 6})
    run = RecordingRun(tmp_path)
    train_cnn.body(
        run, CnnParams(epochs=1, channels=8, blocks=1), save(tmp_path / "flat", "images", spec, arrays)
    )
    assert run.last("test/majority") == pytest.approx(4 / 6)
    assert np.isfinite(run.curve("test/loss")).all()


def test_it_stops_when_asked_and_refuses_other_artifacts(tmp_path: Path) -> None:
    run = RecordingRun(tmp_path)
    run.should_stop = lambda: True
    with pytest.raises(Stopped):
        train_cnn.body(run, CnnParams(channels=8, blocks=1), made(tmp_path))
    with pytest.raises(DataError, match="expected an artifact of kind 'images'"):
        train_cnn.body(run, CnnParams(), save(tmp_path / "graph", "graph"))
    with pytest.raises(DataError, match="two classes"):
        train_cnn.body(run, CnnParams(), made(tmp_path, classes=1))


def test_build_is_the_size_of_resnet_20() -> None:
    spec = DataSpec(shape=(3, 32, 32), classes=tuple(map(str, range(10))))
    assert sum(p.numel() for p in build(spec, CnnParams()).parameters()) == pytest.approx(
        272_474, rel=0.01
    )  # He et al., table 6: 0.27 M


@pytest.mark.parametrize(
    "name", ["vision", "cifar10", "fashion", "fashion_speedrun", "cifar10_speedrun", "cifar10_resnet18"]
)
def test_the_configs_load(name: str) -> None:
    from flows.vision import Vision

    assert Vision.load(ROOT / "configs" / f"{name}.yaml").data.kind == "images"


def test_a_set_of_another_kind_is_a_mistake_in_the_config(tmp_path: Path) -> None:
    from flows.vision import Vision

    (tmp_path / "v.yaml").write_text("flow: vision\ndata: cora\n")
    with pytest.raises(ConfigError, match=r"v\.yaml:2: data: .*'cora' is of kind 'graph'.*'images'"):
        Vision.load(tmp_path / "v.yaml")


class Counting(RecordingRun):
    """Remembers how many threads torch used whenever the training logged."""

    threads: set[int]

    def _emit(self, event: dict[str, object]) -> None:
        self.threads = getattr(self, "threads", set())
        if "train/loss" in event.get("values", {}):
            self.threads.add(torch.get_num_threads())
        super()._emit(event)


@pytest.mark.parametrize(("batch", "used"), [(8, 1), (40, 2)])
def test_small_nets_use_one_thread_and_give_the_others_back(batch: int, used: int, tmp_path: Path) -> None:
    before, run = torch.get_num_threads(), Counting(tmp_path)
    torch.set_num_threads(2)
    try:
        train_cnn.body(run, CnnParams(epochs=1, batch=batch, channels=48, blocks=1), made(tmp_path))
        assert run.threads == {used}  # 8 x 12 x 12 x 48 values are few, 40 x 12 x 12 x 48 are not
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
