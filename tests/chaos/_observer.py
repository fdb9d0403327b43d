"""`python _observer.py FOLDER`: what is held in a ledger's folder, seen by somebody who knows only names and
locks (no import of it).

Two passes over the files: what was locked as a holder in the first and is still in the second was held
between the two, all of it at once. So what it counts too little it may miss, but it never counts too much.
Ends with its input; prints its looks and the most MiB it saw.
"""

import fcntl
import os
import select
import sys
from pathlib import Path


def holders(folder: str) -> dict[str, int]:
    """MiB by name of the granted requests whose file somebody has locked."""
    granted = {_inode(path) for path in Path(folder).glob("g-*")} - {0}
    found = {}
    for path in Path(folder).glob("q-*"):
        if _inode(path) in granted and _locked(path):
            found[path.name] = int(path.name.split("-")[2])
    return found


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def main() -> None:
    folder, looks, top = sys.argv[1], 0, 0
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        first = holders(folder)
        both = holders(folder).keys() & first.keys()
        looks, top = looks + 1, max(top, sum(first[name] for name in both))
    print(looks, top)


if __name__ == "__main__":
    main()
