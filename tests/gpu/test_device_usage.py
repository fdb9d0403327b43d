"""The owner's card: what other programs use is seen, counts as held, and is named."""
# ruff: noqa: N802 - the driver's own names

import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from overnight.errors import Stopped
from overnight.gpu import device_usage, messages
from overnight.gpu.card import Card, virtual
from overnight.gpu.cuda_context import UNMEASURED_MIB
from overnight.gpu.device_usage import EnergyMeter, NvmlDevice, Program
from overnight.gpu.lease import keep, lease, program_name, update_usage
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.ledger import Ledger
from tests.support import steps_leased
from tests.support.checkouts import until

MIB = 1 << 20
REAL = Card(uuid="GPU-1", name="RTX", total_mib=12282, budget_mib=11258, reserved_mib=282)


class Driver:
    """NVML as a program meets it: one card, its totals, its lists of processes, its moods."""

    nvmlMemory_v2 = 2  # noqa: N815

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801
        pass

    def __init__(self, used_mib=0, compute=(), graphics=(), version=2):
        self.used, self.compute, self.graphics, self.version = used_mib, compute, graphics, version
        self.inits, self.lost = 0, False

    def nvmlInit(self):
        self.inits += 1
        self._answer()

    def nvmlShutdown(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetMemoryInfo(self, _handle, version=None):
        self._answer()
        if version and self.version < 2:
            raise self.NVMLError("Function Not Found")
        reserved = {"reserved": 282 * MIB} if version else {}
        return SimpleNamespace(
            total=12282 * MIB, used=(self.used + (0 if version else 282)) * MIB, **reserved
        )

    def nvmlDeviceGetComputeRunningProcesses(self, _handle):
        return self._list(self.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, _handle):
        return self._list(self.graphics)

    def _list(self, found):
        if found is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else mib * MIB) for pid, mib in found
        ]

    def _answer(self):
        if self.lost:
            raise self.NVMLError("GPU is lost")


