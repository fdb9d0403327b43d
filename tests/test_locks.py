"""Kernel locks, with real processes on both sides."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from overnight import locks

HOLD = """
import sys
from pathlib import Path
from overnight import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2]), "the other one"):
    print("held", flush=True)
    sys.stdin.read()
"""


def other(kind: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_holder_is_refused_and_told_who_holds(tmp_path):
    path = tmp_path / "deep" / "nightly.lock"
    process = other("hold", path)
    with pytest.raises(locks.Held, match="the other one") as caught, locks.hold(path, "me"):
        pass
    assert caught.value.by.pid == process.pid
    assert locks.holder(path) == caught.value.by
    process.communicate()
    with locks.hold(path, "me"):
        assert locks.holder(path).pid == os.getpid()
    assert locks.holder(path) is None


def test_a_killed_holder_holds_nothing(tmp_path):
    path = tmp_path / "nightly.lock"
    process = other("hold", path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text()  # what the dead wrote is still there, and does not matter
    assert locks.holder(path) is None
    with locks.hold(path, "me"):
        pass


def test_waiting_ends_when_the_holder_goes(tmp_path):
    path = tmp_path / "nightly.lock"
    process = other("hold", path)
    assert process.stdin is not None
    process.stdin.close()
    with locks.hold(path, "me", wait=True):
        assert locks.holder(path).who == "me"
    process.wait()


def test_a_replaced_lock_file_is_another_lock(tmp_path):
    path = tmp_path / "nightly.lock"
    process = other("hold", path)
    path.unlink()
    with locks.hold(path, "me"):
        assert locks.holder(path).who == "me"
    process.communicate()


def test_users_are_the_living_ones(tmp_path):
    first, second = other("register", tmp_path), other("register", tmp_path)
    assert {user.pid for user in locks.users(tmp_path)} == {first.pid, second.pid}
    first.send_signal(signal.SIGKILL)
    first.wait()
    with locks.register(tmp_path, "me"):
        assert {user.who for user in locks.users(tmp_path)} == {"the other one", "me"}
    second.communicate()
    assert locks.users(tmp_path) == []
    for left in tmp_path.glob("*.lock"):
        os.utime(left, (0, 0))
    assert locks.users(tmp_path) == []
    assert not list(tmp_path.glob("*.lock"))
