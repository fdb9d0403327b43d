"""On a machine with a CUDA card: what the loop chooses there, and that none of it changes what is learnt
(make test-gpu).
"""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from overnight.run import RecordingRun
from overnight.training.acceleration import fuse, to_device
from overnight.training.batches import Batches, seeded, since
from overnight.training.loop import train
from overnight.training.out_of_memory import free, reserve_optimizer_state
from overnight.training.prefetch import pinned, prefetch
from overnight.training.recipe import TrainParams
from tests.support import small_trainings
from tests.support.small_trainings import recipe

pytestmark = pytest.mark.gpu
MIB = 1 << 20


@pytest.fixture(autouse=True)
def cuda() -> Iterator[torch.device]:
    """The card, empty, and afterwards without a cap."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA card here")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(1.0)


def batches(params, data, generator):
    def make(index, _generator):
        return {name: data[name][index] for name in ("x", "y")}

    return Batches(torch.randperm(len(data["x"]), generator=generator).split(params.batch), make, generator)


def chosen(params, data=None, **changes):
    """The small training, which scores on the device and begins anywhere.

    Data: batches are made of these instead, which then stay put.
    """

    def score(model, found, split):
        right = model(found[f"{split}_x"].cuda()).argmax(1).cpu() == found[f"{split}_y"]
        return {"accuracy": right.double().mean().item()}

    values = {
        "batches": lambda given, generator: batches(params, data or given, generator),
        "evaluate": score,
        **changes,
    }
    return recipe(params, **values)


def on_card(tmp_path, made, data, **facts):
    run = RecordingRun(tmp_path, seed=3, device="cuda")
    for name, value in facts.items():
        setattr(run, name, value)
    return train(made, run, data), run


def params_of(run):
    return {e["name"]: e["value"] for e in run.of("param")}


def noted(run):
    return [e["text"] for e in run.of("note")]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_optimizers_are_fused_and_learn_the_same(cuda, tmp_path, kind, precision):
    blobs, params = small_trainings.blobs(), TrainParams(epochs=3, batch=32, precision=precision)
    plain = lambda model: kind(model.parameters(), lr=0.01, foreach=True)
    free_ = lambda model: kind(model.parameters(), lr=0.01)
    (_, ours), (_, theirs) = (
        on_card(tmp_path, chosen(params, optimizer=made), blobs) for made in (free_, plain)
    )
    assert fuse(free_(nn.Linear(2, 2).to(cuda)))
    assert not fuse(plain(nn.Linear(2, 2).to(cuda)))
    assert ours.curve("train/loss") == pytest.approx(theirs.curve("train/loss"), rel=1e-3)


def test_convolutions_lie_channels_last_and_their_weights_can_be_loaded_anywhere(cuda):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    laid = to_device(net, cuda)
    out = laid(torch.randn(2, 3, 16, 16, device=cuda))
    assert laid[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    fresh.load_state_dict({name: tensor.cpu() for name, tensor in laid.state_dict().items()})
    assert torch.equal(fresh[0].weight, laid[0].weight.cpu())


def test_data_that_fit_lie_on_the_card_and_the_losses_are_the_same(cuda, tmp_path):
    blobs, params = small_trainings.blobs(), TrainParams(epochs=3, batch=32, precision="fp32")
    _, resident = on_card(tmp_path, chosen(params), blobs)
    _, hosted = on_card(tmp_path, chosen(params, data=blobs), blobs)  # a thread makes these ahead
    assert params_of(resident)["data_on"].startswith("card:")
    assert params_of(hosted)["data_on"].startswith("host")
    assert resident.curve("train/loss") == hosted.curve("train/loss")


def test_data_that_do_not_fit_the_lease_stay_on_the_host(cuda, tmp_path):
    many = {
        name: tensor.repeat(50_000, *[1] * (tensor.dim() - 1)) if name in ("x", "y") else tensor
        for name, tensor in small_trainings.blobs().items()
    }
    params = TrainParams(epochs=1, batch=5_000_000, precision="fp32", micro_batch=100_000)
    _, run = on_card(tmp_path, chosen(params), many, budget_mib=200)
    assert "do not fit into the" in params_of(run)["data_on"]


def test_out_of_memory_sends_the_data_back_to_the_host(cuda, tmp_path):
    blobs, fails = small_trainings.blobs() | {"x": torch.randn(200, 1 << 16)}, iter([False, False, True])
    params = TrainParams(epochs=1, batch=32, precision="fp32")
    seen = []

    def loss(model, batch):
        seen.append(torch.cuda.memory_allocated())
        if next(fails, False):
            raise torch.OutOfMemoryError("made up")
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), torch.tensor(
            len(batch["y"])
        )

    build = lambda: nn.Linear(1 << 16, 3)
    _, run = on_card(tmp_path, chosen(params, build=build, loss=loss, evaluate=lambda *_: {}), blobs)
    assert noted(run)[0].startswith("out of memory: the data leave the card")
    assert seen[2] - seen[3] >= 40 * MIB  # of the 50 that they are


def test_what_is_made_ahead_is_pinned_and_in_order(cuda):
    made = batches(TrainParams(batch=32), small_trainings.blobs(), seeded(1))
    found = list(prefetch(made, 1, pinned))
    assert all(tensor.is_pinned() for batch in found for tensor in batch.values())
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(found, since(made, 1), strict=True))


def test_a_compiled_training_learns_the_same_under_the_same_names(cuda, tmp_path):
    blobs = small_trainings.blobs()
    plain, ours = (
        on_card(tmp_path, chosen(TrainParams(epochs=3, batch=32, precision="fp32", compile=c)), blobs)
        for c in ("off", "on")
    )
    assert params_of(ours[1])["compile.used"] == "on"
    assert not noted(ours[1])
    assert ours[0].model.state_dict().keys() == plain[0].model.state_dict().keys()
    assert ours[1].curve("train/loss") == pytest.approx(plain[1].curve("train/loss"), rel=1e-3)


def test_the_pace_and_the_operations_are_logged(cuda, tmp_path):
    _, run = on_card(tmp_path, chosen(TrainParams(epochs=2, batch=32)), small_trainings.blobs())
    assert run.last("train/gflop_per_sample") == pytest.approx((2 * 2 * 4 * 16 + 3 * 2 * 16 * 3) / 1e9)
    assert len(run.curve("train/tflops")) == 2


class Wide(nn.Module):
    """float64, its activations far larger than its weights: 32 MiB for each sample."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 64).double(), nn.Linear(64, 3).double()

    def forward(self, x):
        hidden = self.one(x).unsqueeze(1).expand(-1, 1 << 15, -1).contiguous().tanh()
        return self.two(hidden.mean(1))


