"""A training that has diverged goes on only from weights that gave a fine loss, in every attempt."""

import pytest
import torch
from torch import nn

from overnight.errors import Diverged, Stopped
from overnight.run import RecordingRun
from overnight.training.loop import train
from overnight.training.recipe import TrainParams
from tests.support import small_trainings
from tests.support.small_trainings import recipe

PARAMS = TrainParams(epochs=3, batch=32, checkpoint_s=0)  # 7 steps an epoch


@pytest.fixture
def blobs():
    return small_trainings.blobs()


def begun(folder):
    """One more attempt whose checkpoints are in the folder."""
    run = RecordingRun(folder)
    run.checkpoints = folder / "checkpoints"
    return run


def kept(folder):
    """The steps of which there are checkpoints."""
    return sorted(int(facts.stem) for facts in (folder / "checkpoints/0").glob("*.json"))


def spiked(size, **changes):
    """A recipe whose tenth step goes far astray, while all its losses up to then are fine."""
    return recipe(PARAMS, schedule=lambda done, _total: size if done == 9 else 1.0, **changes)


@pytest.mark.parametrize("size", [1e12, 1e38])  # useless weights that are finite, and weights that are not
def test_every_attempt_at_it_ends_the_same_way(tmp_path, blobs, size):
    for _ in range(3):
        with pytest.raises(Diverged, match="optimizer step 11"):
            train(spiked(size), begun(tmp_path), blobs)
        assert kept(tmp_path) == [9]


def test_a_stop_between_the_step_and_the_loss_that_shows_it_leaves_an_older_state(tmp_path, blobs):
    run = begun(tmp_path)
    run.should_stop = lambda: len(run.curve("train/loss")) >= 10
    with pytest.raises(Stopped):
        train(spiked(1e12), run, blobs)
    assert kept(tmp_path) == [9, 10]
    for _ in range(2):
        with pytest.raises(Diverged, match="optimizer step 11"):
            train(spiked(1e12), begun(tmp_path), blobs)
        assert kept(tmp_path) == [9]


def test_the_second_chance_begins_before_the_step_that_went_astray(tmp_path, blobs):
    run = begun(tmp_path)
    fitted = train(spiked(1e12, rollback=1e-12), run, blobs)
    assert any("after optimizer step 9 of 21" in event["text"] for event in run.of("note"))
    assert all(torch.isfinite(p).all() for p in fitted.model.parameters())
    assert run.curve("train/loss")[-1] < 2


class Counting(nn.Linear):
    """Knows how many batches it has seen."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += self.training
        return super().forward(x)


def outlying():
    """Losses of 1e5, then 0.01, and one of 2e4 among them, as of a regression with unscaled targets."""

    def loss(model, batch):
        size, total = len(batch["y"]), model(batch["x"]).sum() * 0
        step = int(model.seen)
        value = 2e4 if step == 16 else 0.01
        return total + (1e5 if step < 6 else value) * size, torch.tensor(size)

    return recipe(PARAMS, build=Counting, loss=loss)


def test_losses_are_measured_by_the_first_of_all_attempts(tmp_path, blobs):
    run = begun(tmp_path)
    run.should_stop = lambda: len(run.curve("train/loss")) >= 9
    with pytest.raises(Stopped):
        train(outlying(), run, blobs)
    again = begun(tmp_path)
    train(outlying(), again, blobs)
    assert run.curve("train/loss") + again.curve("train/loss") == train_whole(
        tmp_path / "whole", outlying(), blobs
    )


def train_whole(folder, chosen, data):
    run = RecordingRun(folder)
    train(chosen, run, data)
    return run.curve("train/loss")
