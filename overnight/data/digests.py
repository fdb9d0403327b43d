"""sha256 of files and trees, remembered by size and modification time."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from overnight.files import atomic_write, file_sha256, read_json
from overnight.paths import state


def sha256(path: Path) -> str:
    """Digest of a file, or of a folder.

    That of a folder: the digest of what `sha256sum` lists for its files, sorted, with names relative to
    it.
    """
    key, mark, known = str(path.resolve()), _mark(path), _read()
    if known.get(key, (None, None))[0] == mark:
        return str(known[key][1])
    found = _tree(path) if path.is_dir() else file_sha256(path)
    if _mark(path) == mark:  # it did not change meanwhile
        _remember(key, mark, found)
    return found


def forget(path: Path) -> None:
    """Hash it anew the next time."""
    _write({k: v for k, v in _read().items() if k != str(path.resolve())})


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in _files(path)) if path.is_dir() else path.stat().st_size


def _files(folder: Path) -> list[Path]:
    """Its files, sorted by name; hidden ones (ours, the file manager's) do not count."""
    found = [
        p
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def _tree(folder: Path) -> str:
    listed = "".join(f"{file_sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in _files(folder))
    return hashlib.sha256(listed.encode()).hexdigest()


def _mark(path: Path) -> str:
    """What changes when a file is written to: size and time; of a folder, those of every file."""
    if not path.is_dir():
        stat = path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"
    listed = "".join(f"{p.relative_to(path)} {_mark(p)}\n" for p in _files(path))
    return hashlib.sha256(listed.encode()).hexdigest()


def _read() -> dict[str, Any]:
    """What is remembered; a file that is missing or damaged is as good as none."""
    return read_json(state() / "digests.json")


def _remember(key: str, mark: str, found: str) -> None:
    """Two writers at once may lose an entry, which costs one more hashing."""
    _write({k: v for k, v in _read().items() if Path(k).exists()} | {key: (mark, found)})


def _write(known: dict[str, Any]) -> None:
    with suppress(OSError):  # a read-only checkout: hash again next time
        atomic_write(state() / "digests.json", json.dumps(known, indent=0))
