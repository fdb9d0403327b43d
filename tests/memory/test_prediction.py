"""Predicted memory against torch's profiler in real runs on the CPU; never "fits" when unknown."""

import importlib.util
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import nn

from bench._kernels import Kernels
from bench._measure import live_peak
from overnight.memory import Constants, MemoryEstimate, predict
from overnight.memory.modules import ModuleParams, as_recipe
from overnight.memory.prediction import Unknown, traced
from overnight.memory.search import ScaledPredictions, largest
from overnight.training.recipe import TrainParams

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 2**20


def load_recipes():
    path = Path(__file__).resolve().parents[2] / "bench" / "_fit_recipes.py"
    spec = importlib.util.spec_from_file_location("fit_recipes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = load_recipes()


def lm(**values):
    return made.lm_recipe(made.LmParams(**{"batch": 4, "width": 64, "layers": 2, "context": 64, **values}))


def head_of_a_frozen_base():
    """One layer is trained, and averaged; the rest is frozen, as packed weights are."""
    recipe = lm(tied=False)

    def build():
        net = recipe.build().requires_grad_(False)
        net.head.requires_grad_()
        net.register_buffer("packed", torch.zeros(2 * MIB, dtype=torch.uint8))
        return net

    return replace(recipe, build=build, ema=0.9)


CASES = {
    "cnn, accumulated, evaluated in large slices": (
        lambda: made.images((3, 16, 16), channels=8, blocks=1, batch=32),
        8,
    ),
    "cnn bf16 adamw": (
        lambda: made.images(
            (1, 16, 16), channels=8, blocks=1, batch=600, precision="bf16", optimizer="adamw"
        ),
        600,
    ),
    "detector": (lambda: made.boxes(64, width_multiplier=0.25, batch=4), 2),
    "gcn on sparse features": (lambda: made.graph(800, 2000, 200, 9000), 100),
    "gat on dense features": (lambda: made.graph(800, 2000, 64, conv="gat"), 100),
    "transformer": (lm, 4),
    "transformer bf16, no dropout": (lambda: lm(precision="bf16", dropout=0.0), 2),
    "average of a head on a frozen base": (head_of_a_frozen_base, 4),
    "q-nets": (lambda: made.atari_recipe(made.NetParams(batch=16)), 16),
}


@pytest.mark.parametrize("name", CASES)
def test_the_profiler_of_a_real_training_finds_what_was_predicted(name, tmp_path):
    make, micro = CASES[name]
    predicted = traced(make(), micro, "cpu", Kernels()).peak().bytes
    assert predicted == pytest.approx(live_peak(make(), micro, tmp_path), rel=0.005)


def test_twice_the_same():
    first, second = (traced(lm(), 2, "cuda") for _ in range(2))
    assert (first.sizes, first.events, first.kinds) == (second.sizes, second.events, second.kinds)


def test_the_parts_add_up_and_the_edges_enclose():
    found = predict(lm(), 4, data_mib=100.0)
    assert sum(found.parts.values()) == pytest.approx(found.mib, rel=1e-6)
    assert found.low_mib <= found.mib <= found.high_mib
    assert found.parts["data"] >= 100
    weights = sum(p.numel() for p in lm().build().parameters()) * 4
    assert weights <= found.parts["weights"] * MIB < weights * 1.1  # each tensor is rounded to 512 bytes


def test_an_evaluation_that_can_be_cut_smaller_refuses_nothing():
    found = predict(made.images((3, 32, 32), channels=8, blocks=1, batch=4), 4, "cpu")
    assert found.phase == "evaluate"
    assert found.low_mib < found.needed_mib < found.mib < found.high_mib
    assert found.verdict(found.needed_mib + 1) == "fits"


def test_memory_grows_with_the_micro_batch():
    small, large = (predict(made.critic_recipe(made.NetParams(batch=8192)), n, "cpu") for n in (64, 8192))
    assert small.high_mib < large.low_mib


# ---------------------------------------------------------------------- what a card does differently


class One(nn.Module):
    """A module of somebody's own, with one thing in it."""

    def __init__(self, what):
        super().__init__()
        self.into, self.what = nn.Linear(64, 64), what

    def forward(self, x):
        return self.what(self.into(x))


def live(what, target, precision="fp32", shape=(64, 128, 64)):
    recipe = as_recipe(One(what), torch.empty(*shape), precision=precision)
    return traced(recipe, 1, target).peak().bytes / MIB


def test_a_card_keeps_a_mask_of_bytes_for_dropout():
    dropped = lambda x: nn.functional.dropout(x, 0.5)
    plain = live(lambda x: x * 1.0, "cpu")
    assert live(dropped, "cpu") - plain >= 2  # a float mask of 2 MiB
    assert live(dropped, "cuda") - live(lambda x: x * 1.0, "cuda") < 1.5


def test_a_card_never_holds_the_scores_of_attention():
    attend = lambda x: nn.functional.scaled_dot_product_attention(
        *[x.unflatten(-1, (4, 16)).transpose(1, 2)] * 3, dropout_p=0.1
    )
    scores = 8 * 4 * 512 * 512 * 4 / MIB
    assert live(attend, "cpu", shape=(8, 512, 64)) > scores
    for precision in ("fp32", "bf16"):
        assert live(attend, "cuda", precision, (8, 512, 64)) < scores


def test_under_autocast_a_card_runs_softmax_and_norms_in_single_precision():
    for operator in (lambda x: x.softmax(-1), lambda x: nn.functional.layer_norm(x, (64,))):
        kept = [live(operator, target, "bf16", (512, 128, 64)) for target in ("cpu", "cuda")]
        assert kept[1] > kept[0] + 7  # 8 MiB in half precision become 16


def test_the_lists_of_autocast_are_as_before_afterwards():
    predict(lm(precision="bf16"), 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.ones(4, 4, dtype=torch.bfloat16).softmax(-1).dtype == torch.bfloat16
    copied = nn.Parameter(torch.ones(3))
    assert torch.equal(__import__("copy").deepcopy(copied), copied)


def test_the_loop_takes_fused_optimizers_and_somebody_s_own_does_not():
    wide = made.critic_recipe(made.NetParams(batch=4), hidden=2048)
    weights = sum(p.numel() for p in wide.build().parameters()) * 4 / MIB
    ours = most_in_optimizer(traced(wide, 4, "cuda"))
    own = most_in_optimizer(traced(replace(wide, params=ModuleParams(batch=4, micro_batch=4)), 4, "cuda"))
    assert own - ours == pytest.approx(weights, rel=0.1)  # temporaries as large as all weights
    assert ours == pytest.approx(4 * weights, rel=0.15)  # weights, gradients, two moments


def most_in_optimizer(trace):
    """The most MiB alive while the optimizer runs."""
    changes = [trace.sizes[event] if event >= 0 else -trace.sizes[~event] for event in trace.events]
    return (
        max(
            now
            for now, (phase, _) in zip(accumulate(changes), trace.places, strict=True)
            if phase == "optimizer"
        )
        / MIB
    )


def test_convolutions_lie_channels_last_on_a_card():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x):
            return self.second(self.first(x))

    own = as_recipe(Net(), torch.empty(8, 4, 64, 64))
    ours = replace(own, params=TrainParams(batch=8, micro_batch=8, precision="fp32"))
    first, second, weights = 0.5 + 4, 4 + 4, 9 * (4 + 32) * 32 * 4 / MIB  # MiB that go in and come out
    assert reordered(own) / 5 == pytest.approx(first + second + weights)  # three steps, two evaluations
    assert reordered(ours) / 5 == pytest.approx(
        first + weights
    )  # what comes out of the first lies channels-last


def reordered(recipe):
    """MiB that convolutions take in forward passes."""
    trace = traced(recipe, 8, "cuda")
    born = {event: place for event, place in zip(trace.events, trace.places, strict=True) if event >= 0}
    taken = (
        trace.sizes[n]
        for n, (phase, op) in born.items()
        if trace.kinds[n] == "workspace" and phase != "build" and "backward" not in op
    )
    return sum(taken) / MIB


# ---------------------------------------------------------------------- modules of a user's own


def test_a_module_stays_as_it_is_and_tied_weights_count_once():
    module = nn.Sequential(nn.Embedding(1000, 64), nn.Linear(64, 1000, bias=False))
    module[1].weight = module[0].weight
    before = module[0].weight.detach().clone()
    found = predict(module, torch.zeros(2, 8, dtype=torch.long), "cpu")
    assert type(module[0].weight) is nn.Parameter
    assert torch.equal(module[0].weight, before)
    assert found.parts["weights"] == pytest.approx(1000 * 64 * 4 / MIB)
    assert found.parts["optimizer"] == pytest.approx(2 * 1000 * 64 * 4 / MIB, rel=0.01)


def test_a_loop_of_somebody_s_own_keeps_no_copies_of_the_weights():
    net = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512))
    found = predict(net, torch.empty(2, 512), "cpu", optimizer=lambda weights: torch.optim.SGD(weights, 0.1))
    assert found.parts.get("copies", 0) == 0
    assert 2 <= found.mib / (512 * 515 * 4 / MIB) < 2.2  # weights, gradients, and two samples


