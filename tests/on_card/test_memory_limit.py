"""On a machine with a CUDA card: no process exceeds its lease, and all of it comes back (make test-gpu)."""

import importlib.util
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight.gpu import cuda_context
from overnight.gpu.card import Card
from overnight.gpu.device_usage import device_of
from overnight.gpu.ledger.ledger import Ledger
from tests.support.steps_leased import events, notes, result, start

pytestmark = pytest.mark.gpu
PATIENCE_S = 120
SLACK_MIB = 16


class Pipes:
    """What a step says to the test, and the test to the step."""

    def __init__(self) -> None:
        self.said, self.say = os.pipe()
        self.go, self.gone = os.pipe()

    def hear(self, folder: Path) -> None:
        assert select.select([self.said], [], [], PATIENCE_S)[0], (folder / "log.txt").read_text()
        os.read(self.said, 1)

    def send(self) -> None:
        os.write(self.gone, b"x")


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    for end in (made.said, made.say, made.go, made.gone):
        os.close(end)


def used(card: Card) -> int:
    return device_of(card).used_mib(card, [])


def taken(card: Card, before: int, process: "subprocess.Popen[bytes]", pipes: Pipes, folder: Path) -> int:
    """What the card holds more than before at the point where the step waits; the step then ends."""
    pipes.hear(folder)
    found = used(card) - before
    pipes.send()
    process.wait(PATIENCE_S)
    return found


def test_a_step_that_wants_more_than_its_lease_fails_alone(card, checkout, tmp_path, pipes):
    beside = start(tmp_path / "beside", card, "neighbour", 1500, SAY=pipes.say, GO=pipes.go)
    pipes.hear(tmp_path / "beside")
    hog = start(tmp_path / "hog", card, "hog", 2048, mib=3072)
    assert hog.wait(PATIENCE_S) == 11
    assert beside.poll() is None
    pipes.send()
    assert beside.wait(PATIENCE_S) == 0
    refused = result(tmp_path / "hog")
    assert refused.cap_mib == 2048 - refused.overhead_mib
    assert refused.peak_mib <= refused.cap_mib
    assert refused.out_of_memory
    assert "out of memory" in refused.error.lower()
    assert "holds 2048 MiB" in refused.error
    assert len([e for e in events(tmp_path / "beside", "metrics") if "loss" in e["values"]]) == 10
    assert not result(tmp_path / "beside").out_of_memory


@pytest.mark.parametrize("mib", [2048, 11264], ids=["2 GiB", "a card of 12 GB"])
def test_a_step_that_takes_all_it_can_stays_inside_its_lease(card, checkout, tmp_path, pipes, mib):
    if card.budget_mib < mib:
        pytest.skip(f"the card grants {card.budget_mib} MiB at most")
    before = used(card)
    expands = cuda_context.can_expand(card)  # under WSL2 not before a step has tried
    process = start(tmp_path / "fill", card, "fill", mib, mib=64, SAY=pipes.say, GO=pipes.go)
    assert taken(card, before, process, pipes, tmp_path / "fill") <= mib + SLACK_MIB
    assert process.returncode == 0, result(tmp_path / "fill").error
    got, expandable = notes(tmp_path / "fill")
    found = result(tmp_path / "fill")
    assert found.cap_mib - 2 * 64 <= int(got) <= found.cap_mib
    assert found.peak_mib <= found.cap_mib
    assert found.hit_limit
    assert expandable == str(expands)


def test_the_context_is_measured(card, checkout, tmp_path):
    assert cuda_context.overhead(card) == cuda_context.UNMEASURED_MIB
    for number in range(cuda_context.TIMES):
        assert start(tmp_path / f"{number}", card, "wise", 2048).wait(PATIENCE_S) == 0
    low, high = cuda_context.PLAUSIBLE_MIB
    measured = cuda_context.measured(card)
    assert len(measured) == cuda_context.TIMES
    assert all(low <= mib <= high for mib in measured)
    assert max(measured) - min(measured) <= 64


def test_all_of_it_comes_back(card, checkout, tmp_path, pipes):
    before = used(card)
    process = start(tmp_path / "fill", card, "fill", 2048, mib=64, SAY=pipes.say, GO=pipes.go)
    assert taken(card, before, process, pipes, tmp_path / "fill") > 1024
    end = time.monotonic() + 2
    while used(card) > before + SLACK_MIB and time.monotonic() < end:
        time.sleep(0.05)
    assert used(card) <= before + SLACK_MIB


def test_who_waits_has_no_context(card, checkout, tmp_path):
    ledger = Ledger(card.folder, card.budget_mib)
    before = used(card)
    with ledger.acquire(card.budget_mib, {"step": "the test"}):
        process = start(tmp_path / "wise", card, "wise", 2048)
        while not any(r.pid == process.pid for r in ledger.requests()):
            assert process.poll() is None
            time.sleep(0.05)
        assert used(card) <= before + SLACK_MIB
        assert process.pid not in {p.pid for p in device_of(card).programs(card)}
    assert process.wait(PATIENCE_S) == 0


def test_rapids_stays_inside_too(card, checkout, tmp_path, pipes):
    if importlib.util.find_spec("rmm") is None:
        pytest.skip("RAPIDS is not installed here")
    before = used(card)
    process = start(tmp_path / "rapids", card, "rapids", 2048, mib=256, SAY=pipes.say, GO=pipes.go)
    assert (
        taken(card, before, process, pipes, tmp_path / "rapids") <= 1024 + SLACK_MIB
    )  # the context and 256 MiB, no pool of half the card
    assert process.returncode == 11
    assert notes(tmp_path / "rapids") == ["256"]
    assert result(tmp_path / "rapids").out_of_memory
    assert result(tmp_path / "rapids").uncapped == ()
