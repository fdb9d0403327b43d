"""What drivers say, played behind the real pynvml: which card is found, its budget, and who uses it."""

import json

import pynvml
import pytest

from overnight.cli.doctor import _libraries
from overnight.cli.main import main
from overnight.errors import ServiceError
from overnight.gpu import card as cards
from overnight.gpu.card import Card, find
from overnight.gpu.device_usage import NvmlDevice, other_processes, over_reserve_mib
from overnight.gpu.ledger.entries import Request
from overnight.gpu.monitor import Monitor, watch
from overnight.run import RecordingRun
from overnight.services.reconcile import VramLimitMirror
from overnight.services.settings import Settings
from tests.support.recorded_nvml import play

MIB = 1 << 20
NOWHERE = Settings(prefect="http://127.0.0.1:1/api", mlflow="http://127.0.0.1:1")
GTX, RTX = "NVIDIA GeForce GTX 1060 6GB", "NVIDIA GeForce RTX 4070 Ti"


@pytest.fixture(autouse=True)
def _torch_with_cuda(monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "torch_cuda", lambda: "13.2")
    monkeypatch.setattr(cards, "DEVICES", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "cards"))


@pytest.mark.parametrize(("name", "reserve"), [("linux", 1024), ("wsl2", 1536)])
def test_the_card_is_found_with_its_budget(monkeypatch, name, reserve):
    library = play(monkeypatch, name)
    card = find()
    assert (card.name, card.driver, card.total_mib) == (RTX, library.found["driver"], 12282)
    assert (card.reserved_mib, card.budget_mib, card.capability) == (282, 12282 - 282 - reserve, 8.9)


def test_the_whole_reserve_is_there_for_other_programs(monkeypatch):
    play(monkeypatch, "linux")
    assert [over_reserve_mib(find(), used) for used in (900, 1024, 1100)] == [0, 0, 76]


def test_an_old_driver_counts_what_it_reserves_as_used(monkeypatch):
    play(monkeypatch, "old_driver")
    assert (find().reserved_mib, NvmlDevice().used_mib(find())) == (0, 982)


@pytest.mark.parametrize("name", ["mismatch", "no_permission", "unknown_error", "lost"])
def test_a_driver_that_does_not_answer_is_an_error_and_no_virtual_card(monkeypatch, name):
    play(monkeypatch, name)
    with pytest.raises(ServiceError, match=r"driver does not say what the card is \(.+\)"):
        find()
    assert find(cpu=True).virtual


def test_without_a_driver_the_card_is_virtual(monkeypatch, tmp_path):
    play(monkeypatch, "not_loaded")
    assert find().virtual
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(ServiceError, match="Driver Not Loaded"):
        find()


def test_without_the_library_the_card_is_virtual(monkeypatch):
    play(monkeypatch, "linux")
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert find().virtual


@pytest.mark.parametrize(
    ("visible", "order", "found"),
    [
        (None, None, RTX),  # the largest that torch can use, wherever it is plugged in
        ("0", None, RTX),  # CUDA counts the fastest first
        ("1", "PCI_BUS_ID", RTX),
        ("GPU-00000000-0000-0000-0000-000000000001", None, RTX),
    ],
)
def test_of_two_cards_the_one_is_taken_that_cuda_would_take(monkeypatch, visible, order, found):
    play(monkeypatch, "two_cards")
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert find().name == found


@pytest.mark.parametrize("visible", ["1", "GPU-00000000-0000-0000-0000-00000000000a"])
def test_a_card_that_torch_has_no_kernels_for_is_refused(monkeypatch, visible):
    play(monkeypatch, "two_cards")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ServiceError, match=r"GTX 1060 6GB has compute capability 6\.1.*7\.5"):
        find()


def test_a_part_of_a_card_is_refused_in_words(monkeypatch):
    play(monkeypatch, "mig")
    assert find().capability == 9.0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-00000000-0000-0000-0000-000000000001")
    with pytest.raises(ServiceError, match=r"part of a card \(MIG\)"):
        find()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("linux", {1888: 400, 4242: 300}),
        ("wsl2", {}),
        ("wddm", {4294967295: None, 3000000000: None, 1234: None}),
        ("large_pids", {4294967295: 5100, 2147483648: 70}),
        ("lost", {}),
    ],
)
def test_the_programs_that_the_driver_lists(monkeypatch, name, found):
    library = play(monkeypatch, name)
    card = Card(uuid=library.found["cards"][0]["uuid"], name=RTX, total_mib=12282, budget_mib=11000)
    listed = other_processes(card, [], NvmlDevice())
    assert {program.pid: program.mib for program in listed} == found


class Held:
    """A lease as far as the monitor asks it."""

    mib, ticket = 1000, 1

    def __init__(self, card):
        self.grant = Request(card.folder, holds=True, ticket=1, mib=1000, pid=1, owner={})

    def update(self, **values):
        pass


