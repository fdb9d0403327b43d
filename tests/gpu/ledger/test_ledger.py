"""The ledger: never above its budget, first come first served, free at once when a holder dies."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import overnight
from overnight.errors import BadInput, DoesNotFit, ServiceError, Stopped
from overnight.gpu.card import check_driver, find
from overnight.gpu.ledger import entries
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.ledger.scheduler import Size
from overnight.gpu.ledger.waiter import POLL_S, REENTER_S, Waiter
from tests.support.checkouts import until

HOLD = """
import sys, time
from pathlib import Path
from overnight.gpu.ledger.ledger import Ledger
with Ledger(Path(sys.argv[1]), 1000).acquire(int(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""
CHURN = """
import random, sys, time
from pathlib import Path
from overnight.gpu.ledger.ledger import Ledger
choose = random.Random(int(sys.argv[2]))
ledger = Ledger(Path(sys.argv[1]), 1000)
for _ in range(10):
    with ledger.acquire(choose.randint(1, 900)):
        time.sleep(choose.random() * 0.01)
"""


def spawn(code, *args):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True)


def test_a_grant_is_counted_and_given_back(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    with ledger.acquire(400, {"step": "train_cnn"}) as grant:
        assert grant.mib == 400
        assert ledger.held_mib() == 400
        assert ledger.requests()[0].owner["step"] == "train_cnn"
    assert ledger.requests() == []


def test_more_than_the_budget_does_not_fit(tmp_path):
    with pytest.raises(DoesNotFit, match=r"1001 MiB.*budget is 1000"):
        Ledger(tmp_path, 1000).acquire(1001)


def test_a_waiter_can_be_stopped_and_leaves_no_trace(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    ahead = []
    with ledger.acquire(600):
        with pytest.raises(Stopped):
            ledger.acquire(
                600, should_stop=lambda: bool(ahead), on_wait=lambda found, _taken: ahead.extend(found)
            )
        assert [r.mib for r in ahead] == [600]
        assert [r.mib for r in ledger.requests()] == [600]


def waits(ledger, mib, **more):
    """Whether a request is not granted at once."""
    try:
        ledger.acquire(mib, should_stop=lambda: True, **more).release()
    except Stopped:
        return True
    return False


def test_a_small_request_passes_the_head_of_the_line_only_where_it_does_no_harm(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    with ledger.acquire(600):
        waiting = spawn(HOLD, tmp_path, 800)
        while len(ledger.requests()) < 2:
            time.sleep(0.01)
        assert waits(ledger, 201)
        assert not waits(ledger, 200)
    assert waiting.stdout.readline() == "held\n"
    waiting.kill()
    waiting.wait()


def test_who_gave_back_stands_in_line_where_it_stood_before(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    first = ledger.acquire(900)
    waiting = spawn(HOLD, tmp_path, 800)
    while len(ledger.requests()) < 2:
        time.sleep(0.01)
    other = ledger.acquire(50)
    first.release()
    assert waiting.stdout.readline() == "held\n"
    seen = []
    with pytest.raises(Stopped):
        ledger.acquire(
            900,
            ticket=first.ticket,
            should_stop=lambda: bool(seen),
            on_wait=lambda _ahead, _taken: seen.extend(ledger.requests()),
        )
    assert [r.ticket for r in seen if not r.holds] == [first.ticket]
    last = spawn(HOLD, tmp_path, 1000)
    while len(ledger.requests()) < 3:
        time.sleep(0.01)
    waiting.kill()
    waiting.wait()
    with ledger.acquire(900, ticket=first.ticket) as again:  # ahead of the last, who came after it
        assert again.ticket == first.ticket
        assert [r.pid for r in ledger.requests() if not r.holds] == [last.pid]
    other.release()
    assert last.stdout.readline() == "held\n"
    last.kill()
    last.wait()


def test_a_ticket_that_is_still_in_use_takes_nothing_from_its_holder(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    with ledger.acquire(400) as first, ledger.acquire(400, ticket=first.ticket) as second:
        assert (second.ticket, ledger.held_mib()) == (first.ticket + 1, 800)
        assert waits(ledger, 201, ticket=first.ticket)
    assert ledger.requests() == []


def test_a_ticket_of_before_the_last_boot_is_none(tmp_path):
    with Ledger(tmp_path, 1000).acquire(400, ticket=1 << 62) as grant:
        assert grant.ticket < 1 << 62


def test_a_grant_on_an_old_view_is_refused_though_its_number_is_free_again(tmp_path):
    waiter = Waiter(tmp_path, 12, Size(8), {})
    view = entries.snapshot(tmp_path)
    for _ in range(3):
        Ledger(tmp_path, 12).acquire(4).release()
    with Ledger(tmp_path, 12).acquire(12, exclusive=False, ticket=1):
        assert not (tmp_path / f"g-{view.grants + 1}").exists()
        assert not entries.grant(waiter.request, view.grants + 1)
        assert not (tmp_path / f"g-{view.grants + 1}").exists()
        assert [r.mib for r in entries.holders(tmp_path)] == [12]
    waiter.leave()


def test_an_exclusive_request_lets_nobody_run_beside_it(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    with ledger.acquire(100):
        assert waits(ledger, 100, exclusive=True)
    with ledger.acquire(100, exclusive=True):
        assert waits(ledger, 100)


def test_what_other_programs_take_is_waited_for_or_shrunk_to(tmp_path):
    ledger, overuses = Ledger(tmp_path, 1000), []
    taken = iter([500, 500, 0])
    with ledger.acquire(
        600, on_wait=lambda _ahead, mib: overuses.append(mib), overuse=lambda: next(taken)
    ) as grant:
        assert (grant.mib, overuses) == (600, [500])
    with ledger.acquire(600, overuse=lambda: 500, smaller=[450, 550, 300]) as grant:
        assert grant.mib == 450
        assert ledger.held_mib() == 450


def test_a_stopped_head_is_passed_over_and_keeps_its_place(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    with ledger.acquire(1000):
        head = spawn(HOLD, tmp_path, 900)
        while len(ledger.requests()) < 2:
            time.sleep(0.01)
        head.send_signal(signal.SIGSTOP)
    with ledger.acquire(800):  # after a second, in which nobody takes the card
        assert [r.pid for r in ledger.requests()] == [os.getpid(), head.pid]
        head.send_signal(signal.SIGCONT)
    assert head.stdout.readline() == "held\n"
    head.kill()
    head.wait()


def test_kill_9_of_the_holder_frees_its_grant(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    holder = spawn(HOLD, tmp_path, 900)
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with ledger.acquire(900, should_stop=lambda: time.monotonic() - began > 2):
        assert [r.pid for r in ledger.requests()] == [os.getpid()]


def test_a_forked_grandchild_still_counts(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    grant = ledger.acquire(700)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    grant.release()  # only the grandchild lives on
    assert ledger.held_mib() == 700
    os.close(read)
    os.close(write)
    os.waitpid(child, 0)
    assert ledger.held_mib() == 0


def test_garbage_in_the_folder_and_in_a_file_changes_nothing(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    for name in ("notes.txt", "q-x-900-1", "q-7-900-1", "q-01-100-5", "g-07", "g-9"):
        (tmp_path / name).write_text("x")
    (tmp_path / "q-8-900-1").symlink_to("nowhere")
    (tmp_path / "g-3").symlink_to("nowhere")
    os.mkfifo(tmp_path / "q-9-900-1")
    with ledger.acquire(400) as grant:
        grant.request.path.write_bytes(b"\x00garbage")
        assert [(r.mib, r.owner) for r in ledger.requests()] == [(400, {})]


@pytest.mark.parametrize("what", ["q-*", "g-*", "*", "folder"])
def test_a_holder_whose_files_are_removed_enters_again(tmp_path, what):
    ledger = Ledger(tmp_path / "card", 1000)
    with ledger.acquire(600, {"step": "train"}) as first, ledger.acquire(300) as second:
        if what == "folder":
            shutil.rmtree(tmp_path / "card")
        for path in (tmp_path / "card").glob(what):
            path.unlink()
        assert [grant.restore() for grant in (first, second)] == [True, True]
        assert [(r.mib, r.owner.get("step")) for r in ledger.requests()] == [(600, "train"), (300, None)]
        assert [grant.restore() for grant in (first, second)] == [False, False]
        assert waits(ledger, 101)
        assert not waits(ledger, 100)
    assert not first.restore()
    assert ledger.requests() == []


def test_a_lease_whose_folder_is_removed_is_entered_again_and_says_so(checkout, capfd):
    with overnight.lease(300) as held:
        ledger = Ledger(held.card.folder, held.card.budget_mib)
        shutil.rmtree(held.card.folder)
        until(lambda: ledger.held_mib() == 300)
    assert "was removed: the lease of 300 MiB is entered again" in capfd.readouterr().err


def test_a_lease_that_cannot_be_entered_again_says_so(checkout, capfd):
    said = []
    with overnight.lease(300) as held:
        folder = held.card.folder
        shutil.rmtree(folder)
        folder.write_text("a file in its place")
        until(lambda: said.append(capfd.readouterr().err) or "cannot be entered again" in "".join(said))
        folder.unlink()


def test_those_in_line_give_the_holders_time_to_enter_again(tmp_path):
    ledger, now = Ledger(tmp_path / "card", 1000), [100.0]
    with ledger.acquire(800) as held:
        waiter = Waiter(ledger.folder, 1000, Size(900), {}, clock=lambda: now[0])
        ticket = waiter.request.ticket
        assert not waiter.take()
        shutil.rmtree(tmp_path / "card")
        now[0] += POLL_S
        assert not waiter.take()  # it enters again, with its place
        assert [(r.holds, r.ticket) for r in ledger.requests()] == [(False, ticket)]
        now[0] += REENTER_S
        assert not waiter.take()
        assert held.restore()
        now[0] += 2 * REENTER_S
        assert not waiter.take()
    now[0] += POLL_S
    assert waiter.take()
    waiter.leave()
    assert ledger.requests() == []


def test_processes_that_compete_never_exceed_the_budget(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    waiters = [spawn(CHURN, tmp_path, seed) for seed in range(6)]
    sampled = []
    while any(p.poll() is None for p in waiters):
        sampled.append(ledger.held_mib())
        if random.random() < 0.02:
            with ledger.acquire(10):
                pass
    assert [p.returncode for p in waiters] == [0] * 6
    assert max(sampled) <= 1000
    assert max(sampled) > 0
    assert ledger.requests() == []


def test_a_folder_that_is_removed_before_the_first_request_is_made_again(tmp_path):
    ledger = Ledger(tmp_path / "card", 1000)
    (tmp_path / "card").rmdir()
    with ledger.acquire(400):
        assert ledger.held_mib() == 400


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="OVERNIGHT_CARD_DIR"):
        Ledger(tmp_path / "file" / "card", 1000)


def test_a_script_takes_its_share_of_the_card(checkout):
    with overnight.lease(300, owner={"step": "my script"}) as held:
        assert (held.mib, held.card.virtual) == (300, True)
        ledger = Ledger(held.card.folder, held.card.budget_mib)
        assert [(r.mib, r.owner["step"]) for r in ledger.requests()] == [(300, "my script")]
    assert ledger.requests() == []


@pytest.mark.parametrize("mib", [0, -1, 1.5, 512.0, "512", None, float("nan"), True])
def test_what_is_no_amount_is_refused_and_never_waited_for(checkout, mib):
    with pytest.raises(BadInput, match="whole number of MiB"), overnight.lease(mib):
        pass


@pytest.mark.parametrize(
    "odd", [{"ticket": -5}, {"ticket": 1.5}, {"ticket": "x"}, {"ticket": True}, {"exclusive": "no"}]
)
def test_what_is_no_ticket_and_no_answer_is_refused(checkout, odd):
    with pytest.raises(BadInput, match="expected"), overnight.lease(100, **odd):
        pass


@pytest.mark.parametrize("mib", [1, 300])
def test_a_lease_inside_a_lease_of_the_same_thread_is_refused(checkout, mib):
    with overnight.lease(100):
        with pytest.raises(BadInput, match=r"holds 100 of .*ask for all of it at once"), overnight.lease(mib):
            pass
        with ThreadPoolExecutor(1) as other:  # it goes on by itself, so it may wait
            other.submit(_take_lease, mib).result()
    _take_lease(mib)


def _take_lease(mib):
    with overnight.lease(mib) as held:
        assert held.mib == mib


def test_an_old_driver_is_named_with_the_one_it_takes():
    with pytest.raises(ServiceError, match=r"535\.104.*CUDA 13\.2 needs 580.*--cpu"):
        check_driver("535.104.05", "13.2")
    check_driver("580.65.06", "13.2")


def test_cpu_asks_for_the_virtual_card(monkeypatch):
    monkeypatch.setenv("OVERNIGHT_VIRTUAL_MIB", "2048")
    assert find(cpu=True).budget_mib == 2048
    monkeypatch.setenv("OVERNIGHT_VIRTUAL_MIB", "lots")
    with pytest.raises(ServiceError, match="lots"):
        find(cpu=True)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_too_many_open_files_are_named_as_such(tmp_path, left):
    code = """
import os, resource, sys
from pathlib import Path
from overnight.errors import ServiceError
from overnight.gpu.ledger.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), 1000)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
used = []
try:
    while True:
        used.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    [os.close(used.pop()) for _ in range(int(sys.argv[2]))]
try:
    ledger.acquire(900).release()
except ServiceError as error:
    print(error)
[os.close(one) for one in used]
ledger.acquire(1000).release()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(left)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("too many open files" in done.stdout) == (left < 2)


def test_waiting_leaves_no_descriptor_open(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    before = list(Path("/proc/self/fd").iterdir())
    asked = iter([False, True])
    with ledger.acquire(900), pytest.raises(Stopped):
        ledger.acquire(900, should_stop=lambda: next(asked))
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)
