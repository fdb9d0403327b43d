"""Two trainings in one step: both curves are whole, and no metric has two values at one step."""

import pytest
import torch

from overnight import events as event_log
from overnight.errors import Stopped
from overnight.run import EventLogRun, RecordingRun
from overnight.training.loop import train
from overnight.training.recipe import TrainParams
from overnight.training.resume import acquire_checkpoints
from tests.support import small_trainings
from tests.support.small_trainings import recipe

PARAMS = TrainParams(epochs=2, batch=32, checkpoint_s=0)  # 7 steps an epoch


@pytest.fixture
def blobs():
    return small_trainings.blobs()


def points(*folders):
    """(metric, step) of every loss and score in the spools."""
    events = [
        e
        for folder in folders
        for e in event_log.read(folder / event_log.CHILD, 0).events
        if e["event"] == "metrics"
    ]
    return sorted(
        (name, e["step"]) for e in events for name in e["values"] if name.endswith(("loss", "accuracy"))
    )


EXPECTED = sorted(
    [(f"train{n}/loss", step) for n in ("", "-2") for step in range(1, 15)]
    + [(f"val{n}/accuracy", step) for n in ("", "-2") for step in (7, 14)]
)


@pytest.mark.parametrize("at", [10, 20])
def test_a_step_that_is_stopped_in_either_has_all_points_once(checkout, tmp_path, blobs, at):
    def step(name, stop):
        (tmp_path / name).mkdir()
        run = EventLogRun(tmp_path / name)
        run.should_stop = lambda: (
            stop and sum(kind == "loss" for kind in map(_last, points(tmp_path / name))) >= at
        )
        with acquire_checkpoints(run, "key", name):
            train(recipe(PARAMS), run, blobs)
            train(recipe(PARAMS), run, blobs)

    with pytest.raises(Stopped):
        step("first", True)
    step("second", False)
    assert points(tmp_path / "first", tmp_path / "second") == EXPECTED


def _last(point):
    return point[0].rpartition("/")[2]


def test_a_second_training_that_starts_over_has_all_points_once(tmp_path, blobs):
    calls = []

    class Full(torch.optim.SGD):
        def step(self, closure=None):
            calls.append(1)
            if len(calls) == 14 + 10:
                raise torch.OutOfMemoryError("made up")
            super().step(closure)

    run = RecordingRun(tmp_path)
    run.checkpoints = tmp_path / "checkpoints"
    chosen = recipe(PARAMS, optimizer=lambda model: Full(model.parameters(), lr=0.3))
    train(chosen, run, blobs)
    train(chosen, run, blobs)
    assert len(run.curve("train/loss")) == len(run.curve("train-2/loss")) == 14
    assert len(run.curve("val-2/accuracy")) == 2


def test_what_was_logged_last_is_the_largest_step(tmp_path):
    run = RecordingRun(tmp_path)
    for step in (1, 5, 3):
        run.metric("test/accuracy", 0.5, step)
    assert run.logged == {"test/accuracy": 5}
