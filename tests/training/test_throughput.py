"""The loss scale of fp16, whatever runs out of memory."""

import pytest
import torch

from overnight.run import RecordingRun
from overnight.training.recipe import TrainParams
from tests.support import small_trainings
from tests.support.small_trainings import recipe, train_by_hand


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
