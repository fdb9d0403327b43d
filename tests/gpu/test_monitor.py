"""What a step uses while it holds a part of the card: told to the ledger, logged to the run, kept in the
card's timeline.
"""

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace

import pytest

from overnight.gpu import device_usage, timeline
from overnight.gpu.card import virtual
from overnight.gpu.lease import lease
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.monitor import Monitor, watch
from overnight.gpu.timeline import Point
from overnight.run import RecordingRun


@dataclass
class Own:
    """A process that says what it uses, as a MemoryLimit does."""

    use: float = 0.0
    peak: float = 0.0
    overhead_mib: int = 0

    def use_mib(self):
        return self.use + self.overhead_mib

    def peak_mib(self):
        return self.peak


class Dial:
    """A gauge that shows what it is set to."""

    def __init__(self, used_mib=0, problem=""):
        self.used, self.problem = used_mib, problem

    def used_mib(self, _card, _held):
        return self.used

    def programs(self, _card):
        return [device_usage.Program("ollama", 999_999_999, self.used)]

    def load_percent(self, _card):
        return None


@pytest.fixture
def card(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "cards"))
    return virtual(count=True)


@pytest.fixture
def run(tmp_path):
    return RecordingRun(tmp_path)


def test_the_ledger_is_told_what_a_holder_uses_when_that_changes(card, run):
    own = Own(use=10, peak=20, overhead_mib=600)
    with lease(1000, card) as held:
        said = []
        monitor = Monitor(run, card, replace(held, grant=Recorder(held.grant, said)), own, reread_every=1)
        monitor.sample()
        monitor.sample()
        own.use = 10.9  # not worth a word
        monitor.sample()
        assert said == [{"use_mib": 610.0, "peak_mib": 620.0}]
        own.use, own.peak = 300, 400
        monitor.sample()
        (request,) = device_usage.holders(card)
        assert (request.owner["use_mib"], request.owner["peak_mib"]) == (900, 1000)


class Recorder:
    """A grant that keeps what was told."""

    def __init__(self, grant, said):
        self.grant, self.said = grant, said

    def update(self, **facts):
        self.said.append(facts)
        self.grant.update(**facts)


def test_the_first_that_a_holder_uses_is_told_however_little(card, run):
    with lease(1000, card) as held:
        Monitor(run, card, held, Own(use=0.2, peak=0.2)).sample()
        assert device_usage.holders(card)[0].owner["peak_mib"] == 0.2


def test_a_holder_that_counts_nothing_says_nothing_and_counts_with_its_lease(card, run):
    with lease(1000, card) as held:
        monitor = Monitor(run, card, held, Own())
        monitor.sample()
        (request,) = device_usage.holders(card)
        assert "use_mib" not in request.owner
        assert monitor.summary()["device_peak_mib"] is None
        assert device_usage.reported_mib(request) == 1000


def test_the_most_since_the_last_report_is_logged(card, run):
    own = Own()
    with lease(1000, card, {"step": "train", "experiment": "x"}) as held:
        dial = Dial()
        monitor = Monitor(run, card, held, own, dial, reread_every=1)
        for own.use, own.peak, dial.used in (
            (100, 100, 100),
            (50, 700, 50),
            *3 * ((60, 700, 560),),
            (60, 700, 60),
        ):
            monitor.sample()
        monitor.report({"system/x": 1.0})
        assert run.last("system/card_own_mib") == 700  # between two looks, but its own peak knows
        assert run.last("system/card_used_mib") == 560
        assert run.last("system/card_other_processes_mib") == 500
        assert run.last("system/card_leased_mib") == 1000
        assert run.last("system/x") == 1.0
        monitor.sample()
        monitor.report({})
        assert run.last("system/card_own_mib") == 60
        first, second = timeline.read(card)
        assert (
            first.step,
            first.experiment,
            first.lease_mib,
            first.other_processes_mib,
            first.other_processes,
        ) == (
            "train",
            "x",
            1000,
            500,
            ("ollama",),
        )
        assert (second.other_processes_mib, second.other_processes) == (0, ())
        assert monitor.summary() == {"device_peak_mib": 560, "other_processes_peak_mib": 500}


def test_memory_that_a_neighbour_takes_is_not_foreign_once_it_says_so(card, run):
    with lease(1000, card) as held, Ledger(card.folder, card.budget_mib).acquire(2000) as neighbour:
        neighbour.update(use_mib=10)
        held.update(use_mib=10)
        dial = Dial(20)
        monitor = Monitor(run, card, held, None, dial)
        monitor.sample()
        dial.used = 1510  # it has taken 1490 more, and the ledger does not know yet
        monitor.sample()
        neighbour.update(use_mib=1500)
        assert monitor.summary()["other_processes_peak_mib"] is None  # too early to tell
        for _ in range(20):
            monitor.sample()
        assert monitor.summary()["other_processes_peak_mib"] == 0


def test_what_a_program_outside_keeps_is_foreign(card, run):
    with lease(1000, card) as held:
        dial, own = Dial(50), Own(use=50, peak=50)
        monitor = Monitor(run, card, held, own, dial)
        for own.use in range(50, 850, 10):  # it grows while the other program comes
            dial.used = int(own.use) + (300 if own.use > 200 else 0)
            own.peak = own.use
            monitor.sample()
        assert monitor.summary()["other_processes_peak_mib"] == 300


