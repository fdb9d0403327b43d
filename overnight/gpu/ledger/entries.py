"""The files of a ledger: requests, grants, and a view of all of them at one moment."""

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from overnight.files import UNREADABLE
from overnight.gpu.ledger.scheduler import Size

REQUEST = re.compile(r"q-([1-9]\d{0,18})-([1-9]\d{0,8})-([1-9]\d{0,9})(-x)?", re.ASCII)
GRANT = re.compile(r"g-([1-9]\d{0,17})", re.ASCII)
MAX_BYTES = 1 << 16  # of metadata that are read
_encode = json.JSONEncoder(default=str).encode  # made once: a holder writes several times a second
_decode = json.JSONDecoder().raw_decode  # ignores what is left of a longer text


@dataclass(frozen=True)
class Request:
    """A request for a part of the card. owner: its metadata (experiment, step, since, use_mib ...)."""

    folder: Path
    holds: bool
    ticket: int
    mib: int
    pid: int
    exclusive: bool = False
    owner: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"q-{self.ticket}-{self.mib}-{self.pid}{'-x' if self.exclusive else ''}"

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def order(self) -> tuple[int, int, int]:
        return self.ticket, self.pid, self.mib

    @property
    def size(self) -> Size:
        return Size(self.mib, self.exclusive)

    @classmethod
    def parse(cls, folder: Path, name: str) -> Self | None:
        found = REQUEST.fullmatch(name)
        if found is None:
            return None
        ticket, mib, pid, exclusive = found.groups()
        return cls(folder, False, int(ticket), int(mib), int(pid), exclusive is not None)

    def with_owner(self) -> Self:
        """The same with the metadata in its file."""
        return self if self.owner else replace(self, owner=read_owner(self.path))


@dataclass(frozen=True)
class View:
    """The ledger at one moment: holders, then the queue in its order; the number of the youngest grant."""

    folder: Path
    names: frozenset[str]
    requests: list[Request]
    grants: int

    def unchanged(self) -> bool:
        """Whether no request came, went or died since; much cheaper than another snapshot."""
        return _names(self.folder) == self.names and all(_is_locked(r.path) for r in self.requests if r.holds)


def snapshot(folder: Path) -> View:
    """Every request whose owner lives; remove the files of the others."""
    names, grants = _list(folder)
    last = max(grants, default=0)
    granted = {_inode(folder / f"g-{number}"): number for number in grants}
    requests = list[Request]()
    dead = {f".{r.name}" for r in _parsed(folder, (name[1:] for name in names)) if not _lives(r.pid)}
    for request in _parsed(folder, names):
        try:
            inode = locked(request.path)
        except FileNotFoundError:  # it ended meanwhile
            continue
        if inode:
            requests.append(replace(request, holds=granted.pop(inode, 0) > 0))
        else:
            dead.add(request.name)
    dead |= {f"g-{number}" for number in granted.values() if number != last}
    for name in dead & names:
        remove(folder / name)
    requests.sort(key=lambda r: (not r.holds, r.order))
    return View(folder, frozenset(names - dead), requests, last)


def _list(folder: Path) -> tuple[set[str], set[int]]:
    """All names, and the numbers of the grants; no grant is missed up to the youngest that is listed.

    A listing may miss what comes while it is made, so it counts only when the youngest grant is the same as
    in the listing before.
    """
    before = -1
    while True:
        names = _names(folder)
        grants = {int(found[1]) for found in map(GRANT.fullmatch, names) if found}
        last = max(grants, default=0)
        if last == before:
            return set(names), grants
        before = last


def holders(folder: Path) -> list[Request]:
    return [r.with_owner() for r in snapshot(folder).requests if r.holds]


def create(request: Request, owner: dict[str, Any]) -> int:
    """Create a request's file, locked before it is visible; its descriptor.

    Raises FileExistsError for a name in use, FileNotFoundError when the folder was removed.
    """
    hidden = request.folder / f".{request.name}"
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_owner(descriptor, owner)
        os.link(hidden, request.path)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        remove(hidden)
    return descriptor


def grant(request: Request, number: int) -> bool:
    """Make a request the n-th grant; False when another has had that number.

    Raises FileNotFoundError when somebody removed the request.
    """
    path = request.folder / f"g-{number}"
    try:
        os.link(request.path, path)
    except FileExistsError:
        return False
    _, grants = _list(request.folder)
    if max(grants, default=0) == number:
        return True
    remove(path)  # there are younger ones: the one of this number was removed, and the view was an old one
    return False


def locked(path: Path) -> int:
    """The inode of a locked file, 0 when it is not locked. Raises FileNotFoundError."""
    try:  # non-blocking, since opening a pipe of that name would wait
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link or a socket: no request, whatever its name
            return 0
        raise
    try:  # a shared lock, so that two readers do not take each other for an owner
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.fstat(descriptor).st_ino
    else:
        return 0
    finally:
        os.close(descriptor)


def write_owner(descriptor: int, owner: dict[str, Any]) -> None:
    """Replace the metadata in a request's file. A full disk is no error."""
    with suppress(OSError):
        os.pwrite(descriptor, _encode(owner).encode(), 0)


def read_owner(path: Path) -> dict[str, Any]:
    """The metadata in a request's file; empty when it is torn or gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        values, _ = _decode(os.read(descriptor, MAX_BYTES).decode())
    except UNREADABLE:
        return {}
    finally:
        os.close(descriptor)
    return values if isinstance(values, dict) else {}


def amount(value: Any, most: float = 1e12) -> float | None:
    """A number from 0 to `most`; None for anything else: infinity, text, a thousand digits."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= most else None


def remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:  # somebody removed the whole folder; waiting processes make it again
        return frozenset()


def _parsed(folder: Path, names: Iterable[str]) -> list[Request]:
    return [request for request in (Request.parse(folder, name) for name in names) if request]


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:  # removed meanwhile
        return 0


def _is_locked(path: Path) -> bool:
    try:
        return bool(locked(path))
    except FileNotFoundError:
        return False


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
