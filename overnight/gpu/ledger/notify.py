"""What wakes those who wait in line: the kernel tells what happens to the files of a folder (inotify), also when their owner is killed.

A holder that gives back removes its file; one that is killed loses its last descriptor, which is a "close after writing" of the file, a
moment before its lock is dropped. Where the kernel has no watch to give (a limit of the user, an odd file system) nobody is told
anything, and whoever waits looks ten times a second.
"""

import ctypes
import os
import select
import struct
import threading
import time
from pathlib import Path

CLOSED, REMOVED = 0x8, 0x200  # IN_CLOSE_WRITE, IN_DELETE of a file of the folder (inotify(7))
GONE = (
    0x400 | 0x800 | 0x2000 | 0x4000 | 0x8000
)  # the folder removed, moved or unmounted, events lost, the watch at its end
ONLY_FOLDERS = 0x01000000
EVENT = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name that follows
BYTES = 1 << 16


class Bell:
    """Rung by the kernel for one folder, from `arm` on. rings: whether the kernel does so at all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rings = folder, False
        self._kernel = -1
        self._poll = select.poll()
        self._watched: tuple[int, int] | None = None

    def arm(self) -> bool:
        """Watch the folder that has this path now. Whether it was not watched before: then what happened until now was told to nobody."""
        try:
            found = self.folder.stat()
        except OSError:
            self.close()
            return True
        if self._watched == (found.st_dev, found.st_ino):
            return False
        self.close()
        self._watched = (found.st_dev, found.st_ino)
        self._kernel = _watch(self.folder)
        self.rings = self._kernel >= 0
        if self.rings:
            self._poll.register(self._kernel, select.POLLIN)
        return True

    def wait(self, seconds: float) -> None:
        """Until it rings, or until the time is over."""
        if self.rings:
            self._poll.poll(seconds * 1e3)
        else:
            time.sleep(seconds)

    def heard(self) -> dict[str, int] | None:
        """What has happened since, by name: CLOSED, REMOVED or both; None when that could be anything."""
        found = dict[str, int]()
        while self.rings:
            try:
                told = os.read(self._kernel, BYTES)
            except BlockingIOError:
                break
            for mask, name in _events(told):
                if mask & GONE:
                    self.close()
                    return None
                found[name] = found.get(name, 0) | mask
        return found

    def close(self) -> None:
        """Stop; `arm` begins anew."""
        if self._kernel >= 0:
            self._poll.unregister(self._kernel)
            # the kernel takes some 15 ms for it, in which nobody who has just got the card should stand still
            threading.Thread(target=os.close, args=(self._kernel,), daemon=True).start()
        self._kernel, self._watched, self.rings = -1, None, False


def _watch(folder: Path) -> int:
    """A descriptor that tells; -1 where there is none to be had."""
    try:
        libc = ctypes.CDLL(None)
        kernel = int(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        if (
            kernel >= 0
            and libc.inotify_add_watch(
                kernel, os.fsencode(folder), CLOSED | REMOVED | 0x400 | 0x800 | ONLY_FOLDERS
            )
            < 0
        ):
            os.close(kernel)
            return -1
    except (OSError, AttributeError):  # no such library or function
        return -1
    return kernel


def _events(told: bytes) -> list[tuple[int, str]]:
    """(mask, name) of each."""
    found, at = list[tuple[int, str]](), 0
    while at < len(told):
        _, mask, _, length = EVENT.unpack_from(told, at)
        at += EVENT.size
        found.append((mask, os.fsdecode(told[at : at + length].rstrip(b"\0"))))
        at += length
    return found
