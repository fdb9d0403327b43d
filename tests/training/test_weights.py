"""A training keeps what is trained; what is frozen is built again, and a changed one is not taken for it."""

import pytest
import torch
from torch import nn

from bench._bases import KINDS, build, points, recipe
from overnight.errors import BadInput
from overnight.run import RecordingRun
from overnight.training.loop import train
from overnight.training.recipe import TrainParams
from overnight.training.snapshot import StepSnapshot
from overnight.training.weights import PACKED, TrainedWeights
from tests.support.small_trainings import Killed, killed_at

PARAMS = TrainParams(epochs=2, batch=16, checkpoint_s=0)  # 6 steps an epoch
CPU = torch.device("cpu")


def attempt(folder):
    run = RecordingRun(folder, seed=3)
    run.checkpoints = folder / "checkpoints"
    return run


def kill(folder, kind, step):
    """The sizes of the checkpoints of an attempt that is killed inside an optimizer step."""
    with pytest.raises(Killed):
        train(recipe(kind, PARAMS, killed_at(step)), attempt(folder), points())
    return [path.stat().st_size for path in folder.rglob("*.pt")]


def trained(model):
    return TrainedWeights(model).live()


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_frozen_base_it_ends_bit_equal_and_keeps_what_is_trained(tmp_path, kind):
    whole_run = RecordingRun(tmp_path, seed=3)
    whole = train(recipe(kind, PARAMS), whole_run, points())
    assert whole_run.curve("train/loss")[-1] < whole_run.curve("train/loss")[0]
    sizes = kill(tmp_path, kind, 9)
    run = attempt(tmp_path)
    resumed = train(recipe(kind, PARAMS), run, points())
    assert "after optimizer step 8 of 12" in run.of("note")[0]["text"]
    ours, theirs = trained(resumed.model), trained(whole.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.history == whole.history
    weights = sum(p.nbytes for p in whole.model.parameters() if p.requires_grad)
    assert max(sizes) <= 3 * 3 * weights + (64 << 10)  # 3 x (weights and two moments) + 64 KiB


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_on_another_base_is_refused(tmp_path, kind):
    kill(tmp_path, kind, 4)
    run = attempt(tmp_path)
    train(recipe(kind, PARAMS, seed=2), run, points())
    assert "frozen weights was" in run.of("log")[0]["text"]
    assert run.of("note") == []


def test_batch_norm_of_a_frozen_backbone_is_kept_and_its_weights_are_not():
    weights = TrainedWeights(build("conv"))
    names = weights.live().keys()
    assert weights.trainable.keys() == {"1.weight", "1.bias"}
    assert "0.2.running_mean" in names
    assert "0.1.weight" not in names


class Packed(nn.Module):
    """A frozen base of integers in a buffer, which may count what it has seen in another one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("packed", torch.ones(PACKED, dtype=torch.uint8))
        self.register_buffer("seen", torch.zeros(PACKED // 4, dtype=torch.int32))
        self.head = nn.Linear(4, 3)


def test_large_integers_are_frozen_until_something_writes_to_them():
    model = Packed()
    weights = TrainedWeights(model)
    assert weights.live().keys() == {"head.weight", "head.bias"}
    model.seen[5] += 1
    assert weights.live().keys() == {"head.weight", "head.bias", "seen"}
    model.packed = model.packed + 1
    assert "packed" in weights.live()
    kept, other = weights.copied(), Packed()
    TrainedWeights(other).load(kept)
    assert other.seen[5] == 1
    assert torch.equal(other.packed, model.packed)


def test_a_large_integer_buffer_is_undone_from_its_second_step_on():
    model = Packed()
    snapshot = StepSnapshot(TrainedWeights(model), CPU)
    snapshot.save()
    model.seen[5] += 1
    with pytest.raises(BadInput, match="written for the first time to a buffer of integers"):
        snapshot.restore()
    snapshot.save()
    model.seen[5] += 1
    snapshot.restore()
    assert model.seen[5] == 1
