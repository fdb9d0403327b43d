"""The cap of a lease: what a process may take, what happens at the edge, and what it costs to have a CUDA
context.
"""

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overnight.errors import DoesNotFit, OutOfMemory, ServiceError
from overnight.gpu import cuda_context, memory_limit, rmm
from overnight.gpu.card import Card
from overnight.gpu.device_usage import Program
from overnight.gpu.memory_limit import MemoryLimit, ProgramUse
from overnight.processes import STEP_MARK
from tests.support.own_files import own_files
from tests.support.steps_leased import events, losses, notes, result, start

MIB = 1 << 20
VIRTUAL = Card(uuid="virtual", name="virtual", total_mib=4096, budget_mib=4096, count=True)
REAL = Card(
    uuid="GPU-1", name="NVIDIA GeForce RTX 4070 Ti", total_mib=12282, budget_mib=11258, driver="610.74"
)


@dataclass
class Lease:
    mib: int


class Device:
    """What torch.cuda is asked for, on a card of 12 GB."""

    def __init__(self, available: bool = True) -> None:
        self.fractions: list[float] = []
        self.available, self.reserved, self.peak, self.ooms = available, 0, 0, 0

    def is_available(self) -> bool:
        return self.available

    def is_initialized(self) -> bool:
        return True

    def get_device_properties(self, _index: int) -> Any:
        return SimpleNamespace(total_memory=12000 * MIB)

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        assert index == 0
        self.fractions.append(fraction)

    def empty_cache(self) -> None:
        self.reserved = 0

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.reserved

    def memory_reserved(self, _index: int) -> int:
        return self.reserved

    def max_memory_reserved(self, _index: int) -> int:
        return self.peak

    def memory_stats(self, _index: int) -> dict[str, int]:
        return {"num_ooms": self.ooms}


class Whole:
    """A whole card's use: 900 MiB of others, then also a context."""

    def __init__(self, *costs: int) -> None:
        self.costs, self.asked = costs, 0

    def __call__(self) -> int:
        self.asked += 1
        return 900 + sum(self.costs[: self.asked // 2])


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "cards"))
    for name in ("GPU-1", "virtual"):
        (tmp_path / "cards" / name).mkdir(parents=True)


# ------------------------------------------------------------ on the virtual card, in children


def test_a_step_that_wants_more_than_its_lease_fails_alone(checkout, tmp_path):
    say_read, say = os.pipe()
    go, go_write = os.pipe()
    beside = start(tmp_path / "beside", VIRTUAL, "neighbour", 100, SAY=say, GO=go)
    assert select.select([say_read], [], [], 100)[0], (tmp_path / "beside" / "log.txt").read_text()
    hog = start(tmp_path / "hog", VIRTUAL, "hog", 200, mib=300)
    assert hog.wait(100) == 11
    assert beside.poll() is None
    os.write(go_write, b"x")
    assert beside.wait(100) == 0
    for pipe in (say_read, say, go, go_write):
        os.close(pipe)

    refused, fine = result(tmp_path / "hog"), result(tmp_path / "beside")
    for part in (
        "280.0 MiB were asked for",
        "20.0 of 200.0 MiB are in use",
        "holds 200 MiB",
        "20 MiB at most",
        "micro_batch",
    ):
        assert part in refused.error
    assert (refused.lease_mib, refused.cap_mib, refused.overhead_mib) == (200, 200, 0)
    assert refused.peak_mib == pytest.approx(20, abs=0.1)
    assert refused.hit_limit
    assert refused.out_of_memory
    assert notes(tmp_path / "hog") == ["200 cpu ''"]
    assert [
        e["values"]["loss"] for e in events(tmp_path / "beside", "metrics") if "loss" in e["values"]
    ] == losses(10)
    assert not fine.hit_limit
    assert 0 < fine.peak_mib < 1


def test_out_of_memory_that_a_step_overcomes_is_reported(checkout, tmp_path):
    assert start(tmp_path / "wise", VIRTUAL, "wise", 100, mib=150).wait(100) == 0
    assert notes(tmp_path / "wise") == ["not 150 MiB"]
    found = result(tmp_path / "wise")
    assert found.out_of_memory
    assert found.hit_limit
    assert found.peak_mib == 75


def twelve_mib() -> None:
    import torch

    held = torch.zeros(2 << 20)
    torch.zeros(1 << 20)
    held.sum()


def test_the_message_says_what_to_do():
    cap = memory_limit.apply(10, VIRTUAL)
    with (
        pytest.raises(
            OutOfMemory, match=r"4\.0 MiB were asked for, 8\.0 of 10\.0 .*10 MiB.*8 MiB at most.*micro_batch"
        ),
        cap.body(),
    ):
        twelve_mib()
    with pytest.raises(ValueError, match="other"), cap.body():
        raise ValueError("other")
    with pytest.raises(MemoryError), cap.body():  # the host's
        raise MemoryError


