"""How a batch is cut, what a failed try leaves behind, and what a loss has to give."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from overnight.errors import BadInput, DoesNotFit
from overnight.run import RecordingRun
from overnight.training.batches import split_by_sample
from overnight.training.loop import train
from overnight.training.recipe import TrainParams
from tests.support.small_trainings import blobs, recipe

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB (made up)"


class Loss:
    """That of small_trainings; out of memory at chosen calls, and for more than `room` samples at once."""

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


# ---------------------------------------------------------------------------------------------- how it is cut


@pytest.mark.parametrize("total", [1, 2, 7, 33, 100, 101])
@pytest.mark.parametrize("size", [1, 2, 3, 32, 64, 200])
def test_parts_differ_by_one_sample_at_most_and_hold_every_sample_once(total, size):
    batch = {"x": torch.arange(total), "y": torch.arange(total) + 1}
    parts = list(split_by_sample(batch, size))
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
        DoesNotFit,
        match=f"{at_once} samples at a time do not fit.*larger card.*without batch norm.*smaller inputs",
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


# ---------------------------------------------------------------------------- what a failed try leaves behind


class Seen(nn.Module):
    """Counts its samples in a buffer that is assigned anew."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", None)

    def forward(self, x):
        if self.training:
            self.seen, self.last = self.seen + len(x), x.mean().detach()
        return self.line(x) * (1 + 0.001 * self.seen)


def test_a_buffer_that_is_assigned_anew_is_undone_as_well(tmp_path):
    model, run = trained(tmp_path, Loss(at=(1, 4)), build=Seen)
    assert run.out_of_memory == 2
    assert model.seen == 200


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_draws_of_python_and_numpy_are_told_and_done_again_as_they_were(tmp_path, draw):
    """With the parts as large as before, a step done again is bit for bit the step that did not fail."""
    models = []
    for at in ((), (1, 3)):
        random.seed(0)
        np.random.seed(0)
        model, run = trained(
            tmp_path, Loss(at, change=lambda x: x * draw()), micro_batches=lambda batch, _size: iter([batch])
        )
        models.append(model)
        (effects,) = [event["value"] for event in run.of("param") if event["name"] == "elastic"]
        assert "random draws" in effects
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_a_loss_that_works_in_place_on_its_batch_does_so_once(tmp_path):
    whole = {"micro_batches": lambda batch, _size: iter([batch])}
    plain, _ = trained(tmp_path, Loss(), **whole, build=Seen)
    models = [trained(tmp_path, Loss(at, change=lambda x: x.mul_(0.5)), **whole)[0] for at in ((), (3,))]
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))
    assert not torch.equal(plain.line.weight, models[0][2].weight)
    with pytest.raises(BadInput, match=r"changed its batch in place \(x\)"):
        trained(tmp_path, Loss(at=(1,), change=lambda x: x.mul_(0.5)))


def test_what_is_no_sample_is_not_cut(tmp_path):
    def batches(data, _generator):
        yield {"x": data["x"], "y": data["y"], "weights": torch.ones(3), "rate": torch.tensor(1.0)}

    with pytest.raises(
        BadInput, match=r"200 samples.*'x'.*'weights': \(3,\), 'rate': \(\).*`micro_batches` of its own"
    ):
        trained(tmp_path, Loss(room=100), batch=200, batches=batches)


# ------------------------------------------------------------------------------------ what a loss has to give


def entropy(model, batch, reduction="sum"):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction=reduction)


@pytest.mark.parametrize(("loss", "said"), [
    (lambda m, b: entropy(m, b, "mean"), r"returned a tensor of shape \(\)"),
    (lambda m, b: (entropy(m, b, "none"), len(b["y"])), r"first that .* returned is .* of shape \(50,\)"),
    (lambda m, b: (entropy(m, b).item(), len(b["y"])), "is a float"),
    (lambda m, b: (entropy(m, b).detach(), len(b["y"])), "depends on no weight"),
    (lambda m, b: (entropy(m, b), None), "second that the loss returned is a NoneType"),
])  # fmt: skip
def test_a_loss_that_gives_something_else_is_told_what_it_has_to_give(tmp_path, loss, said):
    with pytest.raises(BadInput, match=f"{said}.*sum of the losses of all samples, their number"):
        trained(tmp_path, loss)


def test_a_count_may_be_a_plain_number(tmp_path):
    plain, counted = (
        trained(tmp_path, loss)[0] for loss in (Loss(), lambda m, b: (entropy(m, b), len(b["y"])))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), counted.parameters(), strict=True))


@pytest.mark.parametrize("micro_batch", [None, 20])
def test_weights_that_add_up_to_less_than_one_are_divided_by(tmp_path, micro_batch):
    def weighted(model, batch):
        weights = torch.full((len(batch["y"]),), 1e-3)
        return (entropy(model, batch, "none") * weights).sum(), weights.sum()

    one, other = (trained(tmp_path, loss, micro_batch=micro_batch) for loss in (Loss(), weighted))
    assert one[1].curve("train/loss") == pytest.approx(other[1].curve("train/loss"), rel=1e-4)


def test_nothing_to_learn_from_is_no_error(tmp_path):
    def batches(data, _generator):
        for size in (0, 32, 0):
            yield {"x": data["x"][:size], "y": data["y"][:size]}

    _, run = trained(tmp_path, Loss(), batches=batches, steps_per_epoch=lambda _data: 3)
    assert run.curve("train/loss")[0] == 0.0


def test_a_mean_that_is_split_is_noted(tmp_path):
    _, run = trained(tmp_path, lambda m, b: (entropy(m, b, "mean"), torch.tensor(1)), micro_batch=20)
    assert sum("counts each micro-batch as 1" in text for text in noted(run)) == 1


def test_an_empty_split_and_a_batch_of_no_tensors_are_refused(tmp_path):
    with pytest.raises(BadInput, match="micro_batches gave nothing for a batch of 50"):
        trained(tmp_path, Loss(), micro_batches=lambda _batch, _size: iter(()))
    with pytest.raises(BadInput, match="'names' is a list"):
        trained(tmp_path, Loss(), batches=lambda data, _generator: [{"x": data["x"], "names": ["a"]}])


def test_fp16_that_leaves_its_first_step_out_warns_of_nothing(tmp_path):
    params = TrainParams(epochs=1, batch=50, precision="fp16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(recipe(params, loss=Loss(change=lambda x: x * 1e4)), RecordingRun(tmp_path), blobs())
