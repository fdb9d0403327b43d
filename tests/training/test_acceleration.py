"""Compiling, moving data and prefetching change nothing that is computed."""

import math
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from overnight.errors import DoesNotFit
from overnight.gpu.memory_counter import Counter
from overnight.run import RecordingRun
from overnight.training.acceleration import WORTH_FLOP, Compiled, fuse, to_device
from overnight.training.batches import Batches, count, since
from overnight.training.loop import train
from overnight.training.out_of_memory import reserve_optimizer_state
from overnight.training.prefetch import Prefetcher, prefetch
from overnight.training.recipe import TrainParams
from overnight.training.throughput import Flops
from tests.support import small_trainings
from tests.support.small_trainings import recipe, train_by_hand

CPU = torch.device("cpu")


@pytest.fixture
def blobs():
    return small_trainings.blobs()


def batched(params):
    """Batches that can be begun anywhere, drawn from generators alone."""

    def batches(data, generator):
        def make(index, generator):
            return {
                "x": data["x"][index] + 0.1 * torch.randn(len(index), 1, generator=generator),
                "y": data["y"][index],
            }

        return Batches(
            torch.randperm(len(data["x"]), generator=generator).split(params.batch), make, generator
        )

    return batches


# ------------------------------------------------------------------------------------------------ early end


def scored(values):
    left = iter(values)
    return lambda _model, _data, _split: {"accuracy": next(left)}


@pytest.mark.parametrize(("scores", "epochs", "best"), [
    ([0.1, 0.5, 0.4, 0.3, 0.9], 4, 2),
    ([0.5, 0.5, 0.5, 0.5, 0.5], 3, 3),  # as good is not better, and the later of two equal ones is kept
    ([0.1, 0.2, 0.3, 0.4, 0.5], 5, 5),
    ([math.nan, 0.2, 0.3, math.nan, 0.1], 5, 3),  # no number is worse than any, first or later
])  # fmt: skip
def test_a_training_ends_after_so_many_epochs_without_a_better_score(tmp_path, blobs, scores, epochs, best):
    run = RecordingRun(tmp_path)
    fitted = train(recipe(TrainParams(epochs=5, batch=64, patience=2), evaluate=scored(scores)), run, blobs)
    assert len(fitted.history) == epochs
    assert fitted.epoch == best
    assert any("no better accuracy for 2" in e["text"] for e in run.of("note")) == (epochs < 5)


def test_a_loss_picks_its_lowest_epoch(tmp_path, blobs):
    left = iter([0.9, 0.3, math.nan, 0.5, 0.1])
    made = recipe(TrainParams(epochs=5, batch=64, patience=2), evaluate=lambda *_: {"loss": next(left)})
    run = RecordingRun(tmp_path)
    fitted = train(replace(made, monitor="-loss"), run, blobs)
    assert (len(fitted.history), fitted.epoch) == (4, 2)
    assert any("no better loss for 2" in e["text"] for e in run.of("note"))


def test_without_patience_or_a_score_all_epochs_are_trained(tmp_path, blobs):
    falling = [0.5, 0.4, 0.3, 0.2, 0.1]
    assert (
        len(
            train(
                recipe(TrainParams(epochs=5), evaluate=scored(falling)), RecordingRun(tmp_path), blobs
            ).history
        )
        == 5
    )
    nothing = recipe(TrainParams(epochs=5, patience=1), evaluate=lambda *_: {})
    assert len(train(nothing, RecordingRun(tmp_path), blobs).history) == 5


def test_when_to_end_is_science_and_how_to_compute_is_not():
    base = TrainParams().result_params()
    assert TrainParams(patience=3).result_params() != base
    assert TrainParams(compile="on").result_params() == base


# ------------------------------------------------------------------------------------------------ compiling


def compiled_run(tmp_path, blobs, backend):
    def compiled(accumulation):
        accumulation.compiled = Compiled(accumulation.state.model, "on", CPU, backend)

    run = RecordingRun(tmp_path, seed=2)
    return train_by_hand(recipe(TrainParams(epochs=2, batch=64)), run, blobs, compiled), run


def equal(state, fitted):
    theirs = fitted.model.state_dict()
    return state.best.weights.keys() == theirs.keys() and all(
        torch.equal(state.best.weights[name], theirs[name]) for name in theirs
    )


def used(run):
    return {e["name"]: e["value"] for e in run.of("param")}["compile.used"]


def test_a_compiled_model_has_the_same_names_and_weights(tmp_path, blobs):
    calls = []

    def backend(graph, _inputs):
        calls.append(graph)
        return graph.forward

    state, run = compiled_run(tmp_path, blobs, backend)
    plain = train(recipe(TrainParams(epochs=2, batch=64)), RecordingRun(tmp_path, seed=2), blobs)
    assert calls
    assert used(run) == "on"
    assert equal(state, plain)
    assert state.model._compiled_call_impl is None