def test_without_counting_nothing_is_capped_or_claimed():
    cap = memory_limit.apply(1, VIRTUAL.model_copy(update={"count": False}))
    import torch

    with cap.body():
        torch.zeros(2 << 20)
    assert cap.summary() == {
        "cap_mib": 1, "overhead_mib": 0, "peak_mib": None, "hit_limit": False, "out_of_memory": False, "uncapped": (),
    }  # fmt: skip


# ------------------------------------------------------------ before torch is loaded


def test_a_process_sees_its_card_alone():
    for card, leased, seen in ((REAL, True, "GPU-1"), (REAL, False, ""), (VIRTUAL, True, "")):
        environ = {"CUDA_VISIBLE_DEVICES": "3"}
        memory_limit.prepare(card, leased, environ, kernel="6.8.0-generic")
        assert environ == {
            "CUDA_VISIBLE_DEVICES": seen, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        }  # fmt: skip


def test_what_the_user_says_of_the_allocator_stands():
    environ = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
    memory_limit.prepare(REAL, True, environ, "6.8")
    assert environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64,expandable_segments:True"
    environ = {"PYTORCH_ALLOC_CONF": "expandable_segments:False"}
    memory_limit.prepare(REAL, True, environ, "6.8")
    assert environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:False"


def test_no_context_is_made_before_the_lease(checkout, tmp_path):
    """Importing every task, the child and the caps initialises nothing, neither does asking whether there is
    CUDA.
    """
    root = Path(memory_limit.__file__).parents[2]
    modules = sorted(
        ".".join(p.relative_to(root).with_suffix("").parts)
        for p in own_files("tasks/*.py")
        if p.name != "__init__.py"
    )
    script = (
        "import importlib, os, sys\nimport overnight.orchestration.child\nfrom overnight.gpu import memory_limit\n"
        "assert 'torch' not in sys.modules\nfrom overnight.gpu.card import Card\n"
        f"memory_limit.prepare(Card.model_validate_json({REAL.model_dump_json()!r}), True)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import torch\ntorch.cuda.is_available()\n"
        "print(torch.cuda.is_initialized(), torch._C._cuda_isInBadFork(), os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "False", "GPU-1"], done.stderr


# ------------------------------------------------------------ on a CUDA card, played


def test_the_allocator_gets_the_lease_without_the_context():
    device = Device()
    cap = memory_limit.apply(4000, REAL, device, Whole(500), lambda: 0)
    assert (cap.lease_mib, cap.overhead_mib, cap.cap_mib) == (4000, 500, 3500)
    assert device.fractions == [
        pytest.approx(3400 / 12000),
        pytest.approx(3500 / 12000),
    ]  # 600 MiB until it was measured
    device.reserved = device.peak = 3000 * MIB
    assert (cap.use_mib(), cap.peak_mib(), cap.hit_limit) == (3500, 3000, False)
    device.reserved, device.peak = 0, 3400 * MIB
    assert (cap.use_mib(), cap.peak_mib(), cap.hit_limit, cap.out_of_memory) == (500, 3400, True, False)
    device.peak, device.ooms = 0, 1
    assert cap.hit_limit
    assert cap.out_of_memory


def test_the_context_is_measured_until_it_is_known():
    whole = Whole(480, 520, 3000, 500, 900)
    assert cuda_context.overhead(REAL) == 600
    known = [memory_limit.apply(4000, REAL, Device(), whole, lambda: 20 * MIB).overhead_mib for _ in range(5)]
    assert known == [460, 500, 500, 480, 480]  # 3000 is not plausible; after three there is no more measuring
    assert whole.asked == 8
    assert cuda_context.overhead(REAL.model_copy(update={"driver": "620.1"})) == 600
    assert cuda_context.overhead(VIRTUAL) == 0


@pytest.mark.parametrize("text", ["", "[]", '{"', "{KEY: 500}", '{KEY: ["x", null]}', "{KEY: {}}"])
def test_a_damaged_record_of_the_context_is_none(text):
    (REAL.folder / "overhead.json").write_text(text.replace("KEY", json.dumps(cuda_context._key(REAL))))
    assert cuda_context.overhead(REAL) == 600
    assert memory_limit.apply(4000, REAL, Device(), Whole(500), lambda: 0).overhead_mib == 500


def test_a_lease_that_the_context_eats_is_refused():
    with pytest.raises(DoesNotFit, match="600 MiB"):
        memory_limit.apply(600, REAL, Device(), Whole(500), lambda: 0)


def test_a_card_that_torch_cannot_use_is_an_error():
    with pytest.raises(ServiceError, match="doctor"):
        memory_limit.apply(4000, REAL, Device(available=False), Whole(500), lambda: 0)


def test_what_may_take_memory_past_the_cap_is_named():
    loaded = {"torch": 0, "numba": 0, "cupy": 0, "jax": 0, "rmm": 0, "cudf": 0}
    assert MemoryLimit(10, 10, modules=loaded).uncapped() == ["cupy", "jax", "rmm"]  # no limit on RMM was set
    assert MemoryLimit(10, 10).uncapped() == []


class Mr:
    """What rmm.mr has, as far as it is used."""

    class CudaAsyncMemoryResource:
        def __init__(self, release_threshold: int) -> None:
            assert release_threshold == 0

    class StatisticsResourceAdaptor:
        allocation_counts = SimpleNamespace(current_bytes=3, peak_bytes=7)

        def __init__(self, _upstream: Any) -> None: ...

    class LimitingResourceAdaptor:
        def __init__(self, upstream: Any, limit: int) -> None:
            self.get_upstream, self.limit = (lambda: upstream), limit

    def __init__(self) -> None:
        self.current: Any = None

    def set_current_device_resource(self, resource: Any) -> None:
        self.current = resource

    def get_current_device_resource(self) -> Any:
        return self.current


def test_rapids_and_torch_share_one_cap():
    mr, device = Mr(), Device()
    assert rmm.held(mr) == (0, 0)
    device.empty_cache = lambda: None
    device.reserved = 30 * MIB
    limited = rmm.limit_memory(1000, mr, SimpleNamespace(cuda=device))
    assert limited.limit == 970 * MIB
    assert device.fractions == [pytest.approx(30 / 12000)]
    assert rmm.held(mr) == (3, 7)
    assert rmm.limit_memory(1000, mr, SimpleNamespace(cuda=device)) is limited


class Listing:
    """A card that lists these programs, or none of them where it does not know which they are."""

    problem = ""

    def __init__(self, used_mib: int = 0) -> None:
        self.used = used_mib
        self.listed: list[Program] = []

    def used_mib(self, _card: Card, _held: Any) -> int:
        return self.used

    def programs(self, _card: Card) -> list[Program]:
        return self.listed

    def load_percent(self, _card: Card) -> None:
        return None


@pytest.fixture
def program(monkeypatch):
    """A process that a step has started, and one of somebody else."""
    monkeypatch.setenv(STEP_MARK, "this step")
    command = [sys.executable, "-c", "print(flush=True); input()"]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={STEP_MARK: mark})
        for mark in ("this step", "another step")
    ]
    for process in both:
        process.stdout.readline()
    yield both
    for process in both:
        process.communicate()


