"""How a batch is cut, what a failed try leaves behind, and what a loss has to give."""

import pytest
import torch
from torch import nn

from overnight.errors import DoesNotFit
from overnight.run import RecordingRun
from overnight.training import TrainParams, rows, train
from tests.small import blobs, recipe

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB (made up)"


class Loss:
    """That of tests.small; out of memory at chosen calls, and as long as more than `room` samples come at once."""

    def __init__(self, at=(), room=None, change=lambda x: x):
        self.at, self.room, self.change, self.sizes = set(at), room, change, []

    def __call__(self, model, batch):
        self.sizes.append(len(batch["y"]))
        logits = model(self.change(batch["x"]))
        if len(self.sizes) in self.at or (self.room is not None and len(batch["y"]) > self.room):
            raise torch.OutOfMemoryError(FULL)
        return nn.functional.cross_entropy(logits, batch["y"], reduction="sum"), torch.tensor(len(batch["y"]))


def normed():
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def trained(folder, loss, epochs=1, batch=50, micro_batch=None, **changes):
    """(the model, the run) of a short training on blobs."""
    run = RecordingRun(folder)
    params = TrainParams(epochs=epochs, batch=batch, micro_batch=micro_batch)
    return train(recipe(params, loss=loss, **changes), run, blobs()).model, run


def noted(run):
    return [event["text"] for event in run.of("note")]


# ------------------------------------------------------------------------------------------------ how it is cut


@pytest.mark.parametrize("total", [1, 2, 7, 33, 100, 101])
@pytest.mark.parametrize("size", [1, 2, 3, 32, 64, 200])
def test_parts_differ_by_one_sample_at_most_and_hold_every_sample_once(total, size):
    batch = {"x": torch.arange(total), "y": torch.arange(total) + 1}
    parts = list(rows(batch, size))
    lengths = [len(part["x"]) for part in parts]
    assert len(parts) == -(-total // size)
    assert max(lengths) == lengths[0] <= size
    assert max(lengths) - min(lengths) <= 1
    assert all(torch.equal(torch.cat([part[name] for part in parts]), batch[name]) for name in batch)


@pytest.mark.parametrize(("batch", "room"), [(100, 3), (50, 5), (50, 2), (33, 3), (101, 13)])
def test_batch_normalisation_never_meets_a_sample_alone_while_more_fit(tmp_path, batch, room):
    loss = Loss(room=room)
    trained(tmp_path, loss, batch=batch, build=normed, steps_per_epoch=lambda _data: 4)
    assert min(loss.sizes) >= (1 if 200 % batch == 1 else 2)


def test_a_micro_batch_one_below_the_batch_is_two_halves(tmp_path):
    loss = Loss()
    trained(tmp_path, loss, batch=33, micro_batch=32, build=normed)
    assert loss.sizes[:2] == [17, 16]


@pytest.mark.parametrize(("batch", "at_once"), [(50, 2), (25, 3)])
def test_where_two_do_not_fit_and_one_is_refused_it_says_what_helps(tmp_path, batch, at_once):
    with pytest.raises(
        DoesNotFit, match=f"{at_once} samples at a time do not fit.*larger card.*without batch normalisation.*smaller inputs"
    ):
        trained(tmp_path, Loss(room=1), batch=batch, build=normed)


def test_a_net_that_refuses_one_sample_takes_two_where_one_was_asked_for(tmp_path):
    _, run = trained(tmp_path, Loss(), batch=25, micro_batch=1, build=normed)
    assert "refuses one sample alone: at least 2 at once" in noted(run)[0]
    assert run.micro_batch == 2


def test_every_other_error_of_a_sample_alone_goes_through(tmp_path):
    def loss(model, batch):
        raise ValueError("what is that")

    with pytest.raises(ValueError, match="what is that"):
        trained(tmp_path, loss, micro_batch=1)


def test_a_batch_that_is_cut_twice_by_halves_reaches_one_sample(tmp_path):
    """Of 4 samples, at most 3 at once are 2 and 2: half of that is 1."""
    loss = Loss(room=1)
    trained(tmp_path, loss, batch=4, micro_batch=3)
    assert loss.sizes[:2] == [2, 1]