def test_where_compiling_fails_training_goes_on_without_and_says_so(tmp_path, blobs):
    def broken(_graph, _inputs):
        raise RuntimeError("no compiler on this machine")

    state, run = compiled_run(tmp_path, blobs, broken)
    plain = train(recipe(TrainParams(epochs=2, batch=64)), RecordingRun(tmp_path, seed=2), blobs)
    assert equal(state, plain)
    assert ["goes on without compiling" in e["text"] for e in run.of("note")] == [True]


def test_auto_compiles_on_cuda_alone_and_only_long_trainings():
    model = nn.Linear(2, 2)
    made = {name: Compiled(model, "auto", torch.device(name)) for name in ("cpu", "cuda")}
    for one in made.values():
        one.decide(WORTH_FLOP)
    assert made["cpu"].call is None
    assert made["cuda"].call is not None
    short, off = Compiled(model, "auto", torch.device("cuda")), Compiled(model, "off", torch.device("cuda"))
    short.decide(WORTH_FLOP / 2)
    off.decide(WORTH_FLOP)
    assert "less than compiling is worth" in short.why
    assert short.call is off.call is None


# ----------------------------------------------------------------------------------- layout, fused optimizers


def test_on_the_cpu_layout_and_optimizer_are_the_author_s():
    net, optimizer = nn.Conv2d(3, 4, 3), torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    assert to_device(net, CPU).weight.is_contiguous()
    assert not fuse(optimizer)
    assert optimizer.param_groups[0]["fused"] is None


# ---------------------------------------------------------------------------------------- operations and pace


def test_operations_are_counted_forward_and_backward():
    model, x = nn.Linear(10, 20, bias=False), torch.randn(4, 10)
    with Flops() as flops:
        model(x).sum().backward()
    assert flops.total == 2 * 2 * 4 * 10 * 20  # the product, and its gradient by the weights; x needs none


def test_operations_and_pace_are_logged(tmp_path, blobs):
    run = RecordingRun(tmp_path)
    train(recipe(TrainParams(epochs=3, batch=64, micro_batch=16)), run, blobs)
    each = (2 * 2 * 4 * 16 + 3 * 2 * 16 * 3) / 1e9
    assert run.curve("train/gflop_per_sample") == pytest.approx([each])
    assert len(run.curve("train/samples_per_s")) == 3
    assert run.curve("train/tflops") == pytest.approx(
        [rate * each / 1e3 for rate in run.curve("train/samples_per_s")]
    )


# ----------------------------------------------------------------------------------------- where the data lie


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in b
    )


def make_batches(source):
    return batched(TrainParams(batch=32))(source, torch.Generator().manual_seed(5))


def settled(data, make=make_batches, room=1e9):
    prefetcher = Prefetcher(data, CPU)
    prefetcher.make = make
    prefetcher.settle(room)
    return prefetcher


@pytest.mark.parametrize("first", [0, 1])
def test_data_move_where_they_fit_and_the_batches_stay_the_same(blobs, first):
    prefetcher, expected = Prefetcher(blobs, CPU), list(make_batches(blobs))[first:]
    found = []
    for batch in prefetcher.batches(make_batches, first):
        found.append(batch)
        if len(found) == 2:
            prefetcher.settle(1e9)
            assert prefetcher.resident
            assert prefetcher.where.startswith(
                "card: 0 MiB (x, y)"
            )  # what evaluation alone uses stays where it is
        if len(found) == 4:
            assert prefetcher.move_back()
            assert not prefetcher.resident
    assert same(found, expected)
    assert not prefetcher.move_back()


def test_data_stay_where_they_do_not_fit_or_are_no_tensors(blobs):
    prefetcher = settled(blobs, room=100)
    assert "do not fit into the 0 MiB" in prefetcher.where
    by_list = lambda source: make_batches(source[0])
    other = settled([blobs], by_list)
    assert not prefetcher.resident
    assert not other.resident
    assert same(list(other.batches(by_list, 0)), list(prefetcher.batches(make_batches, 0)))


def test_data_stay_when_their_batches_cannot_be_made_on_the_card_or_are_others(blobs):
    home = blobs["x"].data_ptr()

    def elsewhere(answer):
        def make(source):
            if source["x"].data_ptr() != home:
                return answer()
            return make_batches(source)

        return make

    def mixed():
        raise RuntimeError("Expected all tensors to be on the same device")

    for answer, said in (
        (mixed, "all tensors to be on the same device"),
        (lambda: [{"x": torch.zeros(1)}], "others there"),
    ):
        prefetcher = settled(blobs, elsewhere(answer))
        assert not prefetcher.resident
        assert said in prefetcher.where
        assert len(list(prefetcher.batches(make_batches, 0))) == 7


def test_a_card_too_full_for_the_data_keeps_none_of_it(blobs):
    with Counter(6500) as card:
        before = card.use()
        prefetcher = settled(blobs)
        assert "out of memory" in prefetcher.where
        assert card.use() == before


