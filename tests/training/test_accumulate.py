"""Out of memory, anywhere in a training, changes how much is computed at once and nothing else."""

import gc
import weakref

import pytest
import torch
from torch import nn

from overnight.errors import DoesNotFit
from overnight.gpu.memory_counter import Counter
from overnight.run import RecordingRun
from overnight.training.batches import Batches
from overnight.training.evaluate import evaluate, predict_all, predict_in_batches
from overnight.training.loop import train
from overnight.training.plan import MicroBatchState
from overnight.training.recipe import Recipe, TrainParams, constant
from overnight.training.snapshot import StepSnapshot
from overnight.training.weights import TrainedWeights


class Injector:
    """Raises out of memory at chosen calls, or as long as more than `room` samples come at once."""

    def __init__(self, at=(), room=None, error=torch.OutOfMemoryError):
        self.at, self.room, self.error, self.calls, self.sizes = set(at), room, error, 0, []

    def __call__(self, size):
        self.calls += 1
        self.sizes.append(size)
        if self.calls in self.at or (self.room is not None and size > self.room):
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB (made up)")


class Faulty(torch.autograd.Function):
    """The identity; its backward asks the injector."""

    @staticmethod
    def forward(ctx, x, injector):
        ctx.injector = injector
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.injector(len(gradient))
        return gradient, None


class Net(nn.Module):
    """float64, with or without what splitting a batch changes."""

    def __init__(self, norm=False, dropout=0.0):
        super().__init__()
        self.one, self.two, self.dropout = nn.Linear(4, 16).double(), nn.Linear(16, 3).double(), dropout
        self.norm = nn.BatchNorm1d(16).double() if norm else nn.Identity()

    def forward(self, x):
        return self.two(
            nn.functional.dropout(torch.tanh(self.norm(self.one(x))), self.dropout, self.training)
        )


def recipe(params, forward=None, backward=None, judge=None, step=None, net=Net, **changes):
    forward, backward, judge, step = (part or Injector() for part in (forward, backward, judge, step))

    class Sgd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            step(1)  # after some of the weights are new

    def batches(data, generator):
        def make(index, generator):
            shift = 0.1 * torch.randn(len(index), 1, generator=generator, dtype=torch.float64)
            return {"x": data["x"][index] + shift, "y": data["y"][index]}

        return Batches(
            torch.randperm(len(data["x"]), generator=generator).split(params.batch), make, generator
        )

    def loss(model, batch):
        forward(len(batch["y"]))
        logits = Faulty.apply(model(batch["x"]), backward)
        return nn.functional.cross_entropy(logits, batch["y"], reduction="sum"), torch.tensor(len(batch["y"]))

    def score(model, data, split):
        def logits(part):
            judge(len(part))
            return model(part)

        found = predict_all(logits, data["x"], torch.device("cpu"), 64)
        return {"accuracy": float((found.argmax(1) == data["y"]).double().mean())}

    values = {
        "build": net,
        "example_batch": lambda n: {"x": torch.zeros(n, 4), "y": torch.zeros(n, dtype=torch.long)},
        "batches": batches,
        "steps_per_epoch": lambda data: -(-len(data["x"]) // params.batch),
        "loss": loss,
        "optimizer": lambda model: Sgd(model.parameters(), lr=0.1, momentum=0.9),
        "schedule": constant,
        "evaluate": score,
    }
    return Recipe(params=params, **{**values, **changes})


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (160,), generator=generator)
    return {
        "x": (torch.randn(160, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4)).double(),
        "y": y,
    }


def noted(run):
    return [event["text"] for event in run.of("note")]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("phase", ["forward", "backward", "judge", "step"])
