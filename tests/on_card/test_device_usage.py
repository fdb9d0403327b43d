"""On a machine with a CUDA card: what other programs use is seen, waited for, and gone when they end (make
test-gpu).
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from overnight.gpu import device_usage, messages
from overnight.gpu.lease import lease

pytestmark = pytest.mark.gpu
PATIENCE_S = 120
OTHER_PROCESSES_MIB = 1500
PROGRAM = f"""
import time, torch
kept = torch.zeros({OTHER_PROCESSES_MIB} << 20, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("there", flush=True)
time.sleep(600)
"""


@contextmanager
def program() -> "Iterator[subprocess.Popen[str]]":
    """Somebody who knows nothing of leases."""
    started = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "there\n"
        yield started
    finally:
        started.kill()
        started.wait()


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_another_program_is_seen_while_it_is_there(card):
    before = device_usage.other_processes_mib(card, [])
    with program():
        assert (
            OTHER_PROCESSES_MIB
            <= device_usage.other_processes_mib(card, []) - before
            <= OTHER_PROCESSES_MIB + 1600
        )  # with its context
    until(lambda: abs(device_usage.other_processes_mib(card, []) - before) <= 16)


def test_a_step_waits_for_another_program_and_starts_when_it_ends(card):
    free = card.total_mib - card.reserved_mib - device_usage.other_processes_mib(card, [])
    tight = card.model_copy(update={"budget_mib": free - 256})
    said = []
    with program() as other:

        def on_wait(ahead, overuse_mib):
            said.append(messages.waiting(tight, tight.budget_mib, ahead, overuse_mib))
            other.kill()

        with lease(tight.budget_mib, tight, on_wait=on_wait) as granted:
            assert granted.mib == tight.budget_mib
    assert "not ours" in said[0]


def test_a_step_that_fits_beside_another_program_starts_at_once(card):
    with program(), lease(512, card, on_wait=lambda *_: pytest.fail("it waited")) as granted:
        assert granted.mib == 512


def test_with_the_policy_to_shrink_a_step_takes_what_is_left(card):
    free = card.total_mib - card.reserved_mib - device_usage.other_processes_mib(card, [])
    tight = card.model_copy(update={"budget_mib": free - 256, "policy": "shrink"})
    with program(), lease(tight.budget_mib, tight, smaller=[free - 512, 700]) as granted:
        assert granted.mib == 700
