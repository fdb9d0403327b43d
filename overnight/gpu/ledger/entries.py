"""The files of a ledger: what a request is called, whether its owner lives, and a view of all of them at one moment."""

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from overnight.gpu.ledger import liveness, metadata

TRIES = 8
MOST = 10**12  # grants; what has a higher number is none of ours, and could not be counted up
SETTLE_S = (0.0005, 0.001, 0.002, 0.004, 0.008)


@dataclass(frozen=True)
class Request:
    """One line of the ledger. `who`: what its owner says of itself (experiment, step, since, use_mib, peak_mib ...)."""

    folder: Path
    holds: bool
    ticket: int
    mib: int
    pid: int
    exclusive: bool = False
    who: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{'h' if self.holds else 'q'}-{self.ticket}-{self.mib}-{self.pid}{'-x' if self.exclusive else ''}"

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / self.name

    @property
    def order(self) -> tuple[int, int, int]:
        """What those in line are sorted by."""
        return self.ticket, self.pid, self.mib

    @classmethod
    def parse(cls, folder: Path, name: str) -> Self | None:
        """From a file's name; None for a file that is no request."""
        state, *numbers = name.removesuffix("-x").split("-")
        if (
            state not in ("q", "h")
            or len(numbers) != 3
            or not all(n.isdecimal() and n.isascii() for n in numbers)
        ):
            return None
        ticket, mib, pid = map(int, numbers)
        found = cls(folder, state == "h", ticket, mib, pid, name.endswith("-x"))
        return found if found.name == name else None  # a number may be written in more than one way

    def read(self) -> Self:
        """The same with what its owner says; nothing when that is torn or gone."""
        return self if self.who else replace(self, who=metadata.read(self.path))


@dataclass(frozen=True)
class View:
    """The ledger as it was at one moment; not `sure` when it changed faster than one can look. lost: somebody holds without a file."""

    folder: Path
    names: frozenset[str]
    requests: list[Request]  # holders first, then the queue in its order
    grants: int  # the number of the youngest grant
    lost: bool = False
    sure: bool = True

    def unchanged(self) -> bool:
        """Whether nobody came, went or died since: much cheaper than to look again."""
        try:
            return (
                self.sure
                and frozenset(os.listdir(self.folder)) == self.names
                and all(locked(r.path) for r in self.requests if r.holds)
            )
        except OSError:
            return False


def look(folder: Path, budget_mib: int) -> View:
    """Every request whose owner lives; the files of the others are removed.

    A live grant whose request has no file, or a witness that has none: that one was renamed, or is ending, just now, so look again. When it
    stays so, somebody removed files. Then the witness says how much is held, or else the content of the grant, and when that is torn, it
    counts as the whole budget.
    """
    for _ in range(TRIES):
        names = liveness.bound(
            folder
        )  # read first: who comes meanwhile has files, or will see who is looking
        view, lost = _look(folder)
        known = {r.order for r in view.requests}
        gone = [r for name in names if (r := Request.parse(folder, name)) and r.order not in known]
        if view.sure and not lost and not gone:
            return view
    gone += _orphans(folder, lost, budget_mib, gone)
    return replace(
        view, requests=[replace(r, who=r.who or _said(r)) for r in gone] + view.requests, lost=bool(gone)
    )


def _look(folder: Path) -> tuple[View, list[int]]:
    """One look at the files: the view, and the live grants without a request."""
    names = _names(folder)
    numbers = {number for n in names if (number := _number(n))}
    grants = {number: inode for number in numbers if (inode := _inode(folder / f"g-{number}"))}
    alive, sure = dict[int, Request](), True
    for request in [r for name in names if (r := Request.parse(folder, name))]:
        try:
            inode = locked(request.path)
        except FileNotFoundError:  # it ended or was granted while we looked
            sure = False
            continue
        if inode:
            alive[inode] = replace(request, holds=request.holds or inode in grants.values())
        else:
            _remove(request.path)
            names.discard(request.name)
    last = max(numbers, default=0)
    lost, still = _lost(folder, [number for number in grants if grants[number] not in alive])
    dead = _dead(
        folder,
        names,
        numbers - {number for number, inode in grants.items() if inode in alive} - {*lost, last},
    )
    requests = sorted(alive.values(), key=lambda r: (not r.holds, r.order))
    return View(folder, frozenset(names - dead), requests, last, sure=sure and still), lost


def _lost(folder: Path, grants: list[int]) -> tuple[list[int], bool]:
    """Those of these grants that live; and whether none of them has gone meanwhile."""
    found, sure = list[int](), True
    for number in grants:
        try:
            found += [number] if locked(folder / f"g-{number}") else []
        except FileNotFoundError:
            sure = False
    return found, sure


