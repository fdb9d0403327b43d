"""Odd words for a card, readers that leave early, and things in a card's folder that are no holders."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overnight.errors import ConfigError, ServiceError
from overnight.gpu import device_usage
from overnight.gpu.card import find, virtual
from overnight.gpu.ledger.ledger import Ledger
from overnight.orchestration.checks import load

COMMAND = "import sys; from overnight.cli.main import main; sys.exit(main())"


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A virtual card of 1000 MiB with a ledger of its own."""
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    monkeypatch.setenv("OVERNIGHT_VIRTUAL_MIB", "1000")
    monkeypatch.setenv("OVERNIGHT_CPU", "1")
    return virtual()


def config(folder, words):
    path = folder / "odd.yaml"
    path.write_text(f"flow: vision\ndata: digits\ncard: {words}\n")
    return path


@pytest.mark.parametrize(
    "words",
    [
        "0.5",
        ".nan",
        "yes",
        "no",
        "[0]",
        "{use: yes}",
        "{use: []}",
        "{policy: maybe}",
        "{count: maybe}",
        "{typo: 1}",
    ],
)
def test_what_names_no_card_is_a_mistake_of_the_config(tmp_path, words):
    with pytest.raises(ConfigError, match="card"):
        load(config(tmp_path, words))


@pytest.mark.parametrize("words", ["-1", "99", '""', '" 1"', "GPU-nobody", "{use: 99}"])
def test_a_card_that_is_not_there_is_named_and_no_other_is_taken(tmp_path, words):
    chosen = load(config(tmp_path, words))[1].card
    with pytest.raises(
        ServiceError, match=r"card .*(this machine shows no NVIDIA card|there is no such card)"
    ):
        find(chosen.use)


def test_the_virtual_card_is_found_by_its_name(tmp_path):
    assert find(load(config(tmp_path, "virtual"))[1].card.use).virtual


@pytest.mark.parametrize(
    ("text", "counts"),
    [("1", True), ("Yes", True), ("0", False), ("false", False), ("off", False), (" ", False)],
)
def test_counting_is_switched_by_words_that_say_so(monkeypatch, text, counts):
    monkeypatch.setenv("OVERNIGHT_COUNT", text)
    assert virtual().count == counts


def test_an_empty_variable_is_none_and_an_odd_one_is_named(monkeypatch):
    for name in ("OVERNIGHT_VIRTUAL_MIB", "OVERNIGHT_BUDGET_MIB", "OVERNIGHT_COUNT"):
        monkeypatch.setenv(name, "")
    assert virtual().budget_mib == 12288
    monkeypatch.setenv("OVERNIGHT_COUNT", "perhaps")
    with pytest.raises(ServiceError, match=r"OVERNIGHT_COUNT='perhaps': expected 1 or 0"):
        virtual()


def test_a_small_card_says_its_size_in_mib(monkeypatch):
    monkeypatch.setenv("OVERNIGHT_VIRTUAL_MIB", "8")
    assert str(virtual()).startswith("virtual card, 8 MiB:")


def test_names_of_others_command_no_terminal(card):
    card.folder.mkdir(exist_ok=True)
    (card.folder / "other_processes").write_text("510 a\033[31mred\n")
    assert [p.name for p in device_usage.device_of(card).programs(card)] == ["a[31mred"]


def test_a_run_on_a_card_that_is_not_there_ends_before_anything_is_started(checkout, tmp_path):
    shutil.copy(Path(__file__).parents[2] / "datasets" / "digits.yaml", checkout / "datasets")
    command = [sys.executable, "-c", COMMAND, "run", str(config(tmp_path, "99"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "card 99" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (checkout / ".overnight" / "services").exists()


@pytest.mark.parametrize("how", [["--watch"], ["--watch", "--json"]])
def test_a_reader_that_has_seen_enough_ends_the_watch(card, how):
    watching = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "gpu", *how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "1,000" in (first := watching.stdout.readline()) or '"budget_mib":1000' in first
    watching.stdout.close()
    with Ledger(card.folder, card.budget_mib).acquire(100):  # news, which nobody reads
        assert watching.wait(60) == 0
    assert watching.stderr.read() == ""


def test_a_folder_that_is_called_like_a_holder_holds_nothing(card):
    with Ledger(card.folder, card.budget_mib).acquire(300):
        (card.folder / "q-1-500-1").mkdir()
        assert [r.mib for r in device_usage.holders(card)] == [300]
        assert Ledger(card.folder, card.budget_mib).held_mib() == 300
