"""`overnight gpu`: what a person and a program are shown of the card."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from rich.console import Console

from overnight.cli.gpu import line, panel, show
from overnight.cli.main import main
from overnight.gpu.card import Card, virtual
from overnight.gpu.device_usage import Program
from overnight.gpu.lease import lease
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.snapshot import RequestRow, Snapshot, snapshot

PATIENCE_S = 120
HOLD = """
import os, sys, time
from overnight.gpu.lease import lease
with lease(int(sys.argv[1]), owner={"step": sys.argv[2], "experiment": "night"}, exclusive=len(sys.argv) > 4):
    if sys.argv[3] == "leave" and os.fork():
        os._exit(0)
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A virtual card of 1000 MiB with a ledger of its own."""
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    monkeypatch.setenv("OVERNIGHT_VIRTUAL_MIB", "1000")
    monkeypatch.setenv("OVERNIGHT_CPU", "1")
    (tmp_path / "virtual").mkdir()
    return virtual()


@contextmanager
def process(*args):
    """A script that stands in line; killed at the end."""
    started = subprocess.Popen([sys.executable, "-c", HOLD, *args], stdout=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def until(found):
    """Wait for a state."""
    end = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return value


def drawn(now, width=110):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(panel(now, width))
    return console.export_text()


def test_holders_queue_and_other_programs_are_shown(card):
    (card.folder / "other_processes").write_text("250 ollama\n")
    with (
        lease(400, card, {"step": "train_cnn", "experiment": "vision"}) as held,
        process("500", "train_gnn", "stay"),
    ):
        held.update(use_mib=120.5, peak_mib=300, cap_mib=390)
        until(lambda: len(Ledger(card.folder, 1000).requests()) == 2)
        now = snapshot(card)
    (holder,), (waiter,) = now.holders, now.queue
    assert (holder.step, holder.experiment, holder.pid, holder.mib) == (
        "train_cnn",
        "vision",
        os.getpid(),
        400,
    )
    assert (holder.use_mib, holder.peak_mib, holder.cap_mib) == (120.5, 300, 390)
    assert (waiter.step, waiter.mib, waiter.use_mib) == ("train_gnn", 500, None)
    assert (now.held_mib, now.other_processes_mib, now.overuse_mib, now.free_mib, now.used_mib) == (
        400,
        250,
        250,
        350,
        371 - 1,
    )
    text = drawn(now)
    for part in (
        "train_cnn",
        "vision",
        "train_gnn",
        "150 MiB short",
        "ollama (250 MiB, not ours)",
        "350 free",
    ):
        assert part in text
    assert line(now).startswith(
        "400 of 1,000 MiB held, 350 free; holds: train_cnn (400 MiB, 120 in use); "
        "waits: train_gnn (500 MiB); ollama"
    )


def test_an_empty_card(card):
    assert "no lease is held" in drawn(snapshot(card))
    assert line(snapshot(card)) == "0 of 1,000 MiB held, 1,000 free"


def test_for_programs_the_fields_stay(card, capsys):
    with lease(400, card):
        assert main(["gpu", "--cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {
        "at",
        "card",
        "budget_mib",
        "held_mib",
        "free_mib",
        "used_mib",
        "other_processes_mib",
        "overuse_mib",
        "holders",
        "queue",
    }
    assert set(found) >= {"other_processes", "problem"}
    assert {"uuid", "name", "index", "total_mib", "budget_mib", "driver"} <= set(found["card"])
    fields = {
        "experiment",
        "step",
        "pid",
        "mib",
        "seconds",
        "use_mib",
        "peak_mib",
        "cap_mib",
        "exclusive",
        "stopped",
        "orphaned_processes",
    }
    assert set(found["holders"][0]) >= fields


def test_who_keeps_the_lease_of_an_ended_owner_is_named_and_may_be_killed(card):
    with process("300", "etl", "leave") as owner:
        orphan = int(owner.stdout.readline())
        owner.wait()
        (row,) = until(lambda: snapshot(card).holders)
        assert [(s.pid, "-c" in s.command) for s in row.orphaned_processes] == [(orphan, True)]
        assert row.pid == owner.pid
        assert row.ended
        assert (
            f"etl has ended, and processes that it left behind keep its 300 MiB; `kill {orphan}` frees them"
            in drawn(snapshot(card), 200)
        )
        os.kill(orphan, signal.SIGTERM)
        until(lambda: not snapshot(card).holders)


def test_who_lives_and_has_given_its_lease_back_is_not_said_to_have_ended(card):
    go, gone = os.pipe()
    with lease(300, card, {"step": "etl"}):
        forked = os.fork()
        if forked == 0:
            os.read(go, 1)
            os._exit(0)
    (row,) = snapshot(card).holders
    assert ([s.pid for s in row.orphaned_processes], row.ended) == ([forked], False)
    assert "etl is done with its lease, and processes that it forked keep the 300 MiB" in drawn(
        snapshot(card), 200
    )
    os.write(gone, b"x")
    os.waitpid(forked, 0)
    assert snapshot(card).holders == ()


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_has_room_for_names_and_amounts(card, width):
    with lease(400, card, {"step": "train"}), process("700", "wait", "stay"):
        until(lambda: len(Ledger(card.folder, 1000).requests()) == 2)
        text = drawn(snapshot(card), width)
    for part in ("train", "400", "wait", "700"):
        assert part in text


def test_a_stopped_holder_is_shown_as_that(card):
    with process("300", "train", "stay") as owner:
        owner.stdout.readline()
        assert not snapshot(card).holders[0].stopped
        os.kill(owner.pid, signal.SIGSTOP)
        row = until(lambda: next((r for r in snapshot(card).holders if r.stopped), None))
        assert row.orphaned_processes == ()
        assert f"`kill -CONT {owner.pid}`" in drawn(snapshot(card))


def test_seconds_do_not_follow_the_clock(card):
    """A holder that got its grant before the clock was set back holds since then, not since the future."""
    with lease(300, card, {"since": time.time() + 86400}):
        assert 0 <= snapshot(card).holders[0].seconds < 3600


def test_a_watch_into_a_file_is_a_line_for_each_change(card, capsys):
    acts = iter(["500 game\n", "500 game\n", "600 game\n"])

    def pause(_seconds):
        text = next(acts, None)
        if text is None:
            raise KeyboardInterrupt
        (card.folder / "other_processes").write_text(text)

    show(card, as_json=False, watching=True, pause=pause)
    lines = [text.partition("  ")[2] for text in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert [text.partition("; ")[2] for text in lines] == [
        "",
        "game (500 MiB, not ours)",
        "game (600 MiB, not ours)",
    ]


def test_a_watch_for_programs_is_an_object_for_each_change(card, capsys):
    acts = iter(["500 game\n"])

    def pause(_seconds):
        text = next(acts, None)
        if text is None:
            raise KeyboardInterrupt
        (card.folder / "other_processes").write_text(text)

    show(card, as_json=True, watching=True, pause=pause)
    assert [json.loads(text)["other_processes_mib"] for text in capsys.readouterr().out.splitlines()] == [
        0,
        500,
    ]


def test_a_watch_in_a_terminal_ends_cleanly_with_ctrl_c(card):
    ours, theirs = pty.openpty()
    watched = subprocess.Popen(
        [sys.executable, "-m", "overnight.cli.main", "gpu", "--cpu", "--watch"], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while b"may be granted" not in seen:
        seen += os.read(ours, 4096)
    watched.send_signal(signal.SIGINT)
    try:
        while more := os.read(ours, 4096):
            seen += more
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert watched.wait() == 0
    assert b"Traceback" not in seen
    assert seen.rfind(b"\x1b[?1049l") > seen.rfind(b"\x1b[?1049h") >= 0  # back from the screen of its own
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l")  # the cursor is back


def test_it_loads_no_heavy_library(card):
    heavy = "{'torch', 'prefect', 'mlflow', 'polars'}"
    script = (
        "import sys; from overnight.cli.main import main; main(['gpu', '--cpu']); "
        f"print(*{heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


# ------------------------------------------------------------ the picture of a real card

REAL = Card(uuid="GPU-1", name="RTX", total_mib=12282, budget_mib=11258, reserved_mib=282, driver="580")
TRAINS = RequestRow(
    experiment="night", step="train", pid=7, mib=4096, seconds=3787, use_mib=3100, peak_mib=3500
)


def pictured(other_processes_mib=0, overuse_mib=0, holders=(TRAINS,), others=(), problem=""):
    held = sum(r.mib for r in holders)
    budget = REAL.budget_mib
    return Snapshot(
        at=0, card=REAL, budget_mib=budget, held_mib=held, free_mib=max(0, budget - held - overuse_mib),
        used_mib=0, other_processes_mib=other_processes_mib, overuse_mib=overuse_mib, holders=holders,
        queue=(), other_processes=others, problem=problem,
    )  # fmt: skip


@pytest.mark.parametrize("width", [40, 79, 110])
@pytest.mark.parametrize("foreign", [0, 300, 5000, 30000])
def test_the_bar_is_as_wide_as_the_terminal_whatever_it_shows(width, foreign):
    bar = drawn(pictured(foreign, max(0, foreign - 742)), width).splitlines()[1]
    assert len(bar) == width


def test_the_bar_is_to_scale():
    bar = drawn(pictured(3070, 3070 - 742), 110).splitlines()[1]
    assert bar.count("▒") == pytest.approx(110 * (4096 - 3100) / 12000, abs=1)
    assert bar.count("█") == pytest.approx(110 * (3100 + 3070) / 12000, abs=1)


def test_programs_that_came_after_a_grant_are_warned_of():
    holders = (TRAINS, TRAINS.model_copy(update={"step": "second"}))
    text = drawn(pictured(5000, 4258, holders, (Program("game", 9),)), 140)
    assert f"{4096 * 2 + 4258 - 11258:,} MiB short" in text
    assert "game (5,000 MiB, not ours); 742 MiB are kept for such programs" in text


def test_holders_that_began_with_another_budget_are_no_other_programs():
    text = drawn(pictured(0, 0, (TRAINS, TRAINS, TRAINS)), 140)
    more = f"{4096 * 3 - 11258:,} MiB more are held than may be granted here"
    assert f"{more}: the holders began with another budget" in text
    assert "other programs" not in text


def test_a_card_that_does_not_answer_is_said():
    assert "the card does not say what it uses (GPU is lost)" in drawn(pictured(problem="GPU is lost"), 140)


def test_names_with_brackets_are_text():
    assert "[bold]odd[/x]" in drawn(pictured(holders=(TRAINS.model_copy(update={"step": "[bold]odd[/x]"}),)))


@pytest.mark.parametrize("odd", [float("inf"), 10**400, "much"])
def test_odd_figures_of_a_holder_are_none(card, odd):
    with lease(600, card) as held:
        held.update(use_mib=odd, peak_mib=odd, cap_mib=odd, granted_ns=odd)
        (row,) = snapshot(card).holders
        assert (row.mib, row.use_mib, row.peak_mib, row.cap_mib) == (600, None, None, None)
        with Ledger(card.folder, card.budget_mib).acquire(100):
            assert snapshot(card).held_mib == 700


def test_a_ledger_behind_a_link_is_shown_like_any_other(card, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "link"))
    with process("600", "train", "leave") as owner:
        owner.wait()
        row = until(lambda: next((r for r in snapshot(virtual()).holders if r.orphaned_processes), None))
        assert (row.pid, row.ended) == (owner.pid, True)
        for orphan in row.orphaned_processes:
            os.kill(orphan.pid, signal.SIGKILL)
        until(lambda: not snapshot(virtual()).holders)


def test_a_stopped_holder_behind_a_link_is_shown_as_stopped(card, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "link"))
    with process("600", "train", "stay") as holder:
        until(lambda: snapshot(virtual()).holders)
        holder.send_signal(signal.SIGSTOP)
        assert until(lambda: snapshot(virtual()).holders[0].stopped)
