"""Bring the files of an entry here: each file by its url, the rest out of the entry's archives."""

import os
import shutil
from pathlib import Path

from overnight.data import digests
from overnight.data.archives import unpack
from overnight.data.download import download
from overnight.data.file_set import Archive, DataFile, FileSet
from overnight.errors import DataError, file_error
from overnight.locks import hold
from overnight.paths import shown


def located(entry: FileSet, replace_damaged: bool = False) -> Path:
    """The first folder with every file as the entry says, downloaded if need be. Raises DataError."""
    damaged = list[str]()
    for folder in entry.found():
        problems = entry.problems(folder)
        if not problems:
            return folder
        damaged = damaged or problems
    if damaged and not replace_damaged:
        raise DataError(damaged)
    return fetch_missing(entry)


def fetch_missing(entry: FileSet) -> Path:
    """Download what is missing or damaged in the last of the entry's folders. Raises DataError.

    One process fetches a set at a time; others wait and find it done.
    """
    folder = entry.search_paths()[-1]
    check_can_fetch(entry, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(
            folder,
            f"cannot be made for {entry.called}: {error.strerror}; mend it, or set OVERNIGHT_DATA",
        ) from None
    with hold(folder / ".lock", f"fetching {entry.name}", wait=True):
        for file in _missing(entry, folder):
            if file.url:
                download(file.url, folder / file.path, file.digests, file.bytes)
        _fetch_archives(entry, folder)
    problems = entry.problems(folder)
    if problems:
        raise DataError(problems)
    return folder


def _missing(entry: FileSet, folder: Path) -> list[DataFile]:
    return [f for f in entry.files if entry.problem(folder, f)]


def check_can_fetch(entry: FileSet, folder: Path) -> None:
    """Raises DataError for a set that nothing but its owner can bring."""
    looked = " or ".join(shown(h) for h in entry.search_paths())
    if entry.installed:
        raise DataError(
            f"{entry.called}: {looked} lacks a file of the set; install {entry.installed.name} anew"
        )
    if not entry.files:
        raise DataError(
            f"{entry.called}: there is no folder {looked}, and its entry has no address; put the files there"
        )
    lost = [] if entry.archives else [f for f in _missing(entry, folder) if not f.url]
    damaged = [entry.problem(folder, f) for f in lost if (folder / f.path).exists()]
    if damaged:
        raise DataError(damaged)
    if lost:
        names = ", ".join(f.path for f in lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        hint = f" (see {entry.homepage})" if entry.homepage else ""
        raise DataError(
            f"{entry.called}: {names} not in {looked}; the entry has no address, so "
            f"`overnight {entry.COMMAND} fetch {entry.name}` cannot get it: put it there yourself{hint}"
        )


def _fetch_archives(entry: FileSet, folder: Path) -> None:
    """Unpack beside, then move name by name: a crash leaves nothing half."""
    for archive in entry.archives:
        if not _missing(entry, folder):
            return
        fresh = folder / ".unpacked"
        given = _given(entry, archive)
        packed = given or folder / f".{archive.name}"
        if not packed.exists():
            download(archive.url, packed, archive.digests, archive.bytes)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            unpack(packed, fresh, archive.inside, archive.limit)
            for file in _missing(entry, folder):
                if (fresh / file.path).exists():
                    target = folder / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if target.is_dir():
                        shutil.rmtree(target)
                    os.replace(fresh / file.path, target)
        finally:  # wrong once is wrong again: a damaged archive is not kept either
            shutil.rmtree(fresh, ignore_errors=True)
            if not given:
                packed.unlink()


def _given(entry: FileSet, archive: Archive) -> Path | None:
    """The archive that somebody put into one of the set's folders, if it is the right one."""
    there = [h / archive.name for h in entry.search_paths() if (h / archive.name).is_file()]
    return next((p for p in there if not archive.digests or digests.sha256(p) in archive.digests), None)
