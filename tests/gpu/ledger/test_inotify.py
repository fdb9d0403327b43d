"""What wakes a waiter: reported by the kernel, never missed, and replaced by looking where there is nobody to
tell.
"""

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from overnight.errors import Stopped
from overnight.gpu.ledger.inotify import CLOSED, REMOVED, Watcher
from overnight.gpu.ledger.ledger import Ledger

FOREVER_S = 60.0  # a ceiling for slow machines: nothing waits for it
CHURN = """
import random, sys
from pathlib import Path
from overnight.gpu.ledger import waiter
from overnight.gpu.ledger.ledger import Ledger
waiter.REFRESH_S, waiter.WAKE_S = 1e6, 1e6  # no waiter checks without an event
choose = random.Random(int(sys.argv[2]))
ledger = Ledger(Path(sys.argv[1]), 1000)
print("begun", flush=True)
for _ in range(int(sys.argv[3])):
    ledger.acquire(choose.choice([100, 400, 600, 1000])).release()
"""


@pytest.fixture
def watcher(tmp_path):
    made = Watcher(tmp_path)
    assert made.start()
    yield made
    made.close()


def reported(watcher):
    watcher.wait(FOREVER_S)
    return watcher.events()


def test_a_file_that_is_removed_or_closed_after_writing_rings(watcher, tmp_path):
    assert (watcher.active, watcher.events()) == (True, {})
    path = tmp_path / "h-1-2-3"
    path.write_text("x")
    assert reported(watcher) == {path.name: CLOSED}
    path.read_text()  # reading is no event
    path.unlink()
    assert reported(watcher) == {path.name: REMOVED}
    assert not watcher.start()


def test_kill_9_of_a_holder_rings(watcher, tmp_path):
    code = "import sys, time; from pathlib import Path; from overnight.gpu.ledger.ledger import Ledger\n"
    code += "grant = Ledger(Path(sys.argv[1]), 9).acquire(5); print(grant.request.path.name, flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    name = holder.stdout.readline().strip()
    watcher.events()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert reported(watcher) == {name: CLOSED}


def test_a_folder_that_is_removed_and_made_again_is_watched_anew(watcher, tmp_path):
    shutil.rmtree(tmp_path)
    assert reported(watcher) is None
    assert not watcher.active
    assert watcher.start()  # there is nothing to watch
    assert not watcher.active
    tmp_path.mkdir()
    assert watcher.start()
    assert watcher.active
    (tmp_path / "file").write_text("")
    assert reported(watcher) == {"file": CLOSED}


def test_a_folder_that_another_has_taken_the_place_of_is_watched_anew(watcher, tmp_path):
    tmp_path.rename(tmp_path.with_name("moved"))
    tmp_path.mkdir()
    assert watcher.start()
    (tmp_path / "file").write_text("")
    assert reported(watcher) == {"file": CLOSED}


def test_without_a_watch_to_be_had_a_waiter_still_gets_its_turn(tmp_path):
    code = """
import sys
from pathlib import Path
from overnight.gpu.ledger import inotify
from overnight.gpu.ledger.ledger import Ledger
inotify.ONLY_FOLDERS = 0xFFFFFFFF  # no kernel knows such a mask
grant = Ledger(Path(sys.argv[1]), 1000).acquire(900, on_wait=lambda ahead, taken: print("waits", flush=True))
print("held", grant.mib, flush=True)
"""
    with Ledger(tmp_path, 1000).acquire(500):
        waiter = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert waiter.stdout.readline() == "waits\n"
    assert waiter.stdout.readline() == "held 900\n"
    assert waiter.wait() == 0


@pytest.mark.parametrize("left", [0, 1, 2, 3])
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
    assert ("too many open files" in done.stdout) == (left < 3)


def test_no_ring_is_missed_among_many(tmp_path):
    """With no check but after an event, a single missed one would leave somebody waiting for ever."""
    waiters = [
        subprocess.Popen([sys.executable, "-c", CHURN, str(tmp_path), str(seed), "40"]) for seed in range(4)
    ]
    assert [process.wait(FOREVER_S) for process in waiters] == [0] * 4


def test_no_ring_of_one_that_is_killed_is_missed(tmp_path):
    for seed in range(3):
        victim = subprocess.Popen(
            [sys.executable, "-c", CHURN, str(tmp_path), str(seed), "1000000"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert victim.stdout.readline() == "begun\n"
        waiter = subprocess.Popen([sys.executable, "-c", CHURN, str(tmp_path), str(seed + 100), "10"])
        while (
            not any(path.name.endswith(f"-{waiter.pid}") for path in tmp_path.iterdir())
            and waiter.poll() is None
        ):
            time.sleep(0.001)
        victim.kill()
        victim.wait()
        assert waiter.wait(FOREVER_S) == 0


def test_one_that_waits_is_woken_to_stop(tmp_path):
    ledger, seen, stop = Ledger(tmp_path, 1000), threading.Event(), threading.Event()
    ended = []

    def wait():
        with pytest.raises(Stopped):
            ledger.acquire(900, should_stop=stop.is_set, on_wait=lambda _ahead, _taken: seen.set())
        ended.append(True)

    with ledger.acquire(500):
        thread = threading.Thread(target=wait)
        thread.start()
        assert seen.wait(FOREVER_S)
        stop.set()
        thread.join(FOREVER_S)
    assert ended


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_waiting_leaves_no_descriptor_open(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    before, until = descriptors(), time.monotonic() + FOREVER_S
    for _ in range(5):
        asked = iter([False, True])
        with ledger.acquire(900), pytest.raises(Stopped):
            ledger.acquire(900, should_stop=lambda asked=asked: next(asked))
    while descriptors() > before:  # a thread closes them
        assert time.monotonic() < until
        time.sleep(0.001)