def test_training_with_faults_is_training_without(tmp_path, data, phase, error):
    params = TrainParams(epochs=4, batch=32)
    plain, faulty = RecordingRun(tmp_path, seed=5), RecordingRun(tmp_path, seed=5)
    whole = train(recipe(params), plain, data)
    injector = Injector(at=(1, 6, 17), error=error)
    broken = train(recipe(params, **{phase: injector}), faulty, data)
    assert injector.calls > 17
    assert faulty.out_of_memory == 3
    assert faulty.curve("train/loss") == pytest.approx(plain.curve("train/loss"), rel=0, abs=1e-12)
    assert faulty.curve("train/lr") == plain.curve("train/lr")
    assert faulty.curve("val/accuracy") == plain.curve("val/accuracy")
    for a, b in zip(whole.model.parameters(), broken.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_each_smaller_micro_batch_is_noted(tmp_path, data):
    run = RecordingRun(tmp_path)
    injector = Injector(room=10)
    train(recipe(TrainParams(epochs=2, batch=32), forward=injector), run, data)
    assert injector.sizes[:3] == [32, 16, 8]
    assert set(injector.sizes[2:]) == {8}
    assert [text.split(",")[0] for text in noted(run)] == [
        "out of memory with 32 samples at once: goes on with 16 at once",
        "out of memory with 16 samples at once: goes on with 8 at once",
    ]
    assert run.curve("train/micro_batch")[-1] == 8
    assert {"event": "param", "name": "micro_batch.used", "value": "8"} in run.events
    assert run.micro_batch == 8
    assert run.out_of_memory == 2


def test_every_metric_has_each_step_once_also_after_starting_over(tmp_path, data):
    run = RecordingRun(tmp_path)
    train(recipe(TrainParams(epochs=3, batch=32), step=Injector(at=(4, 9))), run, data)
    assert sum("starts over" in text for text in noted(run)) == 2
    seen = [
        (name, event["step"])
        for event in run.of("metrics")
        for name in event["values"]
        if name != "train/samples_per_s"
    ]
    assert len(seen) == len(set(seen))


def test_one_sample_that_does_not_fit_ends_with_what_to_change(tmp_path, data):
    run = RecordingRun(tmp_path, budget_mib=700)
    injector = Injector(room=0)
    with pytest.raises(DoesNotFit, match=r"one sample at a time does not fit 700 MiB.*smaller model"):
        train(recipe(TrainParams(batch=32), forward=injector), run, data)
    assert injector.sizes == [32, 16, 8, 4, 2, 1, 1]


def test_what_cannot_be_split_is_tried_once_more_and_says_so(tmp_path, data):
    whole = {"micro_batches": lambda batch, _size: iter([batch])}
    once, always = Injector(at=(2,)), Injector(room=0)
    assert (
        train(
            recipe(TrainParams(epochs=1, batch=32), forward=once, **whole), RecordingRun(tmp_path), data
        ).epoch
        == 1
    )
    with pytest.raises(DoesNotFit, match="cannot be split"):
        train(recipe(TrainParams(batch=32), forward=always, **whole), RecordingRun(tmp_path), data)
    assert always.calls == 2


def test_an_evaluation_gets_smaller_slices_and_keeps_them(tmp_path, data):
    run, injector = RecordingRun(tmp_path), Injector(room=20)
    train(recipe(TrainParams(epochs=2, batch=32), judge=injector), run, data)
    assert injector.sizes[:3] == [64, 32, 16]
    assert max(injector.sizes[3:]) == 16
    assert "in the evaluation, 2 times" in noted(run)[0]
    with pytest.raises(DoesNotFit, match="evaluation: one sample"):
        train(recipe(TrainParams(epochs=1, batch=32), judge=Injector(room=0)), run, data)


def test_other_errors_go_through(tmp_path, data):
    injector = Injector(at=(3,), error=lambda _text: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(recipe(TrainParams(batch=32), forward=injector), RecordingRun(tmp_path), data)


@pytest.mark.parametrize(("net", "couples", "said"), [
    (Net, "", "exact"),
    (lambda: Net(norm=True), "", "batch normalisation"),
    (lambda: Net(dropout=0.5), "", "dropout"),
    (Net, "pairs within a micro-batch are contrasted", "pairs within a micro-batch"),
])  # fmt: skip
def test_what_splitting_changes_is_written_down(tmp_path, data, net, couples, said):
    run = RecordingRun(tmp_path)
    train(
        recipe(
            TrainParams(epochs=1, batch=32), forward=Injector(at=(3,)), net=net, batch_dependent_loss=couples
        ),
        run,
        data,
    )
    (effects,) = [event["value"] for event in run.of("param") if event["name"] == "elastic"]
    assert said in effects
    assert (said in noted(run)[0]) == (said != "exact")


def test_a_failed_try_leaves_no_trace_in_statistics_and_random_state(tmp_path, data):
    """With the parts as large as before, a step done again is bit for bit the step that did not fail."""
    whole = {"micro_batches": lambda batch, _size: iter([batch]), "net": lambda: Net(norm=True, dropout=0.3)}
    models = [
        train(
            recipe(TrainParams(epochs=2, batch=32), backward=Injector(at=at), **whole),
            RecordingRun(tmp_path),
            data,
        ).model
        for at in ((), (1, 4, 9))
    ]
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)


def test_nothing_of_the_failed_try_is_alive_when_the_next_begins(tmp_path, data):
    alive, counts = [], []

    def loss(model, batch):
        counts.append(sum(ref() is not None for ref in alive))
        hidden = model(batch["x"])
        alive.append(weakref.ref(hidden))
        if len(alive) == 1:
            raise torch.OutOfMemoryError("made up")
        return nn.functional.cross_entropy(hidden, batch["y"], reduction="sum"), torch.tensor(len(batch["y"]))

    gc.disable()
    try:
        train(recipe(TrainParams(epochs=1, batch=32), loss=loss), RecordingRun(tmp_path), data)
    finally:
        gc.enable()
    assert counts[1] == 0


def test_growing_back_is_only_done_when_asked():
    def sizes(grow):
        micro = MicroBatchState(32, 64)
        assert micro.failed(16, 0)
        for _ in range(250):
            micro.succeeded(grow)
        return micro

    assert sizes(False).size == 16
    grown = sizes(True)
    assert grown.size == 64
    assert grown.failed(32, 250)
    assert grown.patience == 200  # the next try comes later


def test_undo_brings_back_buffers_and_randomness():
    norm = nn.BatchNorm1d(3)
    snapshot = StepSnapshot(TrainedWeights(norm), torch.device("cpu"))
    snapshot.save()
    before = norm.running_mean.clone()
    first = torch.rand(3)
    norm(torch.randn(8, 3) + 5)
    assert snapshot.used_rng()
    snapshot.restore()
    assert torch.equal(norm.running_mean, before)
    assert norm.num_batches_tracked == 0
    assert torch.equal(torch.rand(3), first)


def test_slices_cover_every_input_whatever_fails():
    injector = Injector(at=(2, 5), room=7)
    found = predict_in_batches(
        lambda part: (injector(len(part)), part * 2)[1], torch.arange(50.0), torch.device("cpu"), 16
    )
    assert torch.equal(torch.cat(found), 2 * torch.arange(50.0))


def test_evaluation_alone_survives_too(data):
    assert 0 <= evaluate(recipe(TrainParams(), judge=Injector(room=20)), Net(), data, "val")["accuracy"] <= 1


class Wide(nn.Module):
    """float64, its activations far larger than its weights."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 32), nn.Tanh(), nn.Unflatten(1, (32, 1)), nn.Linear(1, 128), nn.Tanh(), nn.Flatten()
        )
        self.body.append(nn.Linear(4096, 3)).double()

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_card_that_counts_every_byte_is_never_overrun_and_the_losses_are_the_same(tmp_path, data, share):
    chosen = recipe(TrainParams(epochs=2, batch=64), net=Wide)
    plain, capped = RecordingRun(tmp_path, seed=5), RecordingRun(tmp_path, seed=5)
    with Counter() as free:
        whole = train(chosen, plain, data)
    with Counter(int(share * free.peak())) as card:
        broken = train(chosen, capped, data)
    assert card.refused() == capped.out_of_memory >= 1
    assert card.peak() <= share * free.peak()
    assert capped.micro_batch < 64
    assert capped.curve("train/loss") == pytest.approx(plain.curve("train/loss"), rel=0, abs=1e-12)
    for a, b in zip(whole.model.parameters(), broken.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_model_that_is_larger_than_the_card_does_not_fit(tmp_path, data):
    with (
        Counter(300_000) as card,
        pytest.raises(DoesNotFit, match="weights, their gradients and the optimizer's state do not fit"),
    ):
        train(recipe(TrainParams(epochs=2, batch=64), net=Wide), RecordingRun(tmp_path), data)
    assert card.refused() == 2  # the first failure may have been a stranger's


def test_one_sample_that_is_larger_than_the_card_does_not_fit(tmp_path, data):
    with Counter(400_000) as card, pytest.raises(DoesNotFit, match="one sample at a time"):
        train(recipe(TrainParams(epochs=2, batch=64), net=Wide), RecordingRun(tmp_path), data)
    assert card.refused() >= 7
