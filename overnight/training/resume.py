"""Attempts at one step: which process may keep its checkpoints, and what previous attempts have logged.

A resumed attempt repeats the optimizer steps after its checkpoint. MLflow cannot delete points, so repeats
are left out (`Run.logged_before`): the first attempt that reaches a (metric, step) logs it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from overnight import events, locks
from overnight.errors import RestartProcess
from overnight.files import atomic_write, read_json
from overnight.paths import state
from overnight.run import Run

MONITOR = "system/"  # measured anew by every attempt: their steps count reports and go on counting


def checkpoints_of(key: str) -> Path:
    return state() / "checkpoints" / key


@contextmanager
def acquire_checkpoints(
    run: Run,
    key: str,
    who: str,
    known: Sequence[str] = (),
    logged_before: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[None]:
    """Let the run keep checkpoints under the step's key; they are removed when the block ends well.

    known: folders of the attempts that its MLflow run already includes; logged_before: the last step of each
    metric there. While another process trains the same step, this run trains without any.
    """
    folder = checkpoints_of(key)
    with ExitStack() as held:
        try:
            held.enter_context(locks.hold(folder / "lock", who))
        except locks.Held as error:
            run.note(f"no checkpoints: {error.by} trains the same step now and keeps its own")
            yield
            return
        run.checkpoints = folder
        _register(run, folder, known, logged_before)
        try:
            yield
        except RestartProcess:  # the next process starts from these files
            raise
        except BaseException:
            if not any(folder.glob("*/*.json")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _register(run: Run, folder: Path, known: Sequence[str], logged_before: Mapping[str, int]) -> None:
    """Add this attempt to run.json, and set what the run must not log again.

    Spools that its MLflow run does not include yet are announced, to be uploaded to it.
    """
    file = folder / "run.json"
    mine = str(run.folder)
    previous = [one for one in dict.fromkeys([*known, *_attempts(file)]) if one != mine]
    unknown = [one for one in previous if one not in known]
    if unknown:
        run.continues(unknown)
    continue_log(run, [*previous, mine], logged_before)
    atomic_write(file, json.dumps({"folders": [*previous, mine]}), durable=True)


def continue_log(run: Run, folders: Sequence[str], logged_before: Mapping[str, int]) -> None:
    """Set what the run must not log again: what its MLflow run has, and what attempts in folders logged."""
    last = latest(logged_before, *(events.last_steps(Path(one) / events.CHILD) for one in folders))
    run.logged_before = {name: step for name, step in last.items() if not name.startswith(MONITOR)}
    run.reports = 1 + max((step for name, step in last.items() if name.startswith(MONITOR)), default=-1)


def latest(*steps: Mapping[str, int]) -> dict[str, int]:
    found = dict[str, int]()
    for one in steps:
        for name, step in one.items():
            found[name] = max(step, found.get(name, step))
    return found


def previous_attempts(key: str) -> tuple[str, ...]:
    """Folders of earlier attempts; empty while a process trains the step."""
    folder = checkpoints_of(key)
    if locks.holder(folder / "lock") is not None:
        return ()
    return tuple(_attempts(folder / "run.json"))


def _attempts(file: Path) -> list[Any]:
    return list(read_json(file).get("folders", []))
