"""What MLflow is owed: step folders whose spools it has not taken to the end, or whose end it was not told.

Each is named by a file in .overnight/services/owed from its first moment until all is told, whoever lives. Whoever ships it holds the
lock in its folder: the run's own process, one that goes on with the step, or the supervisor's `python -m overnight.tracking.upload`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from overnight import locks
from overnight.files import atomic_write
from overnight.services.settings import folder

LOCK = "ship.lock"


def owe(step: Path) -> None:
    """From now on it is shipped by somebody, until `settle`."""
    path = _file(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, str(step))


def settle(step: Path) -> None:
    """All of it is told."""
    _file(step).unlink(missing_ok=True)


def owes(step: Path) -> bool:
    """Whether something of it may still have to be told."""
    return _file(step).exists()


def debts() -> list[Path]:
    """The folders with something to tell that nobody is telling; a folder that was removed has nothing to tell any more."""
    found = list[Path]()
    for path in sorted((folder() / "owed").glob("*.step")):
        with suppress(FileNotFoundError):  # just settled
            found.append(Path(path.read_text()))
    for step in [one for one in found if not one.is_dir()]:
        settle(step)
    return [one for one in found if one.is_dir() and locks.holder(one / LOCK) is None]


@contextmanager
def shipping(step: Path) -> Iterator[None]:
    """Be the one who ships it. Raises locks.Held."""
    with locks.hold(step / LOCK, f"who ships {step.name}"):
        yield


def _file(step: Path) -> Path:
    return folder() / "owed" / f"{step.name}.step"
