"""Copies of databases, made before another version of their program migrates them."""

import json
import sqlite3
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from overnight import paths
from overnight.errors import ServiceError
from overnight.files import read_json

KEPT = 3


def due(program: str, database: Path) -> bool:
    return database.is_file() and _versions().get(program) != version(program)


def copy(program: str, database: Path) -> Path:
    """The copy in .overnight/backups; the newest three stay. Raises ServiceError when there is no room."""
    backups = paths.state() / "backups"
    backups.mkdir(exist_ok=True)
    to = (
        backups / f"{database.stem}-{_versions().get(program, 'unknown')}-{time.strftime('%Y%m%d-%H%M%S')}.db"
    )
    try:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(to)) as target:
            source.backup(target)
    except (sqlite3.Error, OSError) as error:
        to.unlink(missing_ok=True)
        raise ServiceError(
            f"{paths.shown(database)}: is to be migrated to {program} {version(program)}, "
            f"and could not be copied before: {error}"
        ) from None
    for old in sorted(backups.glob(f"{database.stem}-*.db"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        old.unlink()
    return to


def opened(program: str) -> None:
    path = paths.services() / "versions.json"
    path.write_text(json.dumps({**_versions(), program: version(program)}))


def _versions() -> dict[str, str]:
    return read_json(paths.services() / "versions.json")
