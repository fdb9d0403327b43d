"""The files of a ledger: what a request is called, whether its owner lives, and a view of all of them at one moment."""

import errno
import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

TRIES = 8
MOST_DIGITS = 20
LOST = -1
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
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"{'h' if self.holds else 'q'}-{self.ticket}-{self.mib}-{self.pid}{'-x' if self.exclusive else ''}"

    @property
    def order(self) -> tuple[int, int, int]:
        """What those in line are sorted by."""
        return self.ticket, self.pid, self.mib

    @classmethod
    def parse(cls, folder: Path, name: str) -> Self | None:
        """From a file's name; None for a file that is no request."""
        state, *numbers = name.removesuffix("-x").split("-")
        if state not in ("q", "h") or len(numbers) != 3 or not all(n.isdecimal() and n.isascii() for n in numbers):
            return None
        ticket, mib, pid = map(int, numbers)
        return cls(folder, state == "h", ticket, mib, pid, name.endswith("-x"))

    def read(self) -> Self:
        """The same with what its owner says; nothing when that is torn or gone."""
        return replace(self, who=content(self.path))


@dataclass(frozen=True)
class View:
    """The ledger as it was at one moment; not `sure` when it changed faster than one can look.

    beside: the numbers of the grants that are held, LOST for one that has no file of that kind; mark: whose the youngest grant is;
    whole: everything that the youngest grant said of those beside it is there, so that nobody has removed files.
    """

    folder: Path
    names: frozenset[str]
    requests: list[Request]  # holders first, then the queue in its order
    grants: int  # the number of the youngest grant
    beside: tuple[int, ...] = ()
    mark: tuple[Any, ...] = ()
    whole: bool = True
    sure: bool = True

    def unchanged(self) -> bool:
        """Whether nobody came, went or died since: much cheaper than to look again."""
        try:
            return self.sure and frozenset(os.listdir(self.folder)) == self.names and all(locked(r.path) for r in self.requests if r.holds)
        except OSError:
            return False


def look(folder: Path, budget_mib: int, mine: int = 0) -> View:
    """Every request whose owner lives; the files of the others are removed.

    A live grant whose request has no file: that was renamed just now, so look again. When it stays away, somebody removed it; then its
    content says how much it holds, and when that is torn, it counts as the whole budget. mine: the inode of a file of this ledger that
    the caller has locked; with it, where files are missing, the kernel's list of locks (which costs 10 ms) shows even holders whose every
    file was removed.
    """
    for _ in range(TRIES):
        view, alive, lost = _look(folder)
        if view.sure and not lost:
            break
    found = [_orphan(folder, number, budget_mib) for number in lost.values()]
    if mine and not view.whole:
        from overnight.gpu.survivors import removed

        gone = removed(folder, mine, {*alive, *lost})
        view, found = replace(view, beside=view.beside + (LOST,) * len(gone)), found + gone
    return replace(view, requests=found + view.requests) if found else view


def _look(folder: Path) -> tuple[View, dict[int, Request], dict[int, int]]:
    """One look: the view, its requests by inode, and the live grants without a request (inode: number)."""
    names = _names(folder)
    grants = {number: inode for n in names if (number := _number(n)) and (inode := _inode(folder / n))}
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
            names.discard(request.path.name)
    held, last = {number: inode for number, inode in grants.items() if inode in alive}, max(grants, default=0)
    lost, still = _lost(folder, {number: inode for number, inode in grants.items() if number not in held})
    facts = content(folder / f"g-{last}") if last else {}
    said = _said(facts)
    dead = _dead(folder, names, grants.keys() - held.keys() - {*lost.values(), last, *(said or ())})
    bare = sum(r.holds for inode, r in alive.items() if inode not in held.values())
    beside = (*held, *lost.values(), *[LOST] * bare)
    whole = said is not None and said <= grants.keys() and ("after" not in facts or facts["after"] == [*mark(folder, last - 1)])
    requests = sorted(alive.values(), key=lambda r: (not r.holds, r.order))
    return View(folder, frozenset(names - dead), requests, last, beside, _mark(grants.get(last), facts), whole, sure and still), alive, lost