def holder(mib, pid=999_999_999, **who):
    return Request(REAL.folder, holds=True, ticket=1, mib=mib, pid=pid, owner=who)


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A virtual card of 1000 MiB with a ledger of its own."""
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    monkeypatch.setenv("OVERNIGHT_VIRTUAL_MIB", "1000")
    (tmp_path / "virtual").mkdir()
    return virtual()


def test_foreign_is_what_the_whole_card_uses_beyond_what_holders_say():
    held = [holder(4096, use_mib=3000.4), holder(1024, step="says nothing")]
    assert (
        device_usage.other_processes_mib(REAL, held, NvmlDevice(Driver(used_mib=9124))) == 9124 - 3000 - 1024
    )
    assert device_usage.other_processes_mib(REAL, held, NvmlDevice(Driver(used_mib=100))) == 0


def test_of_a_real_card_the_reserve_is_there_for_foreign_programs():
    reserve = 12282 - 282 - 11258
    assert device_usage.overuse_mib(REAL, [], NvmlDevice(Driver(used_mib=reserve))) == 0
    assert device_usage.overuse_mib(REAL, [], NvmlDevice(Driver(used_mib=5000))) == 5000 - reserve


def test_a_driver_without_the_second_version_of_the_memory_question():
    assert NvmlDevice(Driver(used_mib=700, version=1)).used_mib(REAL) == 700 + 282


def test_a_lost_card_keeps_its_last_value_and_is_asked_anew_later():
    now = [0.0]
    driver = Driver(used_mib=700)
    asked = NvmlDevice(driver, lambda: now[0])
    assert asked.used_mib(REAL) == 700
    driver.lost, driver.used = True, 900
    assert asked.used_mib(REAL) == 700
    assert asked.problem == "GPU is lost"
    driver.lost = False
    assert (asked.used_mib(REAL), driver.inits) == (700, 1)  # not yet
    now[0] += device_usage.RETRY_S
    assert (asked.used_mib(REAL), driver.inits, asked.problem) == (900, 2, "")


def test_a_driver_that_never_answered_uses_nothing():
    driver = Driver(used_mib=700)
    driver.lost = True
    assert NvmlDevice(driver).used_mib(REAL) == 0


def test_programs_are_named_where_the_driver_lists_them():
    asked = NvmlDevice(Driver(compute=[(os.getpid(), None), (999_999_999, 50)], graphics=[(999_999_999, 70)]))
    (mine,) = [p for p in asked.programs(REAL) if p.pid == os.getpid()]
    assert mine.mib is None
    assert mine.name
    assert Program("pid 999999999", 999_999_999, 70) in asked.programs(REAL)
    assert NvmlDevice(Driver(compute=None, graphics=None)).programs(REAL) == []


def test_holders_are_no_outsiders():
    asked = NvmlDevice(Driver(compute=[(999_999_999, 50), (999_999_998, 90)]))
    assert [p.pid for p in device_usage.other_processes(REAL, [holder(10, pid=999_999_998)], asked)] == [
        999_999_999
    ]


def test_strangers_in_words():
    ollama, game = Program("ollama", 1, 5100), Program("game", 2)
    assert messages.describe_other_processes([ollama], 5150) == ["ollama (5,100 MiB, not ours)"]
    assert messages.describe_other_processes([ollama], 6100) == [
        "ollama (5,100 MiB, not ours)",
        "other programs (1,000 MiB, not ours)",
    ]
    assert messages.describe_other_processes([game], 5100) == ["game (5,100 MiB, not ours)"]
    assert messages.describe_other_processes([game, Program("Xorg")], 800) == [
        "game and Xorg (together 800 MiB, not ours)"
    ]
    assert messages.describe_other_processes([], 5100) == ["other programs (5,100 MiB, not ours)"]


def test_one_who_waits_says_for_whom(card):
    (card.folder / "other_processes").write_text("510 ollama\n")
    said = messages.waiting(card, 2048, [holder(4096, step="train_cnn")], 510)
    assert (
        said
        == "waiting for 2,048 MiB of the card, behind train_cnn (4,096 MiB) and ollama (510 MiB, not ours)"
    )


def test_one_who_waits_for_what_started_it_is_told_what_to_do(card):
    mine, other = (
        replace(holder(4096, step="search.py"), pid=os.getppid()),
        replace(holder(512, step="other"), pid=os.getpid()),
    )
    said = messages.waiting(card, 9000, [mine, other], 0)
    assert said.startswith(
        "waiting for 9,000 MiB of the card, behind search.py (4,096 MiB; it started this process: "
    )
    assert said.endswith("ask for all of it at once there) and other (512 MiB)")


@pytest.mark.parametrize(
    ("text", "mib"),
    [("", 0), ("510", 510), ("510 ollama\n90 a game\n", 600), ("-3\nlots\n\xff\n7.5", 0), ("9" * 5000, 0)],
)
def test_the_file_foreign_plays_other_programs(card, text, mib):
    (card.folder / "other_processes").write_text(text)
    assert device_usage.overuse_mib(card, device_usage.holders(card)) == mib


def test_what_is_no_file_plays_nobody(card):
    (card.folder / "other_processes").mkdir()
    assert device_usage.overuse_mib(card, device_usage.holders(card)) == 0


def test_holders_say_what_they_use_and_count_whole_until_they_do(card):
    with lease(300, card) as one, Ledger(card.folder, card.budget_mib).acquire(200):
        held = device_usage.holders(card)
        assert device_usage.device_of(card).used_mib(card, held) == 500
        one.update(use_mib=120.2)
        assert device_usage.device_of(card).used_mib(card, device_usage.holders(card)) == 320
        (card.folder / "other_processes").write_text("70")
        assert device_usage.other_processes_mib(card, device_usage.holders(card)) == 70
    assert device_usage.holders(card) == []


def test_a_second_look_counts_where_holders_talk(card):
    """The smaller of two looks: here the program ends in between."""
    foreign = card.folder / "other_processes"
    foreign.write_text("500")
    assert (
        device_usage.steady_overuse_mib(card, pause=lambda _s: foreign.unlink()) == 500
    )  # nobody talks: one look is enough
    with lease(100, card) as one:
        one.update(use_mib=1)
        assert device_usage.steady_overuse_mib(card, pause=lambda _s: foreign.unlink()) == 0


def test_a_grant_waits_for_another_program_and_goes_on_when_it_ends(card):
    foreign, said = card.folder / "other_processes", []
    foreign.write_text("700 ollama")

    def on_wait(ahead, overuse_mib):
        said.append(messages.waiting(card, 400, ahead, overuse_mib))
        foreign.write_text("500 ollama")  # it takes less: the grant is possible

    with lease(400, card, on_wait=on_wait) as granted:
        assert granted.mib == 400
    assert said[0] == "waiting for 400 MiB of the card, behind ollama (700 MiB, not ours)"


def test_a_script_says_for_whom_it_waits(card, capsys):
    (card.folder / "other_processes").write_text("700 ollama")
    asked = iter([False, True])
    with pytest.raises(Stopped), lease(400, card, should_stop=lambda: next(asked)):
        pytest.fail("there was no room")
    assert capsys.readouterr().err == "waiting for 400 MiB of the card, behind ollama (700 MiB, not ours)\n"


class Torch:
    """torch.cuda of a script, as far as it is asked."""

    def __init__(self, initialized=True, cards=1):
        self.is_initialized, self.device_count = (lambda: initialized), (lambda: cards)
        self.cuda = self

    def memory_reserved(self, _device):
        return 300 * MIB

    def max_memory_reserved(self, _device):
        return 400 * MIB


def test_a_script_with_torch_says_what_it_uses_with_its_context(card):
    with lease(1000, card) as held:
        update_usage(replace(held, card=REAL), {"torch": Torch()})
        (request,) = device_usage.holders(card)
    assert (request.owner["use_mib"], request.owner["peak_mib"]) == (
        300 + UNMEASURED_MIB,
        400 + UNMEASURED_MIB,
    )


@pytest.mark.parametrize(
    "modules", [{}, {"torch": object()}, {"torch": Torch(initialized=False)}, {"torch": Torch(cards=2)}]
)
def test_a_script_that_uses_no_torch_or_several_cards_counts_with_its_lease(card, modules):
    with lease(1000, card) as held:
        update_usage(replace(held, card=REAL), modules)
        assert device_usage.reported_mib(device_usage.holders(card)[0]) == 1000


def test_a_script_talks_as_long_as_it_holds(card):
    with lease(1000, card) as held, keep(replace(held, card=REAL), {"torch": Torch()}, every_s=0.01):
        until(lambda: "use_mib" in device_usage.holders(card)[0].owner)
    assert not any(thread.name == "lease" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("/home/me/train.py", "train.py"),
        ("-c", "python -c"),
        ("", "python"),
        ("/home/me/mine/__main__.py", "mine"),
        ("/home/me/site-packages/ipykernel_launcher.py", "a notebook"),
    ],
)
def test_a_script_is_called_by_a_name_that_says_what_it_is(argument, name):
    assert program_name(argument) == name


def test_those_that_fit_beside_another_program_start_at_once(card):
    (card.folder / "other_processes").write_text("700")
    with lease(300, card, on_wait=pytest.fail) as granted:
        assert granted.mib == 300


def test_with_the_policy_to_shrink_less_is_asked_for(card):
    (card.folder / "other_processes").write_text("700")
    with lease(800, card.model_copy(update={"policy": "shrink"}), smaller=[500, 250, 100]) as granted:
        assert granted.mib == 250


def test_with_the_policy_to_wait_the_whole_is_waited_for(card):
    (card.folder / "other_processes").write_text("700")
    waited = threading.Event()

    def on_wait(_ahead, overuse_mib):
        assert Ledger(card.folder, card.budget_mib).requests()[0].mib == 800
        assert overuse_mib == 700
        waited.set()
        (card.folder / "other_processes").unlink()

    with lease(800, card, smaller=[500, 250, 100], on_wait=on_wait) as granted:
        assert granted.mib == 800
    assert waited.is_set()


def test_a_step_says_for_whom_it_waits_and_runs_when_that_ends(card, checkout, tmp_path):
    """In a process of its own, as in a run."""
    (card.folder / "other_processes").write_text("700 ollama")
    folder = tmp_path / "step"
    child = steps_leased.start(folder, card, "wise", ask_mib=400)
    while not (said := (folder / "events.jsonl").exists() and steps_leased.events(folder, "log")):
        assert child.poll() is None, (folder / "log.txt").read_text()
        time.sleep(0.05)
    (card.folder / "other_processes").write_text("100 ollama")
    assert child.wait() == 0
    assert [e["text"] for e in said] == ["waiting for 400 MiB of the card, behind ollama (700 MiB, not ours)"]
    assert steps_leased.result(folder).lease_mib == 400
    assert steps_leased.result(folder).wait_s > 0


class Meter(Driver):
    """With a counter of energy (mJ), a power (mW), or neither (None)."""

    def __init__(self, counted=None, power=None):
        super().__init__()
        self.counted, self.power = counted, power

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle):
        return self._given(self.counted)

    def nvmlDeviceGetPowerUsage(self, _handle):
        return self._given(self.power)

    def _given(self, value):
        if value is None:
            raise self.NVMLError_NotSupported
        return value


def metered(driver, *readings):
    """Watt-hours after samples at these times, each with what the driver then says."""
    now = [0.0]
    meter = EnergyMeter(REAL, NvmlDevice(driver), lambda: now[0])
    for at, driver.counted, driver.power in readings:
        now[0] = at
        meter.sample()
    return meter.watt_hours


def test_energy_is_what_the_card_counts():
    assert metered(Meter(1000, 50_000), (10, 3_601_000, 50_000), (20, 7_201_000, 0)) == pytest.approx(2.0)


def test_energy_is_the_power_over_time_where_the_card_does_not_count():
    assert metered(Meter(), (1800, None, 100_000), (3600, None, 200_000)) == pytest.approx(150.0)


def test_a_counter_that_begins_anew_takes_nothing_back():
    assert metered(
        Meter(9_000_000), (10, 12_600_000, None), (20, 5, None), (30, 3_600_005, None)
    ) == pytest.approx(2.0)


def test_energy_that_no_driver_says_is_not_measured():
    assert metered(Meter(), (10, None, None)) is None
    assert EnergyMeter(virtual()).watt_hours is None