def doubled(blobs):
    return {name: t.double() if t.is_floating_point() else t for name, t in blobs.items()}


@pytest.mark.parametrize("cap_mib", [4096, 1200])
def test_a_cap_costs_micro_batches_and_nothing_else(cuda, tmp_path, cap_mib):
    """Without a cap a batch of 64 takes some 6 GiB; both caps are those of smaller cards."""
    blobs, params = doubled(small_trainings.blobs()), TrainParams(epochs=2, batch=64, precision="fp32")
    score = lambda *_: {"accuracy": 0.0}
    whole, plain = on_card(tmp_path, chosen(params, build=Wide, evaluate=score), blobs)
    free()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(
        cap_mib * MIB / torch.cuda.get_device_properties(0).total_memory
    )
    capped, run = on_card(tmp_path, chosen(params, build=Wide, evaluate=score), blobs, budget_mib=cap_mib)
    assert run.out_of_memory >= 1
    assert run.micro_batch < 64
    assert torch.cuda.max_memory_reserved() <= cap_mib * MIB
    assert not any("starts over" in text for text in noted(run))  # the optimizer's state had its room
    assert run.curve("train/loss") == pytest.approx(plain.curve("train/loss"), rel=0, abs=1e-10)
    for a, b in zip(whole.model.parameters(), capped.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_room_is_held_for_the_optimizer_s_state(cuda):
    model = nn.Linear(1024, 1024).to(cuda)
    before = torch.cuda.memory_allocated()
    held = reserve_optimizer_state(lambda: torch.optim.AdamW(model.parameters()), list(model.parameters()))
    assert 8 * MIB <= torch.cuda.memory_allocated() - before <= 9 * MIB
    del held
    assert torch.cuda.memory_allocated() == before


def test_a_training_that_was_stopped_goes_on_where_it_was(cuda, tmp_path):
    from overnight.errors import Stopped

    blobs, params = small_trainings.blobs(), TrainParams(epochs=3, batch=32, checkpoint_s=0)
    adam = lambda model: torch.optim.AdamW(model.parameters(), lr=0.01)
    whole, _ = on_card(tmp_path, chosen(params, optimizer=adam, ema=0.9), blobs)
    first = RecordingRun(tmp_path, seed=3, device="cuda")
    first.checkpoints, first.should_stop = (
        tmp_path / "checkpoints",
        lambda: len(first.curve("train/loss")) >= 9,
    )
    with pytest.raises(Stopped):
        train(chosen(params, optimizer=adam, ema=0.9), first, blobs)
    second, run = on_card(
        tmp_path, chosen(params, optimizer=adam, ema=0.9), blobs, checkpoints=first.checkpoints
    )
    assert any("goes on after optimizer step 9 of 21" in text for text in noted(run))
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