@pytest.mark.parametrize("name", ["linux", "wsl2", "wddm", "large_pids", "mig", "old_driver"])
def test_the_monitor_digests_what_every_driver_says(monkeypatch, tmp_path, name):
    library = play(monkeypatch, name)
    card = Card(uuid=library.found["cards"][0]["uuid"], name=RTX, total_mib=12282, budget_mib=11000)
    run = RecordingRun(tmp_path)
    monitor = Monitor(run, card, Held(card), None, NvmlDevice(), reread_every=1)
    for _ in range(20):
        monitor.sample()
    monitor.close()
    used_mib = (library.found["cards"][0].get("memory") or {"used": 982 * MIB})["used"] >> 20
    assert run.last("system/card_used_mib") == used_mib
    assert run.last("system/card_other_processes_mib") == used_mib
    assert run.of("note") == []


def test_a_driver_that_is_lost_meanwhile_is_noted_once_and_ends_nothing(monkeypatch, tmp_path):
    library = play(monkeypatch, "linux")
    card = find()
    run = RecordingRun(tmp_path)
    with watch(run, card, Held(card), None, NvmlDevice()) as monitor:
        library.found = play(monkeypatch, "lost").found
        monitor.sample()
        monitor.sample()
    assert [note["text"].partition("(")[0] for note in run.of("note")] == [
        "the card does not say what it uses "
    ]
    assert run.last("system/card_used_mib") == 700


def test_what_the_monitor_cannot_digest_is_noted_and_ends_no_step(tmp_path):
    class Odd:
        problem = ""

        def used_mib(self, _card, _held):
            raise pynvml.NVMLLibraryMismatchError("the library is older than its binding")

        programs = load_percent = used_mib

    card = Card(uuid="GPU-1", name=RTX, total_mib=12282, budget_mib=11000)
    run = RecordingRun(tmp_path)
    with watch(run, card, Held(card), None, Odd()):
        pass
    (note,) = run.of("note")
    assert "(NVMLLibraryMismatchError: the library is older than its binding)" in note["text"]


def test_precision_is_chosen_by_the_capability(monkeypatch):
    library = play(monkeypatch, "linux")
    assert find().fast_precision() == "bf16"
    library.found["cards"][0]["capability"] = [7, 5]
    assert find().fast_precision() == "fp16"


@pytest.mark.parametrize("name", ["mismatch", "lost"])
def test_a_driver_that_does_not_answer_keeps_no_service_from_running(monkeypatch, name):
    """After an unattended update of the driver: the servers' supervisor shows the card's limit in Prefect."""
    play(monkeypatch, name)
    mirror = VramLimitMirror()
    mirror.update(NOWHERE)
    assert mirror.cards == []
    play(monkeypatch, "linux")
    mirror.next_update = 0.0
    mirror.update(NOWHERE)
    assert [card.name for card in mirror.cards] == [RTX]


@pytest.mark.parametrize("name", ["linux", "wsl2", "wddm", "two_cards", "lost", "old_driver", "mismatch"])
def test_a_recording_of_this_machine_plays_as_the_machine_did(monkeypatch, tmp_path, name):
    library = play(monkeypatch, name)
    file = tmp_path / "card.json"
    assert main(["doctor", "--record", str(file)]) == 0
    again = json.loads(file.read_text())
    assert again["wsl2"] == library.found["wsl2"]
    assert len(again["cards"]) == len(library.found["cards"])
    before = outcome()
    play(monkeypatch, again)
    assert outcome() == before


def outcome():
    """What `find` makes of the driver, but for the card's identity."""
    try:
        return find().model_copy(update={"uuid": ""})
    except ServiceError as error:
        return str(error)


def test_a_recording_names_neither_the_machine_nor_its_programs(monkeypatch, tmp_path):
    library = play(monkeypatch, "linux")
    library.found["cards"][0]["uuid"] = "GPU-5e0c7d1a-secret"
    file = tmp_path / "card.json"
    assert main(["doctor", "--record", str(file)]) == 0
    assert "secret" not in file.read_text()
    assert str(tmp_path) not in file.read_text()


def test_the_doctor_says_in_a_line_whether_rapids_uses_the_card(monkeypatch):
    play(monkeypatch, "linux")
    rows = {row["check"]: row["found"] for row in _libraries(find())}
    assert rows["RAPIDS"] == (
        "ETL: on the processor, cudf_polars is not installed; "
        "linear models of large tables: on the processor, cuml is not installed"
    )
    assert rows["compiler"].startswith("torch.compile ")
    assert "there is no card" in _libraries(find(cpu=True))[0]["found"]
    monkeypatch.setattr("overnight.cli.doctor.find_spec", lambda _name: True)
    assert _libraries(find())[0]["found"] == "ETL: on the card; linear models of large tables: on the card"
