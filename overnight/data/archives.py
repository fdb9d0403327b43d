"""Archives from strangers: regular files alone, below one folder, up to a size, whole or not at all."""

import bz2
import codecs
import errno
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from overnight.errors import DiskFull, file_error
from overnight.files import atomic_write, is_disk_full
from overnight.paths import shown, state

LIMIT_BYTES = 200 * 10**9
DAMAGED = (  # what the standard library raises for an archive that is damaged
    OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, RuntimeError,
)  # fmt: skip


PACKED = (".gz", ".zip", ".zst", ".bz2", ".xz")


def plain(path: Path) -> Path:
    """The file itself, or the one file inside a packed one, unpacked once below .overnight/unpacked."""
    if path.suffix.lower() not in PACKED:
        return path

    def write(sink: IO[bytes]) -> None:
        with _single(path) as source:
            copy(source, sink, LIMIT_BYTES, path)

    return made_once(path, path.stem, write)


def recoded(path: Path, encoding: str) -> Path:
    """In utf-8, made once below .overnight/unpacked when it is in another encoding."""
    name = codecs.lookup(encoding).name
    if name in ("utf-8", "utf-8-sig"):
        return path

    def write(sink: IO[bytes]) -> None:
        decoder, line = codecs.getincrementaldecoder(encoding)(), 1
        try:
            with path.open("rb") as source:
                for text in source:
                    sink.write(decoder.decode(text).encode())
                    line += 1
            sink.write(decoder.decode(b"", final=True).encode())
        except UnicodeError as error:
            raise file_error(
                path,
                f"line {line}: expected text in {encoding}: {getattr(error, 'reason', error)}; correct the "
                "encoding",
            ) from None

    return made_once(path, f"{path.name}-{name}", write)


def made_once(path: Path, name: str, write: Callable[[IO[bytes]], object]) -> Path:
    """Unpack once; what was made is kept until the file changes."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:20]
    target = state() / "unpacked" / key / name
    if target.is_file():
        os.utime(target.parent)  # it is in use: `overnight clean` keeps it
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _explained(path, target):
            atomic_write(target, write)
    return target


@contextmanager
def _single(path: Path) -> Iterator[IO[bytes]]:
    kind = path.suffix.lower()
    if kind == ".zst":
        import pyarrow as pa

        with path.open("rb") as packed, pa.CompressedInputStream(packed, "zstd") as stream:
            yield stream
        return
    if kind != ".zip":
        opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[kind]
        with opener(path) as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive:
        inside = [i for i in archive.infolist() if not i.is_dir() and not i.filename.startswith("__MACOSX/")]
        if len(inside) != 1:
            raise file_error(
                path, f"expected one file in the zip, found {len(inside)}; unpack it and name the file"
            )
        with archive.open(inside[0]) as member:
            yield member


def unpack(archive: Path, folder: Path, inside: str = "", limit: int = LIMIT_BYTES) -> None:
    """Unpack the files below *inside* into the new *folder*.

    inside: a pattern; `*/VOC` passes over one level. Links and devices are left out. Raises DataError for a
    name that leaves the folder, or more than *limit* bytes; then nothing stays.
    """
    with _explained(archive, folder):
        folder.mkdir(parents=True)
        for name, opened in _members(archive):
            relative = _below(name, inside, archive)
            if relative is None:
                continue
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened() as source, target.open("xb") as sink:
                limit -= copy(source, sink, limit, archive)
        if not any(folder.iterdir()):
            raise file_error(archive, f"holds no file below {inside!r}; correct `inside` in the entry")


@contextmanager
def _explained(archive: Path, unfinished: Path) -> Iterator[None]:
    """Nothing unfinished stays. Raises DataError, DiskFull."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if not isinstance(error, DAMAGED):
            raise
        if is_disk_full(error):
            raise DiskFull(
                f"{shown(unfinished)}: the disk is full while unpacking {archive.name}; make room"
            ) from None
        number = getattr(error, "errno", None)
        if number not in (None, errno.EINVAL):  # EINVAL: a damaged directory of a zip points before its start
            raise file_error(
                archive, f"cannot be unpacked to {shown(unfinished)}: {os.strerror(number)}"
            ) from None
        raise file_error(
            archive, f"the archive is damaged or of another format: {error}; get it anew"
        ) from None


def _members(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, what opens it) of every regular file of a zip or tar, whatever its ending says."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                # a zip of Unix keeps the kind of file in the upper half of its attributes; 0: not said
                if not info.is_dir() and (info.external_attr >> 28) in (0, 0o10):
                    yield info.filename, partial(archive.open, info)
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg():
                yield member.name, partial(tar.extractfile, member)


def _below(name: str, inside: str, archive: Path) -> PurePosixPath | None:
    """None when it lies elsewhere. Raises DataError when it leads out of the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise file_error(
            archive, f"holds a file that would be written elsewhere ({name!r}); do not trust this archive"
        )
    prefix = PurePosixPath(inside).parts
    matches = len(path.parts) > len(prefix) and all(
        PurePosixPath(a).match(b) for a, b in zip(path.parts, prefix, strict=False)
    )
    return PurePosixPath(*path.parts[len(prefix) :]) if matches else None


def copy(source: IO[bytes], sink: IO[bytes], limit: int, archive: Path) -> int:
    """The bytes copied; more than *limit* is a DataError."""
    done = 0
    while chunk := source.read(1 << 20):
        done += len(chunk)
        if done > limit:
            raise file_error(
                archive,
                f"unpacks to more than {limit / 1e9:g} GB; raise `limit` in the entry if that is right",
            )
        sink.write(chunk)
    return done