def test_a_card_that_does_not_answer_is_said_once(card, run):
    dial = Dial(problem="GPU is lost")
    with lease(1000, card) as held:
        monitor = Monitor(run, card, held, None, dial)
        monitor.sample()
        monitor.sample()
        dial.problem = ""
        monitor.sample()
        dial.problem = "GPU is lost"
        monitor.sample()
    (note,) = run.of("note")
    assert "GPU is lost" in note["text"]


def test_without_a_lease_the_card_is_not_looked_at(card, run):
    monitor = Monitor(run, card, None, None, Dial(500))
    monitor.sample()
    monitor.report({"system/x": 1.0})
    assert run.last("system/x") == 1.0
    assert not any(name.startswith("system/card_") for e in run.of("metrics") for name in e["values"])
    assert timeline.read(card) == []


def test_a_machine_without_a_card_has_no_charts_of_one(card, run):
    with lease(1000, card) as held:
        monitor = Monitor(run, virtual(), held, Own(use=10, peak=20))
        monitor.sample()
        monitor.report({"system/x": 1.0})
    assert {name for e in run.of("metrics") for name in e["values"]} == {"system/x"}


def test_a_short_step_leaves_its_figures_too(card, run):
    with lease(1000, card) as held, watch(run, card, held, Own(use=300, peak=300)):
        pass
    assert run.last("system/card_own_mib") == 300
    assert len(timeline.read(card)) == 2  # the grant, and the end


def test_it_looks_while_the_step_runs(card, run):
    looks = iter(range(1000))
    seen = threading.Event()

    class Counting(Own):
        def use_mib(self):
            if next(looks) == 3:
                seen.set()
            return 300.0

    with lease(1000, card) as held, watch(run, card, held, Counting(peak=300)) as monitor:
        assert seen.wait(60)
    assert monitor.cpu_s > 0


def test_a_driver_that_hangs_does_not_keep_the_step_from_its_end(card, run):
    hangs, go = threading.Event(), threading.Event()

    class Hanging(Dial):
        def used_mib(self, _card, _held):
            if threading.current_thread() is not threading.main_thread():
                hangs.set()
                go.wait()
            return self.used

    with lease(1000, card) as held, watch(run, card, held, Own(use=1, peak=1), Hanging(10), join_s=0.01):
        assert hangs.wait(60)
    assert any(thread.name == "monitor" for thread in threading.enumerate())  # which still hangs
    go.set()


def test_a_full_disk_does_not_end_the_watch(card, run):
    class Full(RecordingRun):
        def _emit(self, event):
            raise OSError(errno.ENOSPC, "No space left on device")

    with lease(1000, card) as held, watch(Full(run.folder), card, held, Own(use=300, peak=300)) as monitor:
        pass
    assert monitor.summary()["device_peak_mib"] is not None


# ------------------------------------------------------------ the timeline

POINT = Point(1.0, "x", "train", 1, 100, 100, 50.5, 60, 0, ("ollama",))


@pytest.fixture
def folder(card):
    card.folder.mkdir(parents=True)
    return card.folder


def test_a_point_comes_back_as_it_was(card, folder):
    timeline.append(card, POINT)
    timeline.append(card, replace(POINT, at=5.0))
    assert timeline.read(card) == [POINT, replace(POINT, at=5.0)]
    assert timeline.read(card, since=2.0) == [replace(POINT, at=5.0)]


def test_torn_and_foreign_lines_are_passed_over(card, folder):
    timeline.append(card, POINT)
    with (folder / "timeline.jsonl").open("ab") as file:
        file.write(
            b'{"at":2.0,"exper\n\xff\xfe\n[]\n7\n{}\n{"at":"soon"}\n\n'
            + json.dumps({"at": 3.0, "other": 1}).encode()
            + b"\n"
        )
    timeline.append(card, replace(POINT, at=4.0))
    assert [p.at for p in timeline.read(card)] == [1.0, 4.0]


def test_without_a_folder_there_is_nothing_to_read_and_nothing_is_written(card):
    timeline.append(card, POINT)
    assert timeline.read(card) == []


def test_the_timeline_is_bounded_and_keeps_the_younger_half(card, folder):
    big = replace(POINT, other_processes=("y" * 60_000,))
    for at in range(200):
        timeline.append(card, replace(big, at=float(at)))
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert sum(sizes) <= 2 * (timeline.LIMIT_BYTES + 61_000)
    times = [p.at for p in timeline.read(card)]
    assert times == [float(at) for at in range(200 - len(times), 200)]
    assert len(times) * 60_000 > timeline.LIMIT_BYTES


WRITE = """
import sys
from overnight.gpu import timeline
from overnight.gpu.card import virtual
for n in range(300):
    timeline.append(virtual(), timeline.Point(float(n), sys.argv[1], "z" * 9000, 1, 1, 1, 1.0, 1, 0))
"""


def test_several_writers_lose_nothing_while_the_file_is_turned_over(card, folder):
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(n)], env=os.environ) for n in range(2)]
    assert [w.wait() for w in writers] == [0, 0]
    points = timeline.read(card)
    assert len(points) == 600  # 5.4 MB: turned over once
    assert (folder / "timeline.1.jsonl").exists()
    assert all(
        [p.at for p in points if p.experiment == name] == [float(n) for n in range(300)] for name in "01"
    )
