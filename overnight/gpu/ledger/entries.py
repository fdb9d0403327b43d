"""The files of a ledger: requests, grants, and a view of all of them at one moment."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from overnight.gpu.ledger import liveness, metadata

TRIES = 8
MAX_GRANTS = 10**12  # a file with a higher number is not the ledger's, and could not be counted up
DELETED = " (deleted)"


@dataclass(frozen=True)
class Request:
    """A request for a part of the card.

    `owner`: its metadata (experiment, step, since, use_mib, peak_mib ...).
    """

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
        state = "h" if self.holds else "q"
        return f"{state}-{self.ticket}-{self.mib}-{self.pid}{'-x' if self.exclusive else ''}"

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def order(self) -> tuple[int, int, int]:
        """The sort key of the queue."""
        return self.ticket, self.pid, self.mib

    @classmethod
    def parse(cls, folder: Path, name: str) -> Self | None:
        """Parse a file name; None for a file that is no request."""
        state, *numbers = name.removesuffix("-x").split("-")
        if state not in ("q", "h") or len(numbers) != 3:
            return None
        if not all(n.isdecimal() and n.isascii() for n in numbers):
            return None
        ticket, mib, pid = map(int, numbers)
        found = cls(folder, state == "h", ticket, mib, pid, name.endswith("-x"))
        return found if found.name == name else None  # a number may be written in more than one way

    def with_owner(self) -> Self:
        """The same with the metadata in its file; empty when that is torn or gone."""
        return self if self.owner else replace(self, owner=metadata.read(self.path))


@dataclass(frozen=True)
class View:
    """The ledger at one moment.

    requests: holders first, then the queue in its order; grants: the number of the youngest grant;
    has_orphans: some holder has no file; consistent: False when the files changed faster than they could be
    read.
    """

    folder: Path
    names: frozenset[str]
    requests: list[Request]
    grants: int
    has_orphans: bool = False
    consistent: bool = True

    def unchanged(self) -> bool:
        """Whether no request came, went or died since; much cheaper than another snapshot."""
        try:
            return (
                self.consistent
                and frozenset(os.listdir(self.folder)) == self.names
                and all(locked(r.path) for r in self.requests if r.holds)
            )
        except OSError:
            return False


def snapshot(folder: Path, budget_mib: int) -> View:
    """Every request whose owner lives; remove the files of the others.

    A live grant without a request file, or a liveness token without one, was just renamed or is ending, so
    try again. When it stays so, somebody removed files: then the token says how much is held, or else the
    content of the grant; a torn one counts as the whole budget.
    """
    for _ in range(TRIES):
        tokens = liveness.bound_names(folder)  # read first: a later claim has files, or sees this reader
        view, lost = _snapshot_once(folder)
        known = {r.order for r in view.requests}
        gone = [r for r in _parsed(folder, tokens) if r.order not in known]
        if view.consistent and not lost and not gone:
            return view
    gone += _orphans(folder, lost, budget_mib, gone)
    orphans = [replace(r, owner=r.owner or _metadata_of_removed(r)) for r in gone]
    return replace(view, requests=orphans + view.requests, has_orphans=bool(gone))


def _snapshot_once(folder: Path) -> tuple[View, list[int]]:
    """The view, and the live grants without a request."""
    names = _names(folder)
    numbers = {_grant_number(name) for name in names} - {0}
    grants = _grant_inodes(folder, numbers)
    alive, consistent = _live_requests(folder, names, set(grants.values()))
    last = max(numbers, default=0)
    lost, still = _lost(folder, [number for number in grants if grants[number] not in alive])
    live = {number for number, inode in grants.items() if inode in alive}
    dead = _remove_dead(folder, names, numbers - live - {*lost, last})
    requests = sorted(alive.values(), key=lambda r: (not r.holds, r.order))
    return View(folder, frozenset(names - dead), requests, last, consistent=consistent and still), lost


def _grant_inodes(folder: Path, numbers: set[int]) -> dict[int, int]:
    inodes = {number: _inode(folder / f"g-{number}") for number in numbers}
    return {number: inode for number, inode in inodes.items() if inode}


def _live_requests(folder: Path, names: set[str], granted: set[int]) -> tuple[dict[int, Request], bool]:
    """Requests with a living owner by inode, and whether none of them went meanwhile.

    Remove the others from disk and `names`.
    """
    alive = dict[int, Request]()
    consistent = True
    for request in _parsed(folder, names):
        try:
            inode = locked(request.path)
        except FileNotFoundError:  # it ended or was granted meanwhile
            consistent = False
            continue
        if inode:
            alive[inode] = replace(request, holds=request.holds or inode in granted)
        else:
            _remove(request.path)
            names.discard(request.name)
    return alive, consistent


def _lost(folder: Path, grants: list[int]) -> tuple[list[int], bool]:
    """The live ones among these grants, and whether none of the grants went meanwhile."""
    found = list[int]()
    consistent = True
    for number in grants:
        try:
            found += [number] if locked(folder / f"g-{number}") else []
        except FileNotFoundError:
            consistent = False
    return found, consistent


def _remove_dead(folder: Path, names: set[str], grants: set[int]) -> set[str]:
    """Remove ended grants, and requests whose process ended before it showed them; their names."""
    hidden = {name for name in names if name.startswith(".") and _abandoned(folder, name[1:])}
    dead = {f"g-{number}" for number in grants} | hidden
    for name in dead:
        _remove(folder / name)
    return dead


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


def create(request: Request, owner: dict[str, Any]) -> int:
    """Create a request's file, locked before it is visible; its descriptor.

    Raises FileExistsError, OSError.
    """
    hidden = request.folder / f".{request.name}"  # while it is there, no other thread makes one of this name
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_metadata(descriptor, request, owner)
        if in_use(request):
            raise FileExistsError(errno.EEXIST, "another request of this process", str(request.path))
        hidden.rename(request.path)
    except BaseException:
        os.close(descriptor)
        _remove(hidden)
        raise
    return descriptor


def in_use(request: Request) -> bool:
    """Whether this process has a request of that name.

    Waiting is checked first, since a waiting one becomes a holding one.
    """
    return request.path.exists() or replace(request, holds=True).path.exists()


def write_metadata(descriptor: int, request: Request, owner: dict[str, Any]) -> None:
    """Replace the metadata in a request's file."""
    own = {"ticket": request.ticket, "mib": request.mib, "pid": request.pid, "exclusive": request.exclusive}
    metadata.write(descriptor, own | owner)


