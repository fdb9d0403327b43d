"""Whether a card's ledger can be kept where it is to lie. A file system that cannot keep it would let every step start unprotected."""

import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from overnight.errors import ServiceError
from overnight.gpu.card import Card
from overnight.gpu.ledger.entries import Request, locked
from overnight.gpu.ledger.waiter import unusable
from overnight.paths import state

# their locks are of one machine only, or are asked from a server that may be away, or come and go with the mount
REMOTE = {"9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
          "orangefs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "wekafs"}  # fmt: skip
REMOTE_FUSE = {
    "ceph",
    "gcsfuse",
    "glusterfs",
    "gvfsd-fuse",
    "juicefs",
    "rclone",
    "s3fs",
    "sshfs",
    "vmhgfs-fuse",
}
Link = Callable[[Path, Path], None]
WAY_OUT = "set OVERNIGHT_CARD_DIR to a folder on a local disk, the same one in every shell and service, e.g. /var/tmp/overnight"


def ready(card: Card, mounts: str | None = None, link: Link = os.link) -> None:
    """Raise ServiceError or DiskFull unless the ledger of *card* can be kept in its folder.

    mounts: the text of /proc/self/mountinfo; link: how a second name is made.
    """
    folder, kind = card.folder, placed(card, mounts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = _try(folder, link)
    except OSError as error:
        raise unusable(folder, error) from None
    if problem:
        raise ServiceError(
            f"{folder}: the ledger of the card cannot be kept there, the file system ({kind}) {problem}; {WAY_OUT}"
        )


def placed(card: Card, mounts: str | None = None) -> str:
    """The file system of its ledger; ServiceError where that could not be the one ledger of this machine's processes."""
    folder = card.folder
    if not folder.is_absolute():
        raise ServiceError(
            f"OVERNIGHT_CARD_DIR={folder.parent}: is relative, so every folder would have a ledger of its own; write it whole"
        )
    kind = file_system(folder, mounts)
    if remote(kind):
        raise ServiceError(
            f"{folder}: the ledger of the card cannot be kept on a network file system ({kind}); {WAY_OUT}"
        )
    return kind


def ready_host() -> None:
    """Raise ServiceError or DiskFull unless the places on this host can be counted in the checkout."""
    folder = state() / "slots"
    try:
        folder.mkdir(exist_ok=True)
        problem = _try(folder, os.link)
    except OSError as error:
        raise ServiceError(
            f"{folder}: cannot be written to ({error.strerror}); make it writable, or use a checkout that is"
        ) from None
    if problem:
        raise ServiceError(
            f"{folder}: its file system {problem}, which running steps side by side needs; use a checkout on a local disk"
        )


def remote(kind: str) -> bool:
    """Whether a file system's locks say nothing about this machine's processes."""
    return kind in REMOTE or (kind.startswith("fuse.") and kind.removeprefix("fuse.") in REMOTE_FUSE)


def file_system(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that holds *path*, which need not exist yet; proc_pid_mountinfo(5). Empty when that is unknown."""
    with suppress(OSError):
        mounts = Path("/proc/self/mountinfo").read_text() if mounts is None else mounts
    real = Path(os.path.realpath(path))  # which stops at links that lead to themselves
    above = {real, *real.parents}
    best, kind = -1, ""
    for line in (mounts or "").splitlines():
        left, _, right = line.partition(" - ")
        if len(left.split()) < 5 or not right:
            continue
        point = Path(_unescaped(left.split()[4]))
        if (
            point in above and len(point.parts) >= best
        ):  # of two at the same place, the later one covers the earlier
            best, kind = len(point.parts), right.split()[0]
    return kind


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _try(folder: Path, link: Link) -> str:
    """What of a grant cannot be done in *folder*: the first thing that fails, empty when all works. Raises OSError."""
    ticket = secrets.randbits(
        60
    )  # requests that are never shown: whoever looks there sweeps what a killed process leaves
    path, second = (folder / f".{Request(folder, False, ticket, mib, os.getpid()).name}" for mib in (0, 1))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return _lacks("locks", error)
        try:
            link(path, second)
        except OSError as error:
            return _lacks("hard links", error)
        return "" if locked(second) else "has locks that do not hold"
    finally:
        os.close(descriptor)
        for name in (second, path):
            with suppress(OSError):
                name.unlink()


def _lacks(what: str, error: OSError) -> str:
    """What the file system cannot do; raises the error again when that has other reasons."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error
    return f"has no {what}"
