"""The loop: it learns, it picks the epoch by validation, and splitting a batch changes nothing."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from overnight.errors import Diverged, Stopped
from overnight.run import RecordingRun
from overnight.training.batches import Batches
from overnight.training.evaluate import evaluate
from overnight.training.loop import train
from overnight.training.recipe import TrainParams, cosine
from tests.support import small_trainings
from tests.support.small_trainings import recipe


@pytest.fixture
def blobs():
    return small_trainings.blobs()


def test_it_learns_and_logs_curves(tmp_path, blobs):
    run = RecordingRun(tmp_path, seed=3)
    fitted = train(recipe(TrainParams(epochs=5, batch=32), schedule=cosine()), run, blobs)
    assert fitted.scores["accuracy"] > 0.9
    assert run.curve("train/loss")[-1] < run.curve("train/loss")[0] / 2
    assert len(run.curve("val/accuracy")) == 5
    assert run.curve("train/lr")[-1] < 0.01
    assert fitted.epoch == 1 + max(range(5), key=lambda e: (run.curve("val/accuracy")[e], e))


def test_the_same_seed_gives_the_same_weights(tmp_path, blobs):
    weights = [
        train(recipe(TrainParams(epochs=2)), RecordingRun(tmp_path, seed=s), blobs).model.state_dict()
        for s in (1, 1, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
    assert not torch.equal(weights[0]["0.weight"], weights[2]["0.weight"])


@pytest.mark.parametrize("micro", [1, 7, 32])
def test_a_split_batch_gives_the_same_weights(tmp_path, blobs, micro):
    blobs = {name: t.double() if t.is_floating_point() else t for name, t in blobs.items()}
    build = lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    whole = train(
        recipe(TrainParams(epochs=2, batch=64), build=build, clip=0.5), RecordingRun(tmp_path), blobs
    )
    split = train(
        recipe(TrainParams(epochs=2, batch=64, micro_batch=micro), build=build, clip=0.5),
        RecordingRun(tmp_path),
        blobs,
    )
    for a, b in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept(tmp_path, blobs):
    seen = []

    def score(model, data, split):
        seen.append(model[0].weight.detach().clone())
        return {"accuracy": float(len(seen))}

    fitted = train(recipe(TrainParams(epochs=3), ema=0.9, evaluate=score), RecordingRun(tmp_path), blobs)
    assert torch.equal(fitted.model[0].weight, seen[-1])


def test_bf16_trains_and_evaluates(tmp_path, blobs):
    run = RecordingRun(tmp_path)
    fitted = train(recipe(TrainParams(epochs=3, batch=32, precision="bf16")), run, blobs)
    assert fitted.scores["accuracy"] > 0.8
    assert {"event": "param", "name": "precision", "value": "bf16"} in run.events


def test_a_stop_ends_the_training(tmp_path, blobs):
    run = RecordingRun(tmp_path)
    run.should_stop = lambda: len(run.curve("train/loss")) >= 2
    with pytest.raises(Stopped):
        train(recipe(TrainParams(epochs=50, batch=32)), run, blobs)
    assert len(run.curve("train/loss")) == 2


def test_evaluation_leaves_the_mode_as_it_was(blobs):
    model = nn.Sequential(nn.Linear(4, 3))
    scores = evaluate(recipe(TrainParams()), model.train(), blobs, "val")
    assert 0 <= scores["accuracy"] <= 1
    assert model.training


def poisoned(at, params, **changes):
    """A recipe whose loss is no number in call `at`."""
    calls = []

    def loss(model, batch):
        calls.append(1)
        total, counted = recipe(params).loss(model, batch)
        return (total * float("nan") if len(calls) == at else total), counted

    return recipe(params, loss=loss, **changes)


def test_a_loss_that_is_no_number_ends_at_its_step_with_a_report(tmp_path, blobs):
    def batches(data, generator):
        make = lambda index, _generator: {"x": data["x"][index], "y": data["y"][index]}
        return Batches(torch.arange(200).split(32), make, generator)

    run = RecordingRun(tmp_path)
    with pytest.raises(Diverged, match=r"optimizer step 10 \(epoch 2, batch 3\) is no number"):
        train(poisoned(10, TrainParams(batch=32), batches=batches), run, blobs)
    (path,) = [Path(event["path"]) for event in run.of("publish")]
    found = json.loads(path.read_text())
    assert (found["step"], found["epoch"], found["index"]) == (9, 1, 2)
    assert found["samples"] == list(range(64, 96))
    assert found["gradient_norms"].keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert found["losses_before"] == run.curve("train/loss")
    assert found["weights_not_finite"] == []


def test_a_loss_beyond_all_bounds_is_divergence(tmp_path, blobs):
    far = recipe(
        TrainParams(epochs=9, batch=32), optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e6)
    )
    with pytest.raises(Diverged, match="training has diverged"):
        train(far, RecordingRun(tmp_path), blobs)


def test_a_recipe_may_ask_for_a_second_chance_with_a_smaller_rate(tmp_path, blobs):
    params, plain, run = TrainParams(epochs=3, batch=32), RecordingRun(tmp_path), RecordingRun(tmp_path)
    run.checkpoints = tmp_path / "checkpoints"
    train(recipe(params, schedule=cosine()), plain, blobs)
    train(
        poisoned(10, params.model_copy(update={"checkpoint_s": 0}), schedule=cosine(), rollback=0.5),
        run,
        blobs,
    )
    expected = plain.curve("train/lr")
    assert run.curve("train/lr") == pytest.approx(expected[:9] + [lr / 2 for lr in expected[9:]])
    assert [event["step"] for event in run.of("metrics") if "train/loss" in event["values"]] == list(
        range(1, 22)
    )
    assert "learning rate is now times 0.5" in run.of("note")[0]["text"]
    with pytest.raises(Diverged):  # once
        train(
            recipe(params, loss=poisoned(1, params).loss, build=_broken, rollback=0.5),
            RecordingRun(tmp_path),
            blobs,
        )


def _broken():
    model = nn.Sequential(nn.Linear(4, 3))
    nn.init.constant_(model[0].bias, float("nan"))
    return model


def test_a_schedule_is_asked_for_the_steps_that_there_are(tmp_path, blobs):
    rates = [0.3, 0.2, 0.1, 0.05]
    run = RecordingRun(tmp_path)
    train(recipe(TrainParams(epochs=2, batch=100), schedule=lambda done, _total: rates[done]), run, blobs)
    assert len(run.curve("train/loss")) == 4


@pytest.mark.parametrize(("best", "notes"), [("accuracy", 0), ("acuracy", 1)])
def test_a_score_to_pick_by_that_is_not_there_is_told_once(tmp_path, blobs, best, notes):
    run = RecordingRun(tmp_path)
    assert len(train(recipe(TrainParams(epochs=3), monitor=best), run, blobs).history) == 3
    assert (
        sum(
            "picked by acuracy, which is none of its scores (accuracy)" in event["text"]
            for event in run.of("note")
        )
        == notes
    )


def test_three_frames_lie_between_train_and_the_loss(tmp_path, blobs):
    params, frames = TrainParams(epochs=1, batch=32), []

    def loss(model, batch):
        frames.append([frame.function for frame in inspect.stack(0)])
        return recipe(params).loss(model, batch)

    train(recipe(params, loss=loss), RecordingRun(tmp_path), blobs)
    assert {tuple(found[: found.index("train") + 1]) for found in frames} == {
        ("loss", "forward_backward", "gradients", "train")
    }