def test_a_program_is_watched_by_the_processes_that_its_step_started(program, tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    card = Listing(used_mib=900)
    use = ProgramUse(2000, REAL, card)
    own, other = (
        Program("python", process.pid, mib) for process, mib in zip(program, (1500, 700), strict=True)
    )
    card.listed = [own, other, Program("Xorg", 1, 300)]
    card.used = 9000
    assert (use.use_mib(), use.overrun(), use.hit_limit) == (1500, "", False)
    card.listed = [Program("python", own.pid, 2600), other]
    use.use_mib()
    card.listed = []
    assert use.overrun().startswith(
        "took 2,600 MiB of the card and had asked for 2,000: nothing caps a program"
    )
    found = use.summary()
    assert found["peak_mib"] + found["overhead_mib"] == found["device_peak_mib"] == 2600


def test_where_the_driver_lists_no_program_the_whole_card_is_watched(program, tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    card = Listing(used_mib=900)
    use = ProgramUse(2000, REAL, card)
    assert use.use_mib() == 0
    card.listed = [Program("python", program[0].pid)]  # WSL2 names no size
    card.used = 2400
    assert use.use_mib() == 0  # a neighbour's report may be on its way
    assert use.use_mib() == 1500
    assert use.summary()["device_peak_mib"] == 1500


def test_a_program_that_took_nothing_of_the_card_was_measured_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    use = ProgramUse(2000, REAL, Listing())
    use.use_mib()
    found = use.summary()
    assert (found["peak_mib"], found["overhead_mib"], found["device_peak_mib"]) == (0, 0, 0)


def test_a_program_with_a_lease_of_its_step_takes_none_of_its_own(tmp_path):
    """It would wait for itself."""
    script = "import overnight\nwith overnight.lease(100): pass"
    env = {**os.environ, "OVERNIGHT_CARD_DIR": str(tmp_path), "OVERNIGHT_LEASED_MIB": "2000"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert "this program was given 2000 MiB of the card when it was started" in ended.stderr
    assert "--vram 0" in ended.stderr