def test_out_of_memory_sends_the_data_back_before_it_touches_the_micro_batch(tmp_path, blobs):
    params, run, fails = TrainParams(epochs=1, batch=32), RecordingRun(tmp_path), iter([False, False, True])
    plain = train(recipe(params, batches=batched(params)), RecordingRun(tmp_path), blobs)

    def loss(model, batch):
        if next(fails, False):
            raise torch.OutOfMemoryError("made up")
        assert count(batch) in (32, 8)
        return recipe(params).loss(model, batch)

    loaders = []

    def moved(accumulation):
        loaders.append(accumulation.loader)
        accumulation.loader.settle(1e9)
        assert accumulation.loader.resident

    state = train_by_hand(recipe(params, loss=loss, batches=batched(params)), run, blobs, moved)
    assert not loaders[0].resident
    assert [e["text"].split(",")[0] for e in run.of("note")] == ["out of memory: the data leave the card"]
    assert run.micro_batch == 32
    assert equal(state, plain)


# ----------------------------------------------------------------------------------------- batches made ahead


def test_batches_made_ahead_are_the_same_in_the_same_order(blobs):
    batches = batched(TrainParams(batch=32))(blobs, torch.Generator().manual_seed(1))
    where = []
    found = list(
        prefetch(batches, 2, lambda batch: (where.append(threading.current_thread().name), batch)[1])
    )
    assert same(found, list(since(batches, 2)))
    assert all(name.startswith("batches") for name in where)


def test_an_error_in_a_batch_made_ahead_comes_in_its_place():
    def make(index, _generator):
        if int(index[0]) == 3:
            raise ValueError("a damaged image")
        return {"x": index}

    batches, seen = Batches(torch.arange(6).split(1), make, torch.Generator()), []
    with pytest.raises(ValueError, match="damaged"):
        seen.extend(int(batch["x"]) for batch in prefetch(batches, 0, lambda batch: batch))
    assert seen == [0, 1, 2]


def test_whoever_stops_early_leaves_no_thread_behind(blobs):
    batches = batched(TrainParams(batch=8))(blobs, torch.Generator().manual_seed(1))
    stream = prefetch(batches, 0, lambda batch: batch)
    next(stream)
    assert any(t.name.startswith("batches") for t in threading.enumerate())
    stream.close()
    assert not any(t.name.startswith("batches") for t in threading.enumerate())


# ------------------------------------------------------------------------------------- room for the optimizer


class Norming(torch.optim.Optimizer):
    """Divides by the norm of the gradient, as careless authors do."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["moment"] = p.grad / p.grad.norm()
            p.sub_(self.state[p]["moment"], alpha=self.param_groups[0]["lr"])


@pytest.mark.parametrize(
    "kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad, torch.optim.LBFGS, Norming]
)
def test_room_is_held_for_the_state_and_nothing_else_changes(kind):
    values = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    weights = [nn.Parameter(torch.randn(50)), nn.Parameter(torch.randn(3), requires_grad=False)]
    before, mine = [w.detach().clone() for w in weights], [w for w in weights if w.requires_grad]
    held = reserve_optimizer_state(lambda: kind(mine, **values), weights)
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert all(w.grad is None for w in weights)
    assert sum(t.numel() == 50 for t in held) == {torch.optim.AdamW: 2, torch.optim.SGD: 1, Norming: 1}.get(
        kind, 0
    )


def test_a_state_that_has_no_room_is_known_before_the_first_step():
    weight = nn.Parameter(torch.randn(1000))
    with Counter(10_000) as card, pytest.raises(DoesNotFit, match="optimizer's state do not fit"):
        reserve_optimizer_state(lambda: torch.optim.AdamW([weight]), [weight])
    assert card.refused() == 2


def test_memory_that_is_short_runs_out_in_the_first_forward_pass(tmp_path, blobs):
    """Not in the second, when the optimizer has made its state."""
    build = lambda: nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    adam = lambda model: torch.optim.AdamW(model.parameters(), lr=0.01)
    chosen, run = (
        recipe(TrainParams(epochs=2, batch=100), build=build, optimizer=adam),
        RecordingRun(tmp_path),
    )
    with Counter() as free:
        train(chosen, RecordingRun(tmp_path), blobs)
    with Counter(int(0.85 * free.peak())) as card:
        train(chosen, run, blobs)
    assert card.refused() >= 1
    assert set(run.curve("train/micro_batch")) == {50}


def test_a_formula_that_does_not_know_a_shape_stops_nothing():
    flops = Flops()

    def unknown(*_args, **_kwargs):
        raise ValueError("not a matrix")

    flops._formulas = {torch.ops.aten.mm: unknown}
    with flops:
        out = torch.ones(2, 2) @ torch.ones(2, 2)
    assert flops.total == 0
    assert torch.equal(out, torch.full((2, 2), 2.0))
