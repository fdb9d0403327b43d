"""Getting bytes here: downloads that resume, archives that unpack safely. (first form)"""

import gzip
import hashlib
import os
import shutil
import zipfile
from pathlib import Path

from overnight.errors import DataError
from overnight.paths import shown, state


def plain(path: Path) -> Path:
    """The file itself, or what is inside a .gz or a .zip of one file, unpacked once below .overnight/."""
    if path.suffix not in (".gz", ".zip"):
        return path
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:20]
    target = state() / "unpacked" / key / path.stem
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            if path.suffix == ".gz":
                with gzip.open(path) as source, part.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            else:
                with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as source, part.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            part.unlink(missing_ok=True)
            raise DataError(f"{shown(path)}: expected a {path.suffix} file: {error}") from None
        os.replace(part, target)
    return target