def test_a_mapping_is_handed_over_by_its_names():
    class Named(nn.Linear):
        def forward(self, input_ids=None, inputs_embeds=None):
            assert input_ids is None
            return super().forward(inputs_embeds)

    assert not predict(Named(8, 8), {"inputs_embeds": torch.empty(4, 8)}).unknown


def test_what_hides_its_memory_is_unknown():
    for target in ("cpu", "cuda"):
        found = predict(nn.LSTM(8, 16, batch_first=True), torch.empty(2, 4, 8), target)
        assert "fused LSTM" in found.unknown
        assert found.verdict(10**9) == "unknown"


def steered(x):
    return x * 2 if x.sum() > 0 else x


def selected(x):
    return x[x > 0]


def to_numpy(x):
    return torch.from_numpy(x.detach().numpy())


@pytest.mark.parametrize(
    ("what", "why"), [(steered, "reads a value"), (selected, "depends on values"), (to_numpy, "forward")]
)
def test_what_depends_on_values_is_unknown_and_never_fits(what, why):
    found = predict(One(what), torch.empty(4, 64))
    assert why in found.unknown
    assert found.unknown.startswith("forward")
    assert found.verdict(10**9) == "unknown"


def test_a_recipe_that_cannot_be_traced_gives_no_number():
    recipe = replace(lm(), loss=lambda model, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a mistake in the recipe is no unknown
        traced(recipe, 1, "cpu")
    refused = replace(lm(), build=lambda: torch.load("weights that are not here"))
    with pytest.raises(Unknown, match="build"):
        traced(refused, 1, "cpu")
    assert predict(refused, 1, "cuda").unknown.startswith("build: ")


# ---------------------------------------------------------------------- what would fit


def line(each, fixed, traced_at):
    def peak(n):
        traced_at.append(n)
        return MemoryEstimate(n, needed_mib=fixed + each * n + (n // 7))  # nearly a line

    return peak


@pytest.mark.parametrize("start", [1, 64, 256])
def test_the_largest_micro_batch_is_found_in_few_traces(start):
    looked = []
    found = largest(line(10, 500, looked), 2000, 256, start)
    assert found.needed_mib <= 2000 < line(10, 500, [])(found.micro_batch + 3).needed_mib
    assert len(looked) <= 8
    assert largest(line(10, 500, []), 505, 256, start) is None


def test_few_traces_tell_all_micro_batches():
    scaled = ScaledPredictions(made.critic_recipe(made.NetParams(batch=4096)), Constants())
    for n in (16, 512, 4096, 9000):
        assert scaled.near(n).mib == pytest.approx(scaled.exact(n).mib, rel=0.001)


def test_the_largest_micro_batch_that_fits_cuts_the_batch_evenly_or_exceeds_it():
    scaled = ScaledPredictions(
        made.critic_recipe(made.NetParams(batch=8192, precision="fp32", optimizer="sgd")),
        Constants(),
    )
    budget = (scaled.exact(8192).needed_mib + scaled.exact(1).needed_mib) / 2
    best = scaled.largest(budget)
    assert best.verdict(budget) == "fits"
    assert 8192 % best.micro_batch == 0
    more = scaled.largest(scaled.exact(4 * 8192).needed_mib)
    assert more.micro_batch > 8192
    assert scaled.largest(100) is None
    odd = ScaledPredictions(
        made.critic_recipe(made.NetParams(batch=8191, precision="fp32", optimizer="sgd")),
        Constants(),
    )  # a prime
    assert odd.largest(budget).micro_batch == best.micro_batch


def test_a_recipe_says_its_own_micro_batch():
    recipe = made.critic_recipe(made.NetParams(batch=8))
    assert predict(recipe).micro_batch == 8
    assert predict(replace(recipe, params=TrainParams(batch=8, micro_batch=2))).micro_batch == 2
