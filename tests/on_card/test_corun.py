"""On a machine with a CUDA card: small steps beside a training, all of them inside their leases (make
test-gpu).
"""

import os
import time

import pytest

from overnight.gpu.card import Card
from overnight.gpu.device_usage import device_of
from tests.support.steps_mixed import MIX, play

pytestmark = pytest.mark.gpu
ROUNDS = {"convolve": 400, "pass_messages": 1500, "act": 150}  # some seconds each on a card of today
SLACK_MIB = 16
FASTER = 1.5  # than one at a time


def test_small_steps_beside_a_training_are_faster_than_one_at_a_time(card: Card, checkout, tmp_path):
    """The one test that compares durations: a ratio of two of the same run, and what sharing the card is for."""
    if card.budget_mib < sum(mib for _, mib in MIX):
        pytest.skip(f"the card grants {card.budget_mib} MiB, the mix needs {sum(mib for _, mib in MIX)}")
    if (os.cpu_count() or 1) < len(MIX):
        pytest.skip(f"{os.cpu_count()} cores: the small steps need one each")
    before = device_of(card).used_mib(card, [])
    single_s, alone = play(tmp_path / "single", card, ROUNDS, together=False)
    together_s, beside = play(tmp_path / "together", card, ROUNDS, together=True)
    assert [r.code for r in alone + beside] == [0] * 2 * len(MIX), [r.error for r in alone + beside]
    assert not any(r.out_of_memory or r.hit_limit for r in alone + beside)
    assert all(r.peak_mib <= r.cap_mib for r in beside)
    print(f"one at a time {single_s:.1f} s, together {together_s:.1f} s: {single_s / together_s:.2f} x")
    assert single_s / together_s >= FASTER
    end = time.monotonic() + 2
    while device_of(card).used_mib(card, []) > before + SLACK_MIB and time.monotonic() < end:
        time.sleep(0.05)
    assert device_of(card).used_mib(card, []) <= before + SLACK_MIB