def open_in(request: Request) -> list[int]:
    """Pids of the processes that have a request's file open: its owner, and what was forked from it."""
    wanted = {str(request.path), f"{request.path}{DELETED}"}
    return [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and wanted & set(_open_files(pid))]


def _open_files(pid: str) -> Iterator[str]:
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")


def _metadata_of_removed(request: Request) -> dict[str, Any]:
    """The metadata of a holder whose file was removed: its owner still has it open."""
    names = (request.name, f"q{request.name[1:]}")
    with suppress(OSError):
        for descriptor in Path(f"/proc/{request.pid}/fd").iterdir():
            with suppress(OSError):
                if descriptor.readlink().name.removesuffix(DELETED) in names:
                    return metadata.read(descriptor)
    return {}


def _orphans(folder: Path, grants: list[int], budget_mib: int, gone: list[Request]) -> list[Request]:
    """Holders whose request was removed, from the content of their grants.

    `gone`: those known by their liveness tokens.
    """
    found = [_orphan(folder, number, budget_mib) for number in grants]
    known = {r.order for r in gone}
    readable = [r for r in found if r.pid]
    torn = [r for r in found if not r.pid]
    spare = len(known - {r.order for r in readable})  # tokens that may belong to torn grants
    return [r for r in readable if r.order not in known] + torn[spare:]


def _orphan(folder: Path, number: int, budget_mib: int) -> Request:
    """From a grant's content; the whole budget with pid 0 where that is not plausible."""
    owner = metadata.read(folder / f"g-{number}")
    mib, ticket, pid = (metadata.amount(owner.get(key), most=1 << 63) for key in ("mib", "ticket", "pid"))
    if not mib or not ticket or not pid or mib > budget_mib:
        return Request(folder, True, 0, budget_mib, 0, owner=owner)
    return Request(folder, True, int(ticket), int(mib), int(pid), owner.get("exclusive") is True, owner)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:  # somebody removed the whole folder; waiting processes make it again
        return set()


def _parsed(folder: Path, names: set[str] | list[str]) -> list[Request]:
    return [request for request in (Request.parse(folder, name) for name in names) if request]


def _grant_number(name: str) -> int:
    """The number of a grant's file, 0 for other files."""
    digits = name[2:] if name.startswith("g-") and name.isascii() and name[2:].isdecimal() else "0"
    plausible = digits[0] != "0" and len(digits) <= len(str(MAX_GRANTS)) and int(digits) <= MAX_GRANTS
    return int(digits) if plausible else 0


def _inode(path: Path) -> int:
    """The inode of a regular file, else 0: anything else of that name takes its number, and holds nothing."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_ino if stat.S_ISREG(found.st_mode) else 0


def _abandoned(folder: Path, name: str) -> bool:
    """Whether the process of a request that is still hidden has ended."""
    request = Request.parse(folder, name)
    if request is None or Path(f"/proc/{request.pid}").exists():
        return False
    return not _is_locked(folder / f".{name}")


def _is_locked(path: Path) -> bool:
    try:
        return bool(locked(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def youngest_grant(folder: Path) -> int:
    """The number of the youngest grant."""
    return max(map(_grant_number, _names(folder)), default=0)
