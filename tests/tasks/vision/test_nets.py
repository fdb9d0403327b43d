"""Every architecture learns, takes any image, is split exactly and predicted; its parts work."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bench._kernels import Kernels
from bench._measure import live_peak
from overnight import DataSpec, RecordingRun
from overnight.memory.prediction import traced
from overnight.training.batches import seeded, since, split_by_sample
from tasks.vision.augment import apply, draw, views
from tasks.vision.cnn import CnnParams, cnn_recipe, train_cnn
from tasks.vision.nets.speedrun import Speedrun
from tasks.vision.predictor import ImageClassifier
from tasks.vision.training import batches
from tests.tasks.vision.test_cnn import made

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[3]
TEN = tuple("0123456789")
ARCHS = {
    "resnet20": {"channels": 8, "blocks": 1, "lr": 0.05},
    "resnet18": {"arch": "resnet18", "channels": 16, "lr": 0.02, "init": "scratch"},
    "speedrun": {"arch": "speedrun", "channels": 16, "lr": 0.1, "bias_scale": 16, "momentum": 0.85},
    "speedrun, muon": {"arch": "speedrun", "channels": 16, "lr": 0.05, "optimizer": "muon", "momentum": 0.6},
}


def recipe(name: str, shape: tuple[int, ...] = (3, 12, 12), **values):
    return cnn_recipe(CnnParams(**{"batch": 8, **ARCHS[name], **values}), DataSpec(shape=shape, classes=TEN))


def filled(batch):
    """The example with pixels and draws that do something."""
    generator, n = torch.Generator().manual_seed(3), len(batch["labels"])
    batch["images"] = torch.randint(0, 256, batch["images"].shape, dtype=torch.uint8, generator=generator)
    batch["labels"] = torch.randint(0, 10, (n,), generator=generator)
    batch["shift"] = torch.randint(-2, 3, (n, 2), generator=generator)
    batch["mirror"] = torch.rand(n, generator=generator) < 0.5
    batch["hole"] = torch.randint(-2, 8, (n, 2), generator=generator)
    return batch


@pytest.mark.parametrize("name", ARCHS)
def test_every_architecture_learns(name, tmp_path):
    run, params = (
        RecordingRun(tmp_path),
        CnnParams(epochs=8, batch=10, flip="alternating", crop=1, **ARCHS[name]),
    )
    model = train_cnn.body(run, params, made(tmp_path))
    assert run.last("test/accuracy") >= 0.95
    assert run.curve("train/loss")[-1] < run.curve("train/loss")[0]
    frame = pd.DataFrame({"image": [np.zeros((12, 12, 3), np.uint8)] * 2})
    assert ImageClassifier(model.path).predict(frame).shape == (2, 4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 23), (3, 5, 5), (4, 9, 70)])
@pytest.mark.parametrize("name", ARCHS)
def test_any_size_and_any_channels(name, shape):
    made_here = recipe(name, shape, crop=3, flip="alternating", cutout=4)
    model, batch = made_here.build().train(), made_here.example_batch(4)
    loss, count = made_here.loss(model, batch)
    loss.backward()
    made_here.optimizer(model).step()
    assert count == 4
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert model.eval()(batch["images"]).shape == (4, 10)


@pytest.mark.parametrize("name", ARCHS)
def test_splitting_a_batch_leaves_the_gradients_as_they_are(name):
    made_here = recipe(name, crop=2, flip="alternating", cutout=4)
    torch.manual_seed(0)
    model, batch = (
        made_here.build().double().eval(),
        filled(made_here.example_batch(8)),
    )  # eval: without the norms' statistics of a batch
    found = []
    for size in (8, 3, 1):
        model.zero_grad()
        for part in split_by_sample(batch, size):
            made_here.loss(model, part)[0].backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for split in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(split, found[0], strict=True))


@pytest.mark.parametrize("values", [{}, {"flip": True}, {"flip": "alternating", "crop": 3, "cutout": 4}])
def test_the_example_has_the_form_of_a_batch(values):
    recipe_, data = (
        recipe("speedrun", **values),
        {"train_images": torch.zeros(20, 3, 12, 12, dtype=torch.uint8)},
    )
    data["train_labels"] = torch.arange(20) % 10
    made_up, real = recipe_.example_batch(8), next(iter(recipe_.batches(data, seeded(0, 3))))
    assert {n: (t.dtype, t.shape) for n, t in made_up.items()} == {
        n: (t.dtype, t.shape) for n, t in real.items()
    }


def test_a_batch_is_the_same_whatever_was_made_before():
    data = {
        "train_images": torch.randint(0, 256, (30, 3, 12, 12), dtype=torch.uint8),
        "train_labels": torch.arange(30) % 10,
    }
    made_here = recipe("speedrun", flip="alternating", crop=3, cutout=4).batches(data, seeded(0, 3))
    whole = list(made_here)
    assert all(torch.equal(whole[2][name], tensor) for name, tensor in next(since(made_here, 2)).items())


@pytest.mark.parametrize("name", ["resnet18", "speedrun", "speedrun, muon"])
def test_its_memory_is_predicted(name, tmp_path):
    def make():
        return recipe(name, (3, 16, 16), batch=16, crop=2, flip="alternating", cutout=4)

    predicted = traced(make(), 8, "cpu", Kernels()).peak().bytes
    assert predicted == pytest.approx(live_peak(make(), 8, tmp_path), rel=0.005)


# ------------------------------------------------------------------------------------------------ ideas of
# the speedrun


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 11)])
def test_the_first_layer_whitens_patches(shape):
    rng = np.random.default_rng(0)
    base = (
        rng.integers(0, 200, (300, shape[0], 1, 1))
        + rng.integers(0, 40, (300, 1, *shape[1:]))
        + rng.integers(0, 15, (300, *shape))
    )
    images = torch.from_numpy(base.astype(np.uint8))
    net = Speedrun(shape, 10, 16)
    net.measure(images)
    net.whiten(images)
    with torch.no_grad():
        out = (net.whitening(net.scaled(images)) + net.bias).transpose(0, 1).flatten(1)
    half = len(out) // 2
    assert half == min(32, shape[0] * net.whitening.kernel_size[0] ** 2)
    assert torch.allclose(
        out[:half].cov(), torch.eye(half), atol=0.15
    )  # the floor under the variances takes a tenth of the smallest one
    assert torch.allclose(out[:half].mean(1), torch.zeros(half), atol=1e-3)
    assert torch.allclose(out[half:], -out[:half], atol=1e-4)


def test_the_whitening_is_not_learnt(tmp_path):
    from safetensors.torch import load_file

    images, params = made(tmp_path), CnnParams(epochs=2, batch=10, **ARCHS["speedrun"])
    weights = load_file(train_cnn.body(RecordingRun(tmp_path), params, images).path / "weights.safetensors")
    net = Speedrun(images.spec.shape, 2, 16)
    pixels = torch.from_numpy(images.arrays("train_images")["train_images"])
    net.measure(pixels)
    net.whiten(pixels)
    assert torch.equal(weights["whitening.weight"], net.whitening.weight)
    assert not torch.equal(weights["cells.0.norm1.bias"], net.cells[0].norm1.bias)


def test_each_image_is_mirrored_every_other_epoch():
    data = {
        "train_images": torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).expand(60, 1, 8, 8),
        "train_labels": torch.arange(60),
    }
    params, seen = CnnParams(batch=20, flip="alternating"), []
    for epoch in range(4):
        mirrored = torch.zeros(60, dtype=torch.bool)
        for batch in batches(params, data, seeded(7, epoch)):
            mirrored[batch["labels"]] = batch["mirror"]
        seen.append(mirrored)
    assert 15 < int(seen[0].sum()) < 45
    assert torch.equal(seen[0], ~seen[1])
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    other = torch.cat(
        [
            b["mirror"][b["labels"].argsort()]
            for b in batches(params.model_copy(update={"batch": 60}), data, seeded(8, 0))
        ]
    )
    assert not torch.equal(other, seen[0])  # another run, another half


def test_half_of_the_images_have_a_hole():
    params, images = CnnParams(cutout=4), torch.full((400, 3, 9, 8), 7, dtype=torch.uint8)
    found = apply(
        {"images": images, **draw(params, (3, 9, 8), 400, torch.Generator().manual_seed(0))}, params
    )
    holes = [set(map(tuple, (image == 0).nonzero().tolist())) for image in found]
    assert 150 < sum(not hole for hole in holes) < 250
    assert max(map(len, holes)) == 3 * 4 * 4  # those at the border are cut off
    for hole in filter(None, holes):
        rows_, columns = {y for _, y, _ in hole}, {x for _, _, x in hole}
        assert hole == {(c, y, x) for c in range(3) for y in rows_ for x in columns}
    assert set(found.unique().tolist()) == {0, 7}


def test_views_are_a_score_of_their_own(tmp_path):
    images, params = made(tmp_path), CnnParams(epochs=2, batch=10, flip=True, **ARCHS["speedrun"])
    scores = []
    for name, tta in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        run = RecordingRun(tmp_path / name)
        train_cnn.body(run, params.model_copy(update={"tta": tta}), images)
        scores.append(run)
    assert 0 <= scores[0].last("test/accuracy_tta") <= 1
    assert not scores[1].curve("test/accuracy_tta")
    assert scores[0].last("test/accuracy") == scores[1].last("test/accuracy")
    assert scores[0].last("test/loss") == scores[1].last("test/loss")


def test_views_are_shifted_and_mirrored_copies():
    images = torch.randint(0, 256, (2, 3, 6, 7), dtype=torch.uint8)
    found = views(images, True)
    assert sum(weight for weight, _ in found) == 1
    assert torch.equal(found[0][1], images)
    assert torch.equal(found[3][1], images.flip(3))
    assert torch.equal(found[1][1][:, :, 1:, 1:], images[:, :, :-1, :-1])
    assert torch.equal(found[2][1][:, :, :-1, :-1], images[:, :, 1:, 1:])
    assert len(views(images, False)) == 3


def test_muon_keeps_filters_at_their_norm_and_goes_on_where_it_was():
    made_here = recipe("speedrun, muon")
    torch.manual_seed(0)
    model, batch = made_here.build().train(), filled(made_here.example_batch(8))
    steps = made_here.optimizer(model)
    for _ in range(2):
        steps.zero_grad()
        made_here.loss(model, batch)[0].backward()
        steps.step()
    again = made_here.optimizer(model)
    again.load_state_dict(steps.state_dict())
    weight = model.cells[0].conv2.weight
    assert torch.equal(again.state[weight]["momentum_buffer"], steps.state[weight]["momentum_buffer"])
    assert float(weight.detach().norm()) == pytest.approx(len(weight) ** 0.5, rel=0.2)


def test_a_value_without_effect_is_a_mistake():
    for values in ({"arch": "speedrun", "blocks": 2}, {"arch": "resnet18", "stem": 2}, {"init": "scrach"}):
        with pytest.raises(
            ValidationError, match=r"is a value of arch resnet20|init is auto, scratch or the path"
        ):
            CnnParams(**values)


def test_batch_norms_are_reported_as_what_splitting_changes(tmp_path):
    run = RecordingRun(tmp_path)
    train_cnn.body(run, CnnParams(epochs=1, batch=10, micro_batch=5, **ARCHS["speedrun"]), made(tmp_path))
    (note,) = [e["value"] for e in run.of("param") if e["name"] == "elastic"]
    assert "batch normalisation" in note
    assert isinstance(Speedrun((3, 12, 12), 2, 16).cells[0].norm1, nn.BatchNorm2d)