def _dead(folder: Path, names: set[str], grants: set[int]) -> set[str]:
    """Files that nobody needs, now removed: ended grants, and requests that never will be shown."""
    dead = {f"g-{number}" for number in grants} | {
        n for n in names if n.startswith(".") and _abandoned(folder, n[1:])
    }
    for name in dead:
        _remove(folder / name)
    return dead


def named(folder: Path) -> list[Request]:
    """The requests by their names alone, those of the dead among them."""
    return [r for name in _names(folder) if (r := Request.parse(folder, name))]


def settle(folder: Path, closed: list[str]) -> None:
    """Wait for the locks and witnesses of those who have just closed their files: the kernel tells of it a moment before it drops them."""
    for pause in SETTLE_S:
        held = liveness.bound(folder) if closed else []
        if not any(name in held or _is_locked(folder / name) for name in closed):
            return
        time.sleep(pause)


def locked(path: Path) -> int:
    """The inode of a file that somebody has locked, 0 when nobody has. Raises FileNotFoundError."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        )  # a pipe of that name would be waited for
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link or a socket: no request, whatever its name
            return 0
        raise
    try:
        fcntl.flock(
            descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # shared, so that two who look do not take each other for an owner
    except BlockingIOError:
        return os.fstat(descriptor).st_ino
    else:
        return 0
    finally:
        os.close(descriptor)


def create(request: Request, who: dict[str, Any]) -> int:
    """The file of a new request, locked before anybody can see it; its descriptor. Raises FileExistsError, OSError."""
    hidden = request.folder / f".{request.name}"  # while it is there, no other thread makes one of this name
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tell(descriptor, request, who)
        if in_use(request):
            raise FileExistsError(errno.EEXIST, "another request of this process", str(request.path))
        hidden.rename(request.path)
    except BaseException:
        os.close(descriptor)
        _remove(hidden)
        raise
    return descriptor


def in_use(request: Request) -> bool:
    """Whether this process has a request of that name, one that waits or (looked for only then: the former becomes the latter) holds."""
    return request.path.exists() or replace(request, holds=True).path.exists()


def tell(descriptor: int, request: Request, who: dict[str, Any]) -> None:
    """Replace what a request says of itself."""
    metadata.write(
        descriptor,
        {"ticket": request.ticket, "mib": request.mib, "pid": request.pid, "exclusive": request.exclusive}
        | who,
    )


def _said(request: Request) -> dict[str, Any]:
    """What somebody without a file says of itself: its owner still has it open."""
    at = Path(f"/proc/{request.pid}/fd")
    with suppress(OSError):
        for descriptor in at.iterdir():
            with suppress(OSError):
                if descriptor.readlink().name.removesuffix(" (deleted)") in (
                    request.name,
                    f"q{request.name[1:]}",
                ):
                    return metadata.read(descriptor)
    return {}


def _orphans(folder: Path, grants: list[int], budget_mib: int, gone: list[Request]) -> list[Request]:
    """Holders whose request was removed, from what their grants still say, but for those that witnesses tell of."""
    found, known = [_orphan(folder, number, budget_mib) for number in grants], {r.order for r in gone}
    torn, whole = [r for r in found if not r.pid], [r for r in found if r.pid]
    spare = len(known - {r.order for r in whole})  # witnesses that may be of those who can say nothing
    return [r for r in whole if r.order not in known] + torn[spare:]


def _orphan(folder: Path, number: int, budget_mib: int) -> Request:
    """From a grant; all of the budget, and of nobody, where that says nothing that could be."""
    said = metadata.read(folder / f"g-{number}")
    mib, ticket, pid = (metadata.amount(said.get(key), most=1 << 63) for key in ("mib", "ticket", "pid"))
    if not mib or not ticket or not pid or mib > budget_mib:
        return Request(folder, True, 0, budget_mib, 0, who=said)
    return Request(folder, True, int(ticket), int(mib), int(pid), said.get("exclusive") is True, said)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:  # somebody removed the whole folder; those who wait make it again
        return set()


def _number(name: str) -> int:
    """Of a grant's file, else 0."""
    digits = name[2:] if name.startswith("g-") and name.isascii() and name[2:].isdecimal() else "0"
    return int(digits) if digits[0] != "0" and len(digits) <= len(str(MOST)) and int(digits) <= MOST else 0


def _inode(path: Path) -> int:
    """Of a file; what else has such a name takes its number, and holds nothing."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_ino if stat.S_ISREG(found.st_mode) else 0


def _abandoned(folder: Path, name: str) -> bool:
    """Whether a request that was not yet shown will never be."""
    request = Request.parse(folder, name)
    return (
        request is not None
        and not Path(f"/proc/{request.pid}").exists()
        and not _is_locked(folder / f".{name}")
    )


def _is_locked(path: Path) -> bool:
    try:
        return bool(locked(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def youngest(folder: Path) -> int:
    """The number of the youngest grant."""
    return max(map(_number, _names(folder)), default=0)
