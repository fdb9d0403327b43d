"""A training that silent paging makes slow is stopped, with the reason."""

import pytest
import torch

from overnight.errors import OutOfMemory
from overnight.run import RecordingRun
from overnight.training.recipe import TrainParams
from overnight.training.throughput import LEAST_STEPS, SLOW_STEPS, PagingDetector, pages_silently
from tests.support import small_trainings
from tests.support.small_trainings import recipe, train_by_hand


class Clock:
    """Time goes on within steps, by what each is said to take; it is read at their begin and end."""

    def __init__(self, *took):
        self.left, self.now, self.runs = list(took), 0.0, False

    def __call__(self):
        self.now += self.left.pop(0) if self.runs else 0.0
        self.runs = not self.runs
        return self.now


def reasons(took, full=lambda: True):
    detector = PagingDetector(full)
    return [detector.step(took_s) for took_s in took]


def test_a_jump_in_step_time_with_the_card_full_is_a_reason():
    usual, slow = [0.1] * 30, [0.5] * SLOW_STEPS
    found = reasons(usual + slow)
    assert not any(found[:-1])
    assert "5.0 times as long as usual (500 ms, before 100)" in found[-1]


@pytest.mark.parametrize("took", [
    [0.1] * 30 + [0.25] * 20,  # slower, but not so much
    [0.1] * 30 + [0.9] * (SLOW_STEPS - 1) + [0.1] * 5,  # for a moment
    [0.1] * 15 + ([0.9] * 2 + [0.1]) * 9,  # now and then
    [0.9] * 4 + [0.1] * 40,  # the first steps choose kernels
    [0.1] * (LEAST_STEPS - 2) + [0.9] * SLOW_STEPS,  # nothing is usual yet
])  # fmt: skip
def test_other_slowness_is_none(took):
    assert not any(reasons(took))


def test_slow_steps_with_room_on_the_card_are_none():
    asked = []
    assert not any(reasons([0.1] * 30 + [0.5] * 10, lambda: asked.append(1) is not None))
    assert len(asked) == 10 - SLOW_STEPS + 1  # and only then the card is asked


def test_what_slowness_came_first_does_not_become_usual():
    found = reasons([0.1] * 30 + [0.5] * 100, lambda: False)
    assert not any(found)
    full = iter([False] * 60 + [True])
    assert any(reasons([0.1] * 30 + [0.5] * 100, lambda: next(full, True)))


def test_windows_is_recognised_by_its_kernel(tmp_path):
    wsl, linux = tmp_path / "wsl", tmp_path / "linux"
    wsl.write_text("Linux version 5.15.153.1-microsoft-standard-WSL2 (root@buildkitsandbox) #1 SMP\n")
    linux.write_text("Linux version 6.8.0-45-generic (buildd@lcy02) #45-Ubuntu SMP\n")
    assert pages_silently(wsl)
    assert not pages_silently(linux)
    assert not pages_silently(tmp_path / "none")


def test_the_training_ends_as_out_of_memory_so_that_more_is_asked_next_time(tmp_path):
    run, params = RecordingRun(tmp_path), TrainParams(epochs=20, batch=32)

    def slow(accumulation):
        accumulation.paging = PagingDetector(lambda: True)
        accumulation.clock = Clock(*[0.1] * 40, *[0.9] * 60)

    with pytest.raises(OutOfMemory, match="moves memory to the host instead of refusing it"):
        train_by_hand(recipe(params), run, small_trainings.blobs(), slow)
    assert OutOfMemory.child_code == 11
    assert run.out_of_memory == 1


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_the_loss_scale_of_fp16_survives_what_is_done_again(tmp_path, phase):
    """Bit for bit, without splitting the batch; the scale shrinks, as the first is too large."""

    def trained(at):
        calls, whole = [], {"micro_batches": lambda batch, _size: iter([batch])}

        def fails():
            calls.append(1)
            if len(calls) in at:
                raise torch.OutOfMemoryError("made up")

        def loss(model, batch):
            if phase == "forward":
                fails()
            total, counted = recipe(params).loss(model, batch)
            if phase == "backward" and total.requires_grad:
                total.register_hook(lambda _gradient: fails())
            return 1e3 * total, counted

        params, run = TrainParams(epochs=3, batch=32, precision="fp16"), RecordingRun(tmp_path, seed=3)
        chosen = recipe(params, loss=loss, **whole)
        return train_by_hand(chosen, run, small_trainings.blobs(), lambda _accumulation: None), run

    (plain, _), (broken, run) = trained(()), trained((1, 4, 9))
    assert run.out_of_memory == 3
    assert plain.precision.scaler.get_scale() < 65536
    assert broken.precision.scaler.state_dict() == plain.precision.scaler.state_dict()
    assert all(
        torch.equal(a, b) for a, b in zip(plain.model.parameters(), broken.model.parameters(), strict=True)
    )
