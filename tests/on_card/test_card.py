"""On a machine with a CUDA card: it is found, and a net trains on it (make test-gpu)."""

import pytest

from overnight.data.dataset import load_entry
from overnight.run import RecordingRun

pytestmark = pytest.mark.gpu


def test_the_card_is_real_and_keeps_a_reserve(card):
    assert not card.virtual
    assert 0 < card.budget_mib < card.total_mib
    assert card.driver


def test_a_net_trains_on_the_card(tmp_path):
    import torch

    from tasks.vision.cnn import CnnParams, train_cnn
    from tasks.vision.load import ImageParams, load_images

    images = load_images.body(RecordingRun(tmp_path / "images"), ImageParams(), load_entry("digits"))
    run = RecordingRun(tmp_path / "cnn", device="cuda")
    torch.cuda.reset_peak_memory_stats()
    train_cnn.body(run, CnnParams(epochs=8, batch=64), images)
    assert run.last("test/accuracy") > 0.9
    assert torch.cuda.max_memory_allocated() > 0
