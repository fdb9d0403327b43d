"""sha256 of files and trees, remembered by size, modification time and change time."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from overnight.files import atomic_write, file_sha256, read_json
from overnight.paths import state


def sha256(path: Path) -> str:
    """Of a file; of a folder that of what `sha256sum` lists for its files, sorted, relative to it."""
    key = str(path.resolve())
    mark = _mark(path)
    known = read_json(_memory())
    if known.get(key, (None, None))[0] == mark:
        return str(known[key][1])
    if path.is_dir():
        listed = "".join(f"{file_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in _files(path))
        found = hashlib.sha256(listed.encode()).hexdigest()
    else:
        found = file_sha256(path)
    if _mark(path) == mark:  # it did not change meanwhile
        # two writers at once may lose an entry, which costs one more hashing
        _remember({k: v for k, v in known.items() if Path(k).exists()} | {key: (mark, found)})
    return found


def forget(path: Path) -> None:
    _remember({k: v for k, v in read_json(_memory()).items() if k != str(path.resolve())})


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in _files(path))


def _files(path: Path) -> list[Path]:
    """Those of a folder sorted by name, without hidden ones (ours, the file manager's)."""
    if not path.is_dir():
        return [path]
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    return [path / name for name in names if "/." not in f"/{name}"]


def _mark(path: Path) -> str:
    stats = [(p.relative_to(path).as_posix(), p.stat()) for p in _files(path)]
    # A copy may bring the modification time of another file with it; the change time is the kernel's.
    marks = (f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n" for name, stat in stats)
    listed = "".join(marks)
    return hashlib.sha256(listed.encode()).hexdigest()


def _memory() -> Path:
    return state() / "digests.json"


def _remember(known: dict[str, Any]) -> None:
    with suppress(OSError):  # a read-only checkout: hash again next time
        atomic_write(_memory(), json.dumps(known, indent=0))