def _lost(folder: Path, grants: dict[int, int]) -> tuple[dict[int, int], bool]:
    """Those of these grants (number: inode) that live, by inode; and whether none of them has gone meanwhile."""
    found, sure = dict[int, int](), True
    for number, inode in grants.items():
        try:
            found |= {inode: number} if locked(folder / f"g-{number}") else {}
        except FileNotFoundError:
            sure = False
    return found, sure


def _said(facts: dict[str, Any]) -> set[int] | None:
    """The grants that were held when this one was made, as its owner wrote before; None when that is torn."""
    said = facts.get("beside")
    return set(said) if isinstance(said, list) and all(isinstance(n, int) for n in said) else None


def mark(folder: Path, number: int) -> tuple[Any, ...]:
    """Whose a grant is: what tells it from another that got its number after files were removed; nothing where there is none."""
    return _mark(_inode(path := folder / f"g-{number}"), content(path))


def _mark(inode: int | None, facts: dict[str, Any]) -> tuple[Any, ...]:
    return (inode, facts.get("pid"), facts.get("since")) if inode else ()


def _dead(folder: Path, names: set[str], grants: set[int]) -> set[str]:
    """Files that nobody needs, now removed: ended grants that the youngest says nothing of, and requests that never will be shown."""
    dead = {f"g-{number}" for number in grants} | {n for n in names if n.startswith(".") and _abandoned(folder, n[1:])}
    for name in dead:
        _remove(folder / name)
    return dead


def named(folder: Path) -> list[Request]:
    """The requests by their names alone, those of the dead among them."""
    return [r for name in _names(folder) if (r := Request.parse(folder, name))]


def settle(folder: Path, closed: list[str]) -> None:
    """Wait for the locks of files that their owners have just closed: the kernel tells of it a moment before it drops them."""
    for pause in SETTLE_S:
        if not any(_is_locked(folder / name) for name in closed):
            return
        time.sleep(pause)


def locked(path: Path) -> int:
    """The inode of a file that somebody has locked, 0 when nobody has. Raises FileNotFoundError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe of that name would be waited for
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link or a socket: no request, whatever its name
            return 0
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who look do not take each other for an owner
    except BlockingIOError:
        return os.fstat(descriptor).st_ino
    else:
        return 0
    finally:
        os.close(descriptor)


def create(request: Request, who: dict[str, Any]) -> int:
    """The file of a new request, locked before anybody can see it; its descriptor. Raises FileExistsError, OSError."""
    hidden = request.folder / f".{request.path.name}"  # while it is there, no other thread makes one of this name
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tell(descriptor, {"mib": request.mib, "pid": request.pid, "exclusive": request.exclusive, **who})
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


def tell(descriptor: int, who: dict[str, Any]) -> None:
    """Replace what a request says of itself: for people, so a full disk is no reason to stop."""
    text = json.dumps(who, default=str).encode()
    with suppress(OSError):
        os.pwrite(descriptor, text.ljust(os.fstat(descriptor).st_size), 0)


def content(path: Path | str) -> dict[str, Any]:
    """What a request, or another file of a card's folder, says of itself; nothing when that is torn or gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        values = json.loads(os.read(descriptor, 1 << 16))
    except (OSError, ValueError):
        return {}
    finally:
        os.close(descriptor)
    return values if isinstance(values, dict) else {}


def _orphan(folder: Path, number: int, budget_mib: int) -> Request:
    """A holder whose request was removed, from what its grant still says."""
    said = content(folder / f"g-{number}")
    mib, pid = (said[key] if isinstance(said.get(key), int) else None for key in ("mib", "pid"))
    return Request(folder, True, 0, budget_mib if mib is None else mib, pid or 0, said.get("exclusive") is True, said)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:  # somebody removed the whole folder; those who wait make it again
        return set()


def _number(name: str) -> int:
    """Of a grant's file, else 0; what has more digits than there will ever be grants is none of ours, and could not be counted up."""
    return int(name[2:]) if name.startswith("g-") and name[2:].isdecimal() and name.isascii() and len(name) <= MOST_DIGITS else 0


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _abandoned(folder: Path, name: str) -> bool:
    """Whether a request that was not yet shown will never be."""
    request = Request.parse(folder, name)
    return request is not None and not Path(f"/proc/{request.pid}").exists()


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
