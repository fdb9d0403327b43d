"""Where a card's ledger cannot be kept is said before anything is started."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overnight.cli.main import main
from overnight.errors import DiskFull, ServiceError
from overnight.gpu import card as cards
from overnight.gpu.lease import lease
from overnight.gpu.ledger.filesystem import check_ledger, check_slots, file_system_type
from overnight.gpu.ledger.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]
MOUNTS = [
    ("/", "ext4"),
    ("/net", "nfs4"),
    ("/net/scratch", "ext4"),
    ("/mnt/c", "9p"),
    ("/mnt/with space", "fuse.sshfs"),
    ("/over", "ext4"),
    ("/over", "cifs"),
    ("/local", "fuse.mergerfs"),
]


@pytest.fixture
def card(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    return cards.virtual()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/net/me/.local/state", "nfs4"),
        ("/net/scratch/not/there/yet", "ext4"),
        ("/mnt/c/Users", "9p"),
        ("/mnt/cc", "ext4"),
        ("/mnt/with space/x", "fuse.sshfs"),
        ("/over/x", "cifs"),
        ("/", "ext4"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(path, kind):
    assert file_system_type(Path(path), MOUNTS) == kind


def test_without_a_list_of_mounts_the_file_system_is_unknown():
    assert file_system_type(Path("/"), []) == ""


@pytest.mark.parametrize(
    "kind",
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "9p",
        "drvfs",
        "fuse.sshfs",
        "ceph",
        "lustre",
        "fuse.glusterfs",
        "vboxsf",
        "virtiofs",
    ],
)
def test_a_folder_on_a_network_is_refused_with_the_way_out(card, kind):
    mounts = [("/", "ext4"), (str(card.folder.parent), kind)]
    with pytest.raises(ServiceError, match=rf"network file system \({kind}\); set OVERNIGHT_CARD_DIR"):
        check_ledger(card, mounts)
    assert not card.folder.exists()


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "zfs", "overlay", "tmpfs", "fuse.mergerfs", "fuseblk", ""])
def test_local_file_systems_are_not_remote(card, kind):
    check_ledger(card, [(str(card.folder.parent), kind)])


def test_the_file_system_of_this_machine_is_found():
    assert file_system_type(Path("/proc")) == "proc"


def test_a_local_folder_is_made_tried_and_left_clean(card):
    check_ledger(card)
    assert list(card.folder.iterdir()) == []


def test_what_a_killed_process_tried_there_is_swept(card):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = {f".q-7-1-{os.getpid()}", ".q-x-1-1", ".notes"}
    card.folder.mkdir(parents=True, exist_ok=True)
    for name in {f".q-7-1-{ended.pid}", f".q-7-2-{ended.pid}"} | kept:
        (card.folder / name).touch()
    assert Ledger(card.folder, card.budget_mib).requests() == []
    assert {p.name for p in card.folder.iterdir()} == kept


def test_a_file_system_without_hard_links_is_found_by_trying(card):
    def no_links(*_paths):
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as exfat and vfat say

    with pytest.raises(ServiceError, match="has no hard links; set OVERNIGHT_CARD_DIR"):
        check_ledger(card, link=no_links)
    assert list(card.folder.iterdir()) == []


def test_a_folder_that_is_removed_while_it_is_tried_is_no_fault(card):
    def remove(one, two):
        shutil.rmtree(card.folder)
        os.link(one, two)

    check_ledger(card, link=remove)


def test_a_full_disk_is_called_that(card):
    def full(*_paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull):
        check_ledger(card, link=full)


def test_a_folder_that_cannot_be_written_to_is_refused(monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", "/proc/self/overnight")  # not even root can make a folder there
    with pytest.raises(ServiceError, match="OVERNIGHT_CARD_DIR"):
        check_ledger(cards.virtual())
    with pytest.raises(ServiceError, match="OVERNIGHT_CARD_DIR"), lease(100, cards.virtual()):
        pytest.fail("unprotected")


def test_a_file_where_the_folder_should_be_is_refused(card):
    card.folder.write_text("")
    with pytest.raises(ServiceError, match="cannot be kept"):
        check_ledger(card)


def test_a_relative_folder_would_be_another_one_in_every_shell(monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", "cards")
    with pytest.raises(ServiceError, match="OVERNIGHT_CARD_DIR=cards: is relative"):
        check_ledger(cards.virtual())


def test_the_card_is_not_shown_from_where_no_run_would_keep_it(checkout, monkeypatch, capsys):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", "cards")
    assert main(["gpu", "--cpu"]) == 2
    assert "is relative" in capsys.readouterr().err
    assert not Path("cards").exists()


def test_where_a_real_cards_ledger_lies(monkeypatch, tmp_path):
    card = cards.Card(uuid="GPU-1", name="RTX", total_mib=12282, budget_mib=11258)
    monkeypatch.delenv("OVERNIGHT_CARD_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", given)
        assert card.folder == tmp_path / ".local" / "state" / "overnight" / "cards" / "GPU-1"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert card.folder == Path("/var/state/overnight/cards/GPU-1")
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", "~/cards")
    assert card.folder == tmp_path / "cards" / "GPU-1"


def test_the_places_of_this_host_are_counted_in_the_checkout(checkout):
    check_slots()
    (checkout / ".overnight" / "slots").rmdir()
    (checkout / ".overnight" / "slots").write_text("")
    with pytest.raises(ServiceError, match="checkout"):
        check_slots()


# ------------------------------------------------------------ what the environment asks


def test_a_budget_may_be_set(monkeypatch):
    monkeypatch.setenv("OVERNIGHT_BUDGET_MIB", "3000")
    assert cards.find(cpu=True).budget_mib == 3000
    assert cards.find(cpu=True).total_mib == cards.VIRTUAL_MIB


@pytest.mark.parametrize("given", ["0", "-5", "1.5", "lots", " ", "²"])
def test_a_budget_that_is_no_amount_is_refused(monkeypatch, given):
    monkeypatch.setenv("OVERNIGHT_BUDGET_MIB", given)
    with pytest.raises(ServiceError, match=r"OVERNIGHT_BUDGET_MIB.*whole number"):
        cards.find(cpu=True)


def test_a_budget_larger_than_the_card_is_refused(monkeypatch):
    monkeypatch.setenv("OVERNIGHT_BUDGET_MIB", "99999")
    with pytest.raises(ServiceError, match="OVERNIGHT_BUDGET_MIB=99999: the virtual card has 12288 MiB"):
        cards.find(cpu=True)


def test_a_reserve_that_leaves_nothing_is_refused(monkeypatch):
    monkeypatch.setenv("OVERNIGHT_RESERVE_MIB", "12282")
    with pytest.raises(ServiceError, match="nothing is left to grant"):
        cards.check_budget("RTX", 12282, cards.RESERVE_MIB)
    monkeypatch.setenv("OVERNIGHT_RESERVE_MIB", "0")
    cards.check_budget("RTX", 12282, cards.RESERVE_MIB)


def test_counting_is_switched_on_by_argument_or_environment(monkeypatch):
    assert not cards.find(cpu=True).count
    assert cards.find(cpu=True, count=True, policy="shrink").policy == "shrink"
    assert cards.find(cpu=True, count=True).count
    monkeypatch.setenv("OVERNIGHT_COUNT", "1")
    assert cards.find(cpu=True).count


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OVERNIGHT_CARD_DIR", "/proc/self/overnight", "cannot be kept there"),
        ("OVERNIGHT_BUDGET_MIB", "99999", "has 12288 MiB in all"),
        ("OVERNIGHT_VIRTUAL_MIB", "0", "expected a whole number of MiB"),
        ("OVERNIGHT_VIRTUAL_MIB", "9" * 20, "expected a whole number of MiB"),
        ("OVERNIGHT_CARD_DIR", "~nobody-of-that-name/cards", "is relative"),
    ],
)
def test_a_run_ends_with_the_message_and_starts_nothing(checkout, monkeypatch, capsys, variable, value, said):
    monkeypatch.setenv("OVERNIGHT_CPU", "1")
    monkeypatch.setenv(variable, value)
    assert main(["run", str(ROOT / "configs" / "agent.yaml"), "--cpu"]) == 2
    assert said in capsys.readouterr().err
    assert not (checkout / ".overnight").exists() or not list((checkout / ".overnight").iterdir())


def test_a_card_that_is_not_there_is_an_error_not_a_silent_virtual_one(checkout, capsys):
    if cards.real():
        pytest.skip("there is a card here")
    assert main(["run", str(ROOT / "configs" / "agent.yaml"), "card=3"]) == 2
    assert "this machine shows no NVIDIA card" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "left"),
    [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("GPU-a", [0]), ("", []), ("-1", []), ("1,7,0", [1])],
)
def test_cards_are_those_that_cuda_may_see(variable, left):
    known = [
        cards.Card(uuid=f"GPU-{name}", name="x", total_mib=100, budget_mib=90, index=i)
        for i, name in enumerate("ab")
    ]
    assert [c.index for c in cards.visible(known, variable)] == left


def test_a_folder_of_links_that_lead_to_themselves_is_refused(monkeypatch, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "loop"))
    with pytest.raises(ServiceError, match="cannot be kept there"), lease(10, cards.find(cpu=True)):
        pass
