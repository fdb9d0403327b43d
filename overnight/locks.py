"""flock-based locks: the kernel releases them when the holder exits, so a held lock means a live process."""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from overnight.errors import OvernightError


@dataclass(frozen=True)
class Holder:
    """Process that holds a lock; pid 0 when the file does not say (yet)."""

    pid: int
    who: str
    since: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.who} (pid {self.pid}, since {since})"


class Held(OvernightError):
    def __init__(self, path: Path, by: Holder) -> None:
        self.by = by
        super().__init__(f"{path.name} is held by {by}")


@contextmanager
def hold(path: Path, who: str, wait: bool = False) -> Iterator[None]:
    """Hold *path* alone until the block or the process ends. Raises Held, unless `wait`.

    Processes forked while it is held share it; started ones do not.
    """
    descriptor = _lock(path, wait)
    try:
        content = json.dumps({"pid": os.getpid(), "who": who, "since": time.time()}).encode()
        os.ftruncate(descriptor, os.pwrite(descriptor, content, 0))
        yield
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def holder(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path)
    finally:
        os.close(descriptor)
    return None


@contextmanager
def register(folder: Path, who: str) -> Iterator[None]:
    """Be one of many users of something, by a locked file in *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.lock"
    with hold(path, who):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def users(folder: Path) -> list[Holder]:
    """List the processes that use the folder; files of ended ones are removed."""
    alive = []
    for path in sorted(folder.glob("*.lock")):
        user = holder(path)
        if user is not None:
            alive.append(user)
            continue
        with suppress(FileNotFoundError):  # its process has just ended
            if time.time() - path.stat().st_mtime > 5:  # a younger file may be about to be locked
                path.unlink()
    return alive


def _lock(path: Path, wait: bool) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _flock(descriptor, path, wait)
            if same_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, path: Path, wait: bool) -> None:
    """Take the lock; a probe by `holder` may hold it for an instant, so a refusal is asked twice."""
    for last in (False, True):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if last:
                raise Held(path, _read(path)) from None
            time.sleep(0.05)
        else:
            return


def same_file(descriptor: int, path: Path) -> bool:
    """Whether it was not removed or replaced meanwhile."""
    mine = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _read(path: Path) -> Holder:
    try:
        found = json.loads(path.read_text())
        return Holder(int(found["pid"]), str(found["who"]), float(found["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, "another process", time.time())
