"""Wake waiting processes when files of a folder change, also when their owner is killed (inotify).

A holder that gives back removes its file; one that is killed loses its last descriptor, which is a "close
after writing" of the file a moment before its lock is dropped. Where the kernel gives no watch (a limit of
the user, an odd file system) a waiter polls instead.
"""

import ctypes
import os
import select
import struct
import threading
import time
from pathlib import Path

CLOSED, REMOVED = 0x8, 0x200  # IN_CLOSE_WRITE, IN_DELETE of a file of the folder (inotify(7))
FOLDER_REMOVED, FOLDER_MOVED = 0x400, 0x800
GONE = FOLDER_REMOVED | FOLDER_MOVED | 0x2000 | 0x4000 | 0x8000  # or unmounted, events lost, the watch ended
ONLY_FOLDERS = 0x01000000
EVENT = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name that follows
MAX_BYTES = 1 << 16


class Watcher:
    """Watch one folder, from `start` on. active: whether the kernel reports anything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.active = False
        self._descriptor = -1
        self._poll = select.poll()
        self._watched: tuple[int, int] | None = None

    def start(self) -> bool:
        """Watch the folder that has this path now.

        True when it was not watched before, so earlier events were missed.
        """
        try:
            found = self.folder.stat()
        except OSError:
            self.close()
            return True
        if self._watched == (found.st_dev, found.st_ino):
            return False
        self.close()
        self._watched = (found.st_dev, found.st_ino)
        self._descriptor = _watch(self.folder)
        self.active = self._descriptor >= 0
        if self.active:
            self._poll.register(self._descriptor, select.POLLIN)
        return True

    def wait(self, seconds: float) -> None:
        """Wait for an event, at most so long."""
        if self.active:
            self._poll.poll(seconds * 1e3)
        else:
            time.sleep(seconds)

    def events(self) -> dict[str, int] | None:
        """Events since the last call by file name: CLOSED, REMOVED or both.

        None when anything may have happened.
        """
        found = dict[str, int]()
        while self.active:
            try:
                data = os.read(self._descriptor, MAX_BYTES)
            except BlockingIOError:
                break
            for mask, name in _parsed(data):
                if mask & GONE:
                    self.close()
                    return None
                found[name] = found.get(name, 0) | mask
        return found

    def close(self) -> None:
        """Stop watching; `start` begins anew."""
        if self._descriptor >= 0:
            self._poll.unregister(self._descriptor)
            # the kernel takes some 15 ms for it, which must not delay a process that has just got the card
            threading.Thread(target=os.close, args=(self._descriptor,), daemon=True).start()
        self._descriptor = -1
        self._watched = None
        self.active = False


def _watch(folder: Path) -> int:
    """A descriptor that reports events; -1 where there is none to be had."""
    wanted = CLOSED | REMOVED | FOLDER_REMOVED | FOLDER_MOVED | ONLY_FOLDERS
    try:
        libc = ctypes.CDLL(None)
        descriptor = int(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        if descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(folder), wanted) < 0:
            os.close(descriptor)
            return -1
    except (OSError, AttributeError):  # no such library or function
        return -1
    return descriptor


def _parsed(data: bytes) -> list[tuple[int, str]]:
    """(mask, name) of each event."""
    found = list[tuple[int, str]]()
    at = 0
    while at < len(data):
        _, mask, _, length = EVENT.unpack_from(data, at)
        at += EVENT.size
        found.append((mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
        at += length
    return found
