"""The paging detector under recorded step times: of trainings that are well, and of a card that pages."""

import json
from pathlib import Path

import pytest

from overnight.errors import OutOfMemory
from overnight.gpu import out_of_memory
from overnight.run import RecordingRun
from overnight.training import throughput
from overnight.training.recipe import TrainParams
from overnight.training.throughput import PagingDetector
from tests.support import small_trainings
from tests.support.small_trainings import recipe, train_by_hand

TIMES = json.loads(Path(__file__).with_name("step_times.json").read_text())


class Device:
    """A card with a queue of launches: the host waits for it when told to, or when 1000 ms are queued."""

    def __init__(self):
        self.host_s = self.card_s = 0.0

    def clock(self):
        return self.host_s

    def synchronize(self):
        self.host_s = max(self.host_s, self.card_s)

    def step(self, launch_s, compute_s):
        self.host_s += launch_s
        self.card_s = max(self.card_s, self.host_s) + compute_s
        self.host_s = max(self.host_s, self.card_s - 1.0)


def alarms(name, full=True):
    """The numbers of the steps after which the detector spoke."""
    device = Device()
    detector = PagingDetector(lambda: full, device.synchronize, device.clock)
    found, number = [], 0
    for part in TIMES[name]:
        if part.get("evaluation_ms"):
            detector.pause()
            device.host_s += part["evaluation_ms"] / 1e3
        for index in range(part.get("steps", 0)):
            milliseconds = part["ms"][index % len(part["ms"])]
            device.step(part.get("launch_ms", 1) / 1e3, milliseconds / 1e3)
            number += 1
            if detector.step(part.get("speed", "")):
                found.append(number)
    return found


@pytest.mark.parametrize("name", [name for name in TIMES if name.startswith("well: ")])
def test_a_training_that_is_well_is_left_alone(name):
    assert alarms(name) == []


@pytest.mark.parametrize("name", [name for name in TIMES if name.startswith("pages: ")])
def test_paging_is_seen_within_forty_steps(name):
    begins = sum(part.get("steps", 0) for part in TIMES[name] if not part.get("pages"))
    found = alarms(name)
    assert begins < found[0] <= begins + 4 * throughput.WINDOW_STEPS
    assert alarms(name, full=False) == []


class Slow:
    """A clock that goes on by `took_s` at each window, and a card that needs no waiting."""

    def __init__(self, usual, slow):
        self.left, self.now = [*usual, *[slow] * 1000], 0.0

    def __call__(self):
        self.now += self.left.pop(0)
        return self.now


def detected(tmp_path, micro_batch):
    """The run of a training on a card that pages after eight windows."""
    run, params = RecordingRun(tmp_path), TrainParams(epochs=60, batch=32, micro_batch=micro_batch)

    def watched(accumulation):
        clock = Slow([0.1] * 8, 9.0)
        accumulation.paging = PagingDetector(lambda: True, lambda: None, clock)

    train_by_hand(recipe(params), run, small_trainings.blobs(), watched)
    return run


def test_paging_shrinks_first_and_the_baseline_begins_anew(tmp_path):
    """After the first jump the times stay as slow, which is then the usual duration."""
    run = detected(tmp_path, 32)
    assert ["moves memory to the host" in note["text"] for note in run.of("note")] == [True]
    assert (run.micro_batch, run.out_of_memory) == (16, 1)


def test_paging_ends_a_training_that_cannot_take_less(tmp_path):
    with pytest.raises(OutOfMemory, match="moves memory to the host instead of refusing it"):
        detected(tmp_path, 1)
    assert OutOfMemory.child_code == 11


def test_windows_is_recognised_by_its_kernel():
    assert out_of_memory.on_wsl("5.15.153.1-microsoft-standard-WSL2")
    assert not out_of_memory.on_wsl("6.8.0-45-generic")
