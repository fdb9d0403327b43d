"""Whether the file system can keep a card's ledger; without one every step would start unprotected."""

import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from overnight.errors import DiskFull, OvernightError, ServiceError
from overnight.files import is_disk_full
from overnight.gpu.card import Card
from overnight.gpu.ledger.entries import Request, locked
from overnight.paths import state

# locks of one machine only, or asked from a server that may be away, or gone with the mount
REMOTE = {
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "glusterfs", "gpfs", "lustre",
    "ncpfs",
    "nfs", "nfs4", "orangefs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "wekafs",
    *(f"fuse.{name}" for name in ("ceph", "gcsfuse", "glusterfs", "gvfsd-fuse", "juicefs", "rclone", "s3fs")),
    "fuse.sshfs", "fuse.vmhgfs-fuse",
}  # fmt: skip
NO_LOCAL_DISK = (
    "set OVERNIGHT_CARD_DIR to a folder on a local disk, the same one in every shell and service, "
    "e.g. /var/tmp/overnight"
)
Link = Callable[[Path, Path], None]
Mounts = list[tuple[str, str]]


def check_ledger(card: Card, mounts: Mounts | None = None, link: Link = os.link) -> None:
    """Raise ServiceError or DiskFull unless the ledger of *card* can be kept in its folder.

    mounts: (path, type) of all file systems; link: makes a hard link.
    """
    folder = card.folder
    kind = check_location(card, mounts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = _try_grant(folder, link)
    except OSError as error:
        raise unusable(folder, error) from None
    if problem:
        raise ServiceError(
            f"{folder}: the ledger of the card cannot be kept there, the file system ({kind}) {problem}; "
            f"{NO_LOCAL_DISK}"
        )


def check_location(card: Card, mounts: Mounts | None = None) -> str:
    """The type of its file system. Raises ServiceError where processes would not share one ledger."""
    folder = card.folder
    if not folder.is_absolute():
        raise ServiceError(
            f"OVERNIGHT_CARD_DIR={folder.parent}: is relative, so every folder would have a ledger of its "
            "own; write it whole"
        )
    kind = file_system_type(folder, mounts)
    if kind in REMOTE:
        raise ServiceError(
            f"{folder}: the ledger of the card cannot be kept on a network file system ({kind}); "
            f"{NO_LOCAL_DISK}"
        )
    return kind


def check_slots() -> None:
    """Raise ServiceError unless slots for steps on this host can be counted in the checkout."""
    folder = state() / "slots"
    try:
        folder.mkdir(exist_ok=True)
        problem = _try_grant(folder, os.link)
    except OSError as error:
        raise ServiceError(
            f"{folder}: cannot be written to ({error.strerror}); make it writable, or use a checkout that is"
        ) from None
    if problem:
        raise ServiceError(
            f"{folder}: its file system {problem}, which running steps side by side needs; "
            "use a checkout on a local disk"
        )


def unusable(folder: Path, error: OSError) -> OvernightError:
    if is_disk_full(error):
        return DiskFull(
            f"{folder}: the disk is full, so the ledger of the card cannot take another request; "
            "free some room"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ServiceError(
            f"{folder}: no more leases, this process has too many open files; hold fewer at once, "
            "or raise `ulimit -n`"
        )
    return ServiceError(
        f"{folder}: the ledger of the card cannot be kept there ({error.strerror}); "
        "set OVERNIGHT_CARD_DIR to another folder"
    )


def file_system_type(path: Path, mounts: Mounts | None = None) -> str:
    """Of *path*, which need not exist yet; empty when unknown."""
    import psutil

    if mounts is None:
        mounts = [(m.mountpoint, m.fstype) for m in psutil.disk_partitions(all=True)]
    real = Path(os.path.realpath(path))  # which stops at links that lead to themselves
    above = [(point, kind) for point, kind in mounts if real.is_relative_to(point)]
    above.reverse()  # of two at one place, the later one covers the earlier
    return max(above, key=lambda mount: len(mount[0]), default=("", ""))[1]


def _try_grant(folder: Path, link: Link) -> str:
    """Try the steps of a grant: what the file system lacks, else empty. Raises OSError."""
    # requests that stay hidden; the next reader of the folder removes what a killed process leaves
    ticket = secrets.randbits(60) + 1
    path, second = (folder / f".{Request(folder, False, ticket, mib, os.getpid()).name}" for mib in (1, 2))
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
    except FileNotFoundError:  # somebody removed the folder: a request makes it again
        return ""
    finally:
        os.close(descriptor)
        for name in (second, path):
            with suppress(OSError):
                name.unlink()


def _lacks(feature: str, error: OSError) -> str:
    if is_disk_full(error) or error.errno in (errno.EROFS, errno.ENOENT):
        raise error
    return f"has no {feature}"
